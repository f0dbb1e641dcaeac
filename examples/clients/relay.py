#!/usr/bin/env python3
"""Lists processes, follows the output of one from an offset and signals it, with gRPC.

    relay.py list
    relay.py follow NAME [STDOUT_OFFSET]
    relay.py signal NAME NUMBER

It needs grpcio and grpcio-tools, and compiles the .proto files of this repository when it starts. RELAY, RELAY_NAME, CERTS
and NAMESPACE are those of relay.sh.
"""

import os
import sys
import tempfile
import time
import uuid
from importlib import resources
from pathlib import Path

import grpc
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parents[2] / "proto"
PROTOCOL = 1
# Another connection may succeed.
RETRY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED}


def generated():
    """The messages and the stub of the relay."""
    folder = tempfile.mkdtemp()
    files = [str(path.relative_to(PROTO)) for path in sorted(PROTO.glob("remoteprocess/v1/*.proto"))]
    includes = ["-I" + str(PROTO), "-I" + str(resources.files("grpc_tools") / "_proto")]
    code = protoc.main(["protoc", *includes, "--python_out=" + folder, "--grpc_python_out=" + folder, *files])
    if code != 0:
        sys.exit("cannot compile the .proto files")
    sys.path.insert(0, folder)
    from remoteprocess.v1 import process_pb2, relay_pb2, relay_pb2_grpc

    return process_pb2, relay_pb2, relay_pb2_grpc


process_pb2, relay_pb2, relay_pb2_grpc = generated()


def connect():
    """A channel with the certificate that `rproc login --output-dir` wrote."""
    certs = Path(os.environ.get("CERTS", Path.home() / ".rproc"))
    credentials = grpc.ssl_channel_credentials(
        root_certificates=(certs / "ca.crt").read_bytes(),
        private_key=(certs / "tls.key").read_bytes(),
        certificate_chain=(certs / "tls.crt").read_bytes(),
    )
    name = os.environ.get("RELAY_NAME", "operator.remoteprocess.local")
    options = [("grpc.ssl_target_name_override", name), ("grpc.keepalive_time_ms", 20_000)]
    return grpc.secure_channel(os.environ.get("RELAY", "localhost:8443"), credentials, options)


def key(name):
    return process_pb2.ProcessKey(namespace=os.environ.get("NAMESPACE", "default"), name=name)


def list_processes(relay):
    request = relay_pb2.ListRequest(protocol=PROTOCOL, namespace=os.environ.get("NAMESPACE", "default"))
    for process in relay.List(request).processes:
        print(process.process.name, process_pb2.Phase.Name(process.state.phase), process.attempt)


def follow(relay, name, offset):
    """Writes the output until the end; continues where a broken connection ended. Returns the exit code."""
    at, attempt = {1: offset, 2: 0}, 0
    while True:
        request = relay_pb2.WatchOutputRequest(
            protocol=PROTOCOL,
            process=key(name),
            attempt=attempt,
            cursor=process_pb2.Cursor(stdout=at[1], stderr=at[2]),
            follow=True,
        )
        try:
            for frame in relay.WatchOutput(request):
                kind = frame.WhichOneof("frame")
                if kind == "data":
                    out = sys.stdout if frame.data.stream == 1 else sys.stderr
                    out.buffer.write(frame.data.bytes)
                    out.flush()
                    at[frame.data.stream] = frame.data.offset + len(frame.data.bytes)
                elif kind == "gap":
                    # `from` is a keyword of Python.
                    print(f"bytes are missing from offset {getattr(frame.gap, 'from')} on", file=sys.stderr)
                    if frame.gap.HasField("to"):
                        at[frame.gap.stream] = frame.gap.to
                elif kind == "heartbeat" and frame.heartbeat.attempt:
                    attempt = frame.heartbeat.attempt
                elif kind == "exit":
                    # 0: unknown, 1: a code, 2: a signal.
                    return [1, frame.exit.value, 128 + frame.exit.value][frame.exit.outcome]
        except grpc.RpcError as error:
            if error.code() not in RETRY:
                raise
        time.sleep(1)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    verb, rest = sys.argv[1], sys.argv[2:]
    with connect() as channel:
        relay = relay_pb2_grpc.RelayStub(channel)
        if verb == "list":
            list_processes(relay)
        elif verb == "follow":
            sys.exit(follow(relay, rest[0], int(rest[1]) if len(rest) > 1 else 0))
        elif verb == "signal":
            request = relay_pb2.SignalRequest(
                protocol=PROTOCOL, process=key(rest[0]), request_id=str(uuid.uuid4()), number=int(rest[1])
            )
            relay.Signal(request)
        else:
            sys.exit(__doc__)


try:
    main()
except grpc.RpcError as error:
    # The relay says what is wrong: the missing RBAC rule, a process that does not exist, a face that is off.
    sys.exit(f"relay.py: {error.code().name}: {error.details()}")
