"""The users of `cargo xtask load`: each takes the next message of the run, sends it, and may wait for its result.

Locust gets the name of one class of users. The file that LOAD_RUN names says what to send, where to, and where to write what
happened; load.py writes it. One process only: users on other machines would each deal out all messages.
"""

import base64
import itertools
import json
import os
import pathlib
import sys

import gevent
from gevent.event import Event
from gevent.queue import Queue
from locust import HttpUser, LoadTestShape, User, events, task
from locust.runners import LocalRunner

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import nats
import traffic
from run import MESSAGE_LIMIT, Run, of_event

CONFIG = json.loads(pathlib.Path(os.environ["LOAD_RUN"]).read_text())
AT = CONFIG["at"]
RUN = Run(
    traffic.Deal(
        traffic.messages(traffic.read(CONFIG["traffic"]), CONFIG["messages"]), traffic.phases(traffic.read(CONFIG["shape"]))
    ),
    CONFIG["way"],
)
# A user without a message looks again after this time.
IDLE = 0.02
# Before what failed is tried again.
PAUSE = 0.2


class Shape(LoadTestShape):
    """The shape of the load, from the shape file: a phase ends when all its results are there."""

    def tick(self):
        phase = RUN.phase()
        return (phase.users, phase.spawn_rate) if phase else None


@events.test_start.add_listener
def check(environment, **_):
    if not isinstance(environment.runner, LocalRunner):
        sys.exit("use one process: users in others would send the same messages again")


@events.quitting.add_listener
def write(**_):
    pathlib.Path(CONFIG["out"]).write_text(json.dumps(RUN.to_json()))


class Sends(User):
    """What all users do. The first user of a run begins to listen for the results of all."""

    abstract = True
    listen = None
    is_heard = False

    def on_start(self):
        kind = type(self)
        if kind.listen and not kind.is_heard:
            kind.is_heard = True
            until_the_end(kind.listen)
        self.connect()

    def connect(self) -> None:
        """Prepares to send."""

    def send(self, message: traffic.Message, record) -> None:
        """Returns when the message is accepted."""
        raise NotImplementedError

    @task
    def next(self):
        phase = RUN.phase()
        # A phase begins when all its users are there.
        is_complete = phase and self.environment.runner.user_count >= phase.users
        taken = RUN.take() if is_complete else None
        if taken is None:
            gevent.sleep(IDLE)
            return
        message, record = taken
        try:
            self.send(message, record)
        except Exception as error:
            RUN.complain(f"{message.id}: {type(error).__name__}: {error}")
            raise
        RUN.accepted(record)
        if record.waits:
            record.is_done.wait(MESSAGE_LIMIT)


def until_the_end(listen):
    """Runs `listen`, which takes results, in a greenlet, and again if it fails; returns when it is ready."""
    ready = Event()

    def loop():
        while True:
            try:
                listen(ready.set)
            except Exception as error:
                RUN.complain(f"results: {type(error).__name__}: {error}")
                gevent.sleep(PAUSE)

    gevent.spawn(loop)
    if not ready.wait(MESSAGE_LIMIT):
        sys.exit("the results cannot be received")


def take_event(text) -> None:
    """Notes the result in a CloudEvent."""
    try:
        RUN.answered(*of_event(json.loads(text)))
    except (ValueError, KeyError, TypeError) as error:
        RUN.complain(f"a result: {error}")


class WebhookUser(Sends, HttpUser):
    """Posts to a webhook.

    A user who waits for results asks for them by a second request with the same id, so that it learns when the message was
    accepted. The others use one request, whose answer is the result: a webhook keeps no message for which there is no room.
    """

    host = AT.get("url", "")
    REFUSALS = (429, 503)

    def connect(self):
        self.headers = {"Authorization": f"Bearer {AT['token']}", "Content-Type": "application/json"}

    def send(self, message, record):
        if not record.waits:
            self._result(message, record)
            return
        while self._post(message, "/", "POST /", 30) not in (200, 202):
            RUN.refused(record, 1, "no answer that accepts it")
        gevent.spawn(self._result, message, record)

    def _result(self, message, record):
        """Asks until there is a result. A process that runs for longer than one request may wait answers 202."""
        while (code := self._post(message, f"/?wait={MESSAGE_LIMIT}", "POST /?wait=", MESSAGE_LIMIT + 30)) != 200:
            RUN.refused(record, 0 if code == 202 else 1, "no result")

    def _post(self, message, path, name, limit):
        """The code of the answer; 429 and 503 are no failures: the webhook says to come again after a second."""
        headers = self.headers | {"Idempotency-Key": message.id}
        data = message.payload.encode()
        with self.client.post(path, data=data, headers=headers, name=name, timeout=limit, catch_response=True) as answer:
            if answer.status_code in self.REFUSALS:
                answer.success()
            elif answer.status_code == 200 and "wait" in path:
                take_event(answer.content)
            elif answer.status_code not in (200, 202):
                RUN.complain(f"{message.id}: {answer.status_code} {answer.text[:200]}{answer.error or ''}")
            return answer.status_code


class NatsUser(Sends):
    """Publishes to JetStream, and waits for the confirmation."""

    def connect(self):
        self.connection = nats.Connection(AT["url"])

    @staticmethod
    def listen(is_ready):
        connection = nats.Connection(AT["url"], limit=None)
        connection.subscribe(AT["results"])
        is_ready()
        while True:
            take_event(connection.receive())

    def send(self, message, record):
        while True:
            try:
                headers = {"Nats-Msg-Id": message.id}
                self.connection.request(AT["subject"], message.payload.encode(), headers)
                return
            except nats.Unavailable as error:
                RUN.refused(record, PAUSE, str(error))
                self.connection.close()
                self.connect()


class RabbitmqUser(Sends):
    """Publishes to a queue, persistent, and waits for the confirmation."""

    def connect(self):
        self.connection, self.channel = rabbitmq()
        self.channel.confirm_delivery()

    @staticmethod
    def listen(is_ready):
        _, channel = rabbitmq()
        is_ready()
        for method, _, body in channel.consume(AT["results"]):
            take_event(body)
            channel.basic_ack(method.delivery_tag)

    def send(self, message, record):
        import pika

        properties = pika.BasicProperties(
            message_id=message.id,
            correlation_id=message.id,
            reply_to=AT["results"],
            content_type="application/json",
            delivery_mode=pika.DeliveryMode.Persistent,
        )
        while True:
            try:
                self.channel.basic_publish("", AT["queue"], message.payload.encode(), properties, mandatory=True)
                return
            except pika.exceptions.AMQPError as error:
                RUN.refused(record, PAUSE, repr(error))
                self.connect()


def rabbitmq():
    """A connection and a channel."""
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(AT["url"]))
    return connection, connection.channel()


class PubsubUser(Sends, HttpUser):
    """Publishes to a topic of Google Pub/Sub by its REST API."""

    host = AT.get("url", "")

    @staticmethod
    def listen(is_ready):
        import requests

        session, subscription = requests.Session(), f"{AT['url']}/v1/{AT['results']}"
        is_ready()
        while True:
            # The server answers when a message is there.
            answer = session.post(f"{subscription}:pull", json={"maxMessages": 100}, timeout=120)
            answer.raise_for_status()
            received = answer.json().get("receivedMessages", [])
            for item in received:
                take_event(base64.b64decode(item["message"]["data"]))
            if received:
                ids = {"ackIds": [item["ackId"] for item in received]}
                session.post(f"{subscription}:acknowledge", json=ids, timeout=30).raise_for_status()
            else:
                gevent.sleep(IDLE)

    def send(self, message, record):
        data = base64.b64encode(message.payload.encode()).decode()
        body = {"messages": [{"data": data, "attributes": {"message-id": message.id}}]}
        path = f"/v1/{AT['topic']}:publish"
        while True:
            answer = self.client.post(path, json=body, name="publish", timeout=30)
            if answer.status_code == 200:
                return
            RUN.refused(record, PAUSE, f"{answer.status_code} {answer.text[:200]}")


class GrpcUser(Sends):
    """Writes to the input of a process that runs, one for each user, and follows its output: a line each."""

    abstract = True
    _numbers = itertools.count()

    def connect(self):
        from relay import Relay

        number = next(GrpcUser._numbers)
        self.process = AT["processes"][number % len(AT["processes"])]
        self.session = f"load-{number}"
        self.relay = Relay(AT["relay"], AT["namespace"])
        self.offset = None
        gevent.spawn(self._follow)

    def _follow(self):
        """Takes the lines of the output, from the first on."""
        while True:
            rest, seen = b"", 0
            try:
                for data in self.relay.output(self.process, follow=True, limit=3600):
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        started, id = line.decode().split(" ", 1)
                        # The same line, read again, is the same result.
                        RUN.answered(id, float(started), f"{self.process}/{seen}")
                        seen += 1
            except self.relay.grpc.RpcError as error:
                RUN.complain(f"{self.process}: {error.code()}: {error.details()}")
            gevent.sleep(PAUSE)

    def send(self, message, record):
        line = f"{message.id} {message.payload}\n".encode()
        begin = self.offset
        while True:
            try:
                begin = self.write(line, begin)
                self.offset = begin + len(line)
                return
            except self.relay.grpc.RpcError as error:
                RUN.refused(record, PAUSE, f"{error.code()}: {error.details()}")

    def write(self, line: bytes, begin: int | None) -> int:
        """Writes a line at an offset, or where the input ends, and returns that when it is accepted. Another try changes nothing."""
        raise NotImplementedError


class GrpcServerStreamUser(GrpcUser):
    """Only the way back is a long stream: each message is an `Attach` of its own, and one `WatchOutput` brings all answers."""

    def write(self, line, begin):
        requests = Queue()
        requests.put(self.relay.open(self.process, self.session, resume=False))
        answers = self.relay.stub.Attach(iter(requests.get, None), timeout=MESSAGE_LIMIT)
        for answer in answers:
            if begin is None:
                begin = answer.accepted
            if answer.accepted >= begin + len(line):
                break
            for request in self.relay.input(begin, line):
                requests.put(request)
        # Lets go of the input.
        requests.put(None)
        for _ in answers:
            pass
        return begin


class GrpcClientStreamUser(GrpcUser):
    """The way there is a long stream, too: one `Attach` carries all messages of the user."""

    requests = None

    def write(self, line, begin):
        if self.requests is None:
            self._open(begin is not None)
        if begin is None:
            begin = self.accepted
        for request in self.relay.input(begin, line):
            self.requests.put(request)
        while self.accepted < begin + len(line):
            self.news.clear()
            if self.error is not None:
                error, self.requests = self.error, None
                raise error
            if not self.news.wait(MESSAGE_LIMIT):
                raise TimeoutError("the input is not accepted")
        return begin

    def _open(self, resume):
        self.requests, self.news, self.accepted, self.error = Queue(), Event(), None, None
        self.requests.put(self.relay.open(self.process, self.session, resume))
        answers = self.relay.stub.Attach(iter(self.requests.get, None))
        gevent.spawn(self._read, answers)
        if not self.news.wait(MESSAGE_LIMIT) or self.accepted is None:
            self.requests = None
            raise self.error or TimeoutError("no answer to an Attach")

    def _read(self, answers):
        try:
            for answer in answers:
                self.accepted = answer.accepted
                self.news.set()
        except self.relay.grpc.RpcError as error:
            self.error = error
            self.news.set()


if CONFIG["way"].startswith("grpc"):
    from grpc.experimental import gevent as grpc_gevent

    grpc_gevent.init_gevent()
