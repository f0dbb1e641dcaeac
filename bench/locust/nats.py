"""The part of the protocol of NATS that publishes and receives, over one socket. One thread or greenlet at a time."""

import json
import re
import secrets
import socket

LINE_BYTES = 4096
PAYLOAD_BYTES = 1 << 20
# For an answer of the server.
LIMIT = 30


class Unavailable(Exception):
    """The server refuses, is silent, or is gone."""


class Connection:
    """A connection to `nats://host:port`, without login and TLS."""

    def __init__(self, url: str, limit: float | None = LIMIT):
        host, port = re.fullmatch(r"nats://([^:/]+):(\d+)", url).groups()
        try:
            self._socket = socket.create_connection((host, int(port)), timeout=limit)
        except OSError as error:
            raise Unavailable(str(error)) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self._inbox = f"_INBOX.{secrets.token_hex(12)}"
        self._asked = 0
        if not self._line().startswith(b"INFO "):
            raise Unavailable(f"{url} does not speak NATS")
        options = json.dumps({"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "lang": "python"})
        self._write(f"CONNECT {options}\r\nSUB {self._inbox}.* 1\r\nPING\r\n".encode())
        while self._line() != b"PONG":
            pass

    def subscribe(self, subject: str) -> None:
        """From now on, `receive` has messages of the subject, too. Returns when the server has confirmed that."""
        self._write(f"SUB {subject} 2\r\nPING\r\n".encode())
        while self._line() != b"PONG":
            pass

    def receive(self) -> bytes:
        """The payload of the next message."""
        return self._message()[1]

    def request(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> dict:
        """Publishes, and waits for the answer, an object in JSON; an answer with `error` is refused."""
        self._asked += 1
        reply = f"{self._inbox}.{self._asked}"
        head = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        block = f"NATS/1.0\r\n{head}\r\n".encode()
        command = f"HPUB {subject} {reply} {len(block)} {len(block) + len(payload)}\r\n"
        self._write(command.encode() + block + payload + b"\r\n")
        while True:
            to, answer = self._message()
            if to == reply:
                break
        try:
            value = json.loads(answer)
        except ValueError as error:
            raise Unavailable(f"nobody answers at {subject}") from error
        if "error" in value:
            raise Unavailable(f"{subject}: {value['error'].get('description')}")
        return value

    def close(self) -> None:
        self._socket.close()

    def _write(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Unavailable(str(error)) from error

    def _line(self) -> bytes:
        """The next line that is not a PING, without its end."""
        while True:
            try:
                line = self._file.readline(LINE_BYTES + PAYLOAD_BYTES)
            except OSError as error:
                raise Unavailable(str(error)) from error
            if not line.endswith(b"\r\n"):
                raise Unavailable("the connection ended")
            if line == b"PING\r\n":
                self._write(b"PONG\r\n")
            elif line.startswith(b"-ERR"):
                raise Unavailable(line.decode(errors="replace").strip())
            else:
                return line[:-2]

    def _message(self) -> tuple[str, bytes]:
        """Subject and payload of the next message; headers are left out."""
        while True:
            words = self._line().decode(errors="replace").split(" ")
            if words[0] in ("MSG", "HMSG"):
                break
        size, head = int(words[-1]), int(words[-2]) if words[0] == "HMSG" else 0
        if not 0 <= head <= size <= PAYLOAD_BYTES:
            raise Unavailable(f"a message of {size} bytes")
        try:
            data = self._file.read(size + 2)
        except OSError as error:
            raise Unavailable(str(error)) from error
        if len(data) < size + 2:
            raise Unavailable("the connection ended")
        return words[1], data[head:size]
