"""One run of one way: deals messages to users, and notes what becomes of each. Greenlets of one thread use it."""

import time

import gevent
from gevent.event import Event
from locust import events

from traffic import Deal, Message, Phase

# How long a phase may last in addition to `SECONDS_EACH` for each of its messages, and how long one message may take.
SECONDS_MORE = 120
SECONDS_EACH = 5
MESSAGE_LIMIT = 120
# Most results of one message that are kept, to show that it was doubled.
RESULTS = 10


class Record:
    """What happened to one message. Times are seconds since the Unix epoch."""

    def __init__(self, message: Message, phase: Phase):
        self.id = message.id
        self.phase = phase.name
        self.waits = phase.waits
        self.sent = time.time()
        self.accepted = self.started = self.result = None
        self.refusals = 0
        self.results: dict[str, str] = {}
        self.is_done = Event()

    def to_json(self) -> dict:
        fields = ("id", "phase", "sent", "accepted", "started", "result", "refusals", "results")
        return {field: getattr(self, field) for field in fields}


class Run:
    """The state of a run."""

    def __init__(self, deal: Deal, way: str):
        self.deal = deal
        self.way = way
        self.number = 0
        self.records: dict[str, Record] = {}
        self.strays: dict[str, dict[str, str]] = {}
        self.complaints: list[str] = []
        self._begin()

    def _begin(self) -> None:
        self._waiting = self.deal.sizes[self.number] if self.number < len(self.deal.sizes) else 0
        self._since = time.time()

    def phase(self):
        """The phase that is under way, or none after the last. A phase ends when all its results are there, or too late."""
        if self.number == len(self.deal.phases):
            return None
        limit = SECONDS_MORE + SECONDS_EACH * self.deal.sizes[self.number]
        is_late = time.time() - self._since > limit
        if self._waiting and not is_late:
            return self.deal.phases[self.number]
        if is_late:
            name = self.deal.phases[self.number].name
            self.complain(f"{name}: {self._waiting} messages have no result after {limit} s")
        self.number += 1
        self._begin()
        return self.phase()

    def take(self) -> tuple[Message, Record] | None:
        """The next message for a user who is free, or none at this time."""
        phase = self.phase()
        message = self.deal.take(self.number) if phase else None
        if message is None:
            return None
        record = self.records[message.id] = Record(message, phase)
        return message, record

    def accepted(self, record: Record) -> None:
        """The sender knows that the message will not be lost."""
        record.accepted = time.time()
        self._show("accepted", record.accepted - record.sent)

    def answered(self, id: str, started: float, result: str) -> None:
        """A result has come: when the program began to work on the message, and the id of this result."""
        now, record = time.time(), self.records.get(id)
        results = self.strays.setdefault(id, {}) if record is None else record.results
        if len(results) < RESULTS:
            results.setdefault(result, f"{started:.6f}")
        if record is None or record.result is not None:
            return
        record.started, record.result = started, now
        self._show("program started", started - record.sent)
        self._show("result", now - record.sent)
        if record.phase == self.deal.phases[min(self.number, len(self.deal.phases) - 1)].name:
            self._waiting -= 1
        record.is_done.set()

    def complain(self, text: str) -> None:
        """Something went wrong that a user must see; the first of them are kept."""
        if len(self.complaints) < 20:
            self.complaints.append(text[:500])

    def refused(self, record: Record, pause: float, reason: str) -> None:
        """The message was not taken; waits before it is sent again, with the same id. Raises if that lasts too long."""
        record.refusals += 1
        if time.time() - record.sent > 2 * MESSAGE_LIMIT:
            raise TimeoutError(f"{record.id} is not accepted: {reason}")
        gevent.sleep(pause)

    def to_json(self) -> dict:
        return {
            "records": [record.to_json() for record in self.records.values()],
            "strays": self.strays,
            "complaints": self.complaints,
        }

    def _show(self, event: str, seconds: float) -> None:
        """Adds a line to Locust's own statistics."""
        events.request.fire(
            request_type=self.way, name=event, response_time=seconds * 1000, response_length=0, exception=None, context={}
        )


def of_event(event: dict) -> tuple[str, float, str]:
    """Message id, start time and id of a result, from the CloudEvent of a trigger. The program's output is `TIME ID`."""
    data = event["data"]
    if data["outcome"] != "Succeeded":
        raise ValueError(f"{data['name']} ended as {data['outcome']} ({data.get('reason')})")
    started, id = data["tail"].split()
    if id != data["messageId"]:
        raise ValueError(f"{data['name']} printed {id} and is of {data['messageId']}")
    return id, float(started), event["id"]
