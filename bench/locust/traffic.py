"""The messages of a run, from a file, and the shape of the load, from another. Pure: no network, no clock."""

import json
import pathlib

# Bounds of what is read: both files come from a user.
FILE_BYTES = 64 << 20
ID_BYTES = 1024
PAYLOAD_BYTES = 512 << 10
MESSAGES = 100_000
USERS = 1000


class Refused(Exception):
    """A file says what it must not say; the text is for the user."""


class Message:
    """What is sent: an id, which no other message of the run has, and the text of the payload, which is one line."""

    def __init__(self, id: str, payload: str):
        self.id = id
        self.payload = payload


class Phase:
    """A part of a run. `waits`: a user sends the next message when the result of the last one has come."""

    def __init__(self, name: str, users: int, share: float, spawn_rate: float, waits: bool, is_measured: bool):
        self.name = name
        self.users = users
        self.share = share
        self.spawn_rate = spawn_rate
        self.waits = waits
        self.is_measured = is_measured


def read(path: pathlib.Path):
    """The JSON value in a file of at most 64 MiB."""
    with open(path, "rb") as file:
        text = file.read(FILE_BYTES + 1)
    if len(text) > FILE_BYTES:
        raise Refused(f"{path} has more than {FILE_BYTES} bytes")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} is not JSON: {error}") from error


def messages(value, count: int) -> list[Message]:
    """`count` messages from the value of a traffic file: its messages in turn, each round with ids of its own."""
    listed = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(listed, list) or not listed:
        raise Refused("a traffic file is an object with a list `messages`, which is not empty")
    if not 1 <= count <= MESSAGES:
        raise Refused(f"a run has 1 to {MESSAGES} messages, not {count}")
    originals = [_message(number, item) for number, item in enumerate(listed)]
    if len({original.id for original in originals}) < len(originals):
        raise Refused("two messages of the traffic file have the same id")
    rounds = [(originals[number % len(originals)], number // len(originals)) for number in range(count)]
    return [Message(f"{original.id}.{turn}", original.payload) for original, turn in rounds]


def _message(number: int, item) -> Message:
    if not isinstance(item, dict) or "payload" not in item:
        raise Refused(f"message {number} is not an object with `id` and `payload`")
    id = item.get("id")
    # The program prints it in one line with a time.
    is_word = isinstance(id, str) and id.isascii() and id.isprintable() and " " not in id
    if not is_word or not 0 < len(id) <= ID_BYTES // 2:
        raise Refused(f"the id of message {number} is not a word of 1 to {ID_BYTES // 2} letters of ASCII")
    # A program that reads lines gets it as one line.
    payload = json.dumps(item["payload"])
    if len(payload) > PAYLOAD_BYTES:
        raise Refused(f"the payload of message {number} has more than {PAYLOAD_BYTES} bytes")
    return Message(id, payload)


def phases(value) -> list[Phase]:
    """The phases in the value of a shape file."""
    listed = value.get("phases") if isinstance(value, dict) else None
    if not isinstance(listed, list) or not 1 <= len(listed) <= 20:
        raise Refused("a shape file is an object with a list `phases` of 1 to 20 items")
    found = [_phase(item) for item in listed]
    if len({phase.name for phase in found}) < len(found):
        raise Refused("two phases have the same name")
    return found


def _phase(item) -> Phase:
    fields = {"name", "users", "share", "spawnRate", "waits", "measured"}
    if not isinstance(item, dict) or not item.keys() <= fields:
        raise Refused(f"a phase has only these fields: {', '.join(sorted(fields))}")
    name, waits, is_measured = item.get("name"), item.get("waits", False), item.get("measured", True)
    if not isinstance(name, str) or not 0 < len(name) <= 40 or not name.isprintable() or "|" in name:
        raise Refused("the name of a phase has 1 to 40 letters, and no |")
    if not isinstance(waits, bool) or not isinstance(is_measured, bool):
        raise Refused(f"`waits` and `measured` of the phase {name} are true or false")
    users = _number(item, "users", 1, USERS)
    if users != int(users):
        raise Refused(f"`users` of the phase {name} is a whole number")
    share, rate = _number(item, "share", 1e-6, 1e6), _number(item, "spawnRate", 0.01, 1000, default=users)
    return Phase(name, int(users), share, rate, waits, is_measured)


def _number(item: dict, field: str, least: float, most: float, default=None) -> float:
    value = item.get(field, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise Refused(f"`{field}` of a phase is a number from {least:g} to {most:g}, not {value!r}")
    return value


def divide(count: int, parts: list[Phase]) -> list[int]:
    """How many of `count` messages each phase gets: by its share, at least one each, together all of them."""
    if count < len(parts):
        raise Refused(f"{count} messages are too few for {len(parts)} phases")
    total = sum(phase.share for phase in parts)
    spare = count - len(parts)
    ends, so_far = [0], 0.0
    for phase in parts:
        so_far += phase.share
        ends.append(round(spare * so_far / total))
    ends[-1] = spare
    return [1 + after - before for before, after in zip(ends, ends[1:])]


class Deal:
    """Gives each message of a run to one user, once, whatever the number of users. They ask in any order."""

    def __init__(self, all: list[Message], parts: list[Phase]):
        self.phases = parts
        self._waiting, begin = [], 0
        for size in divide(len(all), parts):
            self._waiting.append(list(reversed(all[begin : begin + size])))
            begin += size
        self.sizes = [len(waiting) for waiting in self._waiting]

    def take(self, phase: int) -> Message | None:
        """The next message of the phase with this number, or none if all are taken."""
        waiting = self._waiting[phase]
        return waiting.pop() if waiting else None
