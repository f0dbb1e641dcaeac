"""What a run needs in the cluster: a namespace, a trigger or processes, and afterwards what the programs have written."""

import json
import os
import secrets
import subprocess
import time

IMAGE = "busybox:1.36"
OPERATOR = "remoteprocess-system"
# As small as possible: when it begins, and which message it is about.
PROGRAM = 'echo "$EPOCHREALTIME $RPROC_MESSAGE_ID"'
# The same for each line of its input.
READER = 'while read -r id rest; do echo "$EPOCHREALTIME $id"; done'
TRIGGER = "load"
TRIGGER_LABEL = f"remoteprocess.dev/trigger={TRIGGER}"


class Failed(Exception):
    """The cluster does not do what it should; the text is for the user."""


def kubectl(*arguments: str, stdin: str | None = None, limit: float = 120) -> str:
    """The output of kubectl."""
    command = [os.environ.get("KUBECTL", "kubectl"), *arguments]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"kubectl {' '.join(arguments)}: no end after {limit} s") from error
    if done.returncode != 0:
        raise Failed(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def until(what: str, limit: float, test):
    """What `test` returns as soon as that is true."""
    end = time.monotonic() + limit
    while True:
        answer = test()
        if answer:
            return answer
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {limit} s")
        time.sleep(0.1)


class Namespace:
    """A namespace of its own for one way; it is deleted at the end, and the end of its pods is waited for."""

    def __init__(self, way: str):
        self.name = f"load-{way}-{secrets.token_hex(3)}"

    def __enter__(self) -> "Namespace":
        kubectl("create", "namespace", self.name)
        return self

    def __exit__(self, *_) -> None:
        kubectl("delete", "namespace", self.name, "--wait=true", limit=600)

    def kubectl(self, *arguments: str, **options) -> str:
        return kubectl("--namespace", self.name, *arguments, **options)

    def apply(self, *objects: dict) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "--filename=-", stdin=json.dumps(listed))

    def trigger(self, source: dict, message: dict, most: int, secret: dict[str, str]) -> None:
        """Makes a trigger, and waits until it takes messages."""
        spec = {
            "serviceAccountName": TRIGGER,
            "source": source,
            "message": message,
            "template": {"spec": {"image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", PROGRAM]}},
            "policy": {"maxRunning": most},
        }
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "remoteprocess-trigger"}
        subject = {"kind": "ServiceAccount", "name": TRIGGER, "namespace": self.name}
        metadata = {"name": TRIGGER}
        self.apply(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": metadata,
                "roleRef": role,
                "subjects": [subject],
            },
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": secret},
            {"apiVersion": "remoteprocess.dev/v1alpha1", "kind": "ProcessTrigger", "metadata": metadata, "spec": spec},
        )
        until("a trigger that is ready", 120, self._is_ready)

    def _is_ready(self) -> bool:
        trigger = json.loads(self.kubectl("get", "processtrigger", TRIGGER, "--output=json"))
        conditions = trigger.get("status", {}).get("conditions", [])
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    def service(self, name: str) -> str:
        """`host:port` of a Service."""
        return self.kubectl("get", "service", name, "--output=jsonpath={.spec.clusterIP}:{.spec.ports[0].port}")

    def readers(self, count: int) -> list[str]:
        """Starts processes that read lines, and waits until they run; returns their names."""
        names = [f"reader-{number}" for number in range(count)]
        spec = {"image": IMAGE, "imagePullPolicy": "IfNotPresent", "stdin": True, "command": ["sh", "-c", READER]}
        kind = {"apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess"}
        self.apply(*({**kind, "metadata": {"name": name}, "spec": spec} for name in names))

        def run() -> bool:
            return [process["status"].get("phase") for process in self.processes()] == ["Running"] * count

        until("running programs", 120, run)
        return names

    def processes(self, *selector: str) -> list[dict]:
        listed = json.loads(self.kubectl("get", "remoteprocesses", "--output=json", *selector))
        return [{"status": {}, **item} for item in listed["items"]]


def login(folder: str) -> str:
    """Writes a certificate of this user into a folder; returns the name of the relay's own certificate."""
    command = [os.environ.get("RPROC_BIN", "rproc"), "login", "--output-dir", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise Failed(f"rproc login: {done.stderr.strip()}")
    domain = kubectl("get", "configmap", "remoteprocess-connect", "--output=jsonpath={.data.trustDomain}", "--namespace", OPERATOR)
    return f"operator.{domain.strip()}"


def relay() -> str:
    """`host:port` of the relay."""
    address = kubectl("get", "service", "remoteprocess-relay", "--output=jsonpath={.spec.clusterIP}", "--namespace", OPERATOR)
    return f"{address.strip()}:8443"


def starts(output: bytes) -> list[str]:
    """The ids in what programs have printed, a line for each start."""
    return [line.split(" ", 1)[1] for line in output.decode().splitlines()]


def journal(namespace: Namespace, reader, selector: list[str]) -> tuple[dict[str, int], list[str]]:
    """How often a program began to work on each message: from the whole output of all attempts of all processes, as the relay has it.

    Also says which outputs cannot be read; what only they had counts as lost.
    """
    counts: dict[str, int] = {}
    complaints = []
    for process in namespace.processes(*selector):
        name = process["metadata"]["name"]
        for attempt in range(1, 1 + (process["status"].get("attempt") or 0)):
            try:
                output = b"".join(reader.output(name, attempt=attempt))
            except (reader.grpc.RpcError, RuntimeError) as error:
                # An attempt that was replaced before it ran has none.
                complaints.append(f"output of {name}, attempt {attempt}: {error}"[:300])
                continue
            for id in starts(output):
                counts[id] = counts.get(id, 0) + 1
    return counts, complaints[:20]
