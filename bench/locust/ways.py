"""The ways of a message to a program. Each prepares its broker and the cluster, and says where the users of Locust send to."""

import contextlib
import json
import os
import secrets
import urllib.error
import urllib.request

import cluster
import nats

# For a broker that has just started.
READY = 60
PROJECT = "load"
MESSAGE = {"payload": "File"}


class Way:
    """One of them. `name` is also the name of its files."""

    name = title = user = ""
    # Processes of the way: all of them, or those of the trigger.
    selector = ("--selector", cluster.TRIGGER_LABEL)
    # How many times as many messages it gets.
    factor = 1

    def address(self) -> str | None:
        """Where its broker is; none if there is no such broker on this machine."""
        return "cluster"

    @contextlib.contextmanager
    def ready(self, namespace: cluster.Namespace, most: int, relay: dict):
        """Everything that it needs while the block runs; the value tells the users where to send to."""
        raise NotImplementedError


class Http(Way):
    name, title, user = "http", "HTTP webhook", "WebhookUser"

    @contextlib.contextmanager
    def ready(self, namespace, most, relay):
        token = secrets.token_hex(16)
        namespace.trigger({"http": {"secretName": cluster.TRIGGER}}, MESSAGE, most, {"token": token})
        url = f"http://{namespace.service(f'{cluster.TRIGGER}-trigger')}"
        # The node learns the address of a new Service a moment later.
        cluster.until("the address of the webhook", READY, lambda: answers(url))
        yield {"url": url, "token": token}


def answers(url: str) -> bool:
    """Whether a server answers, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


class Nats(Way):
    name, title, user = "nats", "NATS JetStream", "NatsUser"

    def address(self):
        return os.environ.get("LOAD_NATS")

    @contextlib.contextmanager
    def ready(self, namespace, most, relay):
        orders, results = namespace.name, f"{namespace.name}-results"
        connection = nats.Connection(self.address())
        for stream in (orders, results):
            config = {"name": stream, "subjects": [stream], "storage": "file", "num_replicas": 1}
            connection.request(f"$JS.API.STREAM.CREATE.{stream}", json.dumps(config).encode())
        try:
            source = {"nats": {"servers": [self.address()], "stream": orders, "resultSubject": results}}
            namespace.trigger(source, MESSAGE, most, {})
            yield {"url": self.address(), "subject": orders, "results": results}
        finally:
            for stream in (orders, results):
                connection.request(f"$JS.API.STREAM.DELETE.{stream}", b"")
            connection.close()


class Rabbitmq(Way):
    name, title, user = "rabbitmq", "RabbitMQ", "RabbitmqUser"

    def address(self):
        return os.environ.get("LOAD_RABBITMQ")

    @contextlib.contextmanager
    def ready(self, namespace, most, relay):
        import pika

        # A user may be silent for longer than a heartbeat.
        url = f"{self.address()}/%2F?heartbeat=0"
        orders, results = namespace.name, f"{namespace.name}-results"

        def on_channel(*calls):
            connection = pika.BlockingConnection(pika.URLParameters(url))
            channel = connection.channel()
            for call in calls:
                call(channel)
            connection.close()

        quorum = {"x-queue-type": "quorum"}
        on_channel(
            lambda channel: channel.queue_declare(orders, durable=True, arguments=quorum),
            lambda channel: channel.queue_declare(results, durable=True, arguments=quorum),
        )
        try:
            address = self.address().rsplit("@", 1)[1]
            namespace.trigger({"rabbitmq": {"address": address, "queue": orders}}, MESSAGE, most, {})
            yield {"url": url, "queue": orders, "results": results}
        finally:
            on_channel(lambda channel: channel.queue_delete(orders), lambda channel: channel.queue_delete(results))


class Pubsub(Way):
    name, title, user = "pubsub", "Pub/Sub emulator", "PubsubUser"

    def address(self):
        return os.environ.get("LOAD_PUBSUB")

    @contextlib.contextmanager
    def ready(self, namespace, most, relay):
        orders, results = namespace.name, f"{namespace.name}-results"
        at = f"{self.address()}/v1/projects/{PROJECT}"

        def call(method: str, path: str, body: dict | None = None):
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(f"{at}/{path}", data, {"Content-Type": "application/json"}, method=method)
            try:
                return urllib.request.urlopen(request, timeout=10).status == 200
            except urllib.error.HTTPError as error:
                # It exists: an answer was lost. Another refusal: the port is open before the emulator answers.
                return error.code == 409
            except OSError:
                return False

        for name in (orders, results):
            body = {"topic": f"projects/{PROJECT}/topics/{name}", "ackDeadlineSeconds": 60}
            cluster.until("a topic", READY, lambda: call("PUT", f"topics/{name}", {}))
            cluster.until("a subscription", READY, lambda: call("PUT", f"subscriptions/{name}", body))
        try:
            source = {"project": PROJECT, "subscription": orders, "endpoint": self.address(), "resultTopic": results}
            namespace.trigger({"pubsub": source}, MESSAGE, most, {})
            topic, subscription = (f"projects/{PROJECT}/{kind}" for kind in (f"topics/{orders}", f"subscriptions/{results}"))
            yield {"url": self.address(), "topic": topic, "results": subscription}
        finally:
            for name in (orders, results):
                call("DELETE", f"subscriptions/{name}")
                call("DELETE", f"topics/{name}")


class Grpc(Way):
    """To programs that run already, one for each user: no process is started for a message, and more of them are needed to see
    their CPU time.
    """

    selector, factor = (), 20

    def __init__(self, name: str, title: str, user: str):
        self.name, self.title, self.user = name, title, user

    @contextlib.contextmanager
    def ready(self, namespace, most, relay):
        yield {"processes": namespace.readers(most), "relay": relay, "namespace": namespace.name}


ALL = (
    Http(),
    Nats(),
    Rabbitmq(),
    Pubsub(),
    Grpc("grpc-client-stream", "gRPC client streaming", "GrpcClientStreamUser"),
    Grpc("grpc-server-stream", "gRPC server streaming", "GrpcServerStreamUser"),
)
