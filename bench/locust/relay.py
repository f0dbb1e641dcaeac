"""The relay by gRPC: stubs from the .proto files of this repository, input and output of processes."""

import pathlib
import sys
from importlib import resources

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
PROTOCOL = 1
STDOUT = 1
# Most bytes of one message of input.
INPUT_BYTES = 64 << 10


def generate(folder: pathlib.Path) -> None:
    """Compiles the .proto files into a folder."""
    from grpc_tools import protoc

    files = [str(path.relative_to(PROTO)) for path in sorted(PROTO.glob("remoteprocess/v1/*.proto"))]
    includes = [f"-I{PROTO}", f"-I{resources.files('grpc_tools') / '_proto'}"]
    if protoc.main(["protoc", *includes, f"--python_out={folder}", f"--grpc_python_out={folder}", *files]) != 0:
        raise RuntimeError("the .proto files do not compile")


class Relay:
    """A connection to the relay, with the certificate that `rproc login --output-dir` wrote.

    `at` has `address` (host:port), `name` (of its certificate), `certificates` and `stubs` (folders).
    """

    def __init__(self, at: dict, namespace: str):
        if at["stubs"] not in sys.path:
            sys.path.insert(0, at["stubs"])
        import grpc
        from remoteprocess.v1 import process_pb2, relay_pb2, relay_pb2_grpc

        self.grpc, self.messages, self.requests = grpc, process_pb2, relay_pb2
        self.namespace = namespace
        folder = pathlib.Path(at["certificates"])
        credentials = grpc.ssl_channel_credentials(
            root_certificates=(folder / "ca.crt").read_bytes(),
            private_key=(folder / "tls.key").read_bytes(),
            certificate_chain=(folder / "tls.crt").read_bytes(),
        )
        # Each user has a connection of its own.
        options = [("grpc.ssl_target_name_override", at["name"]), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.secure_channel(at["address"], credentials, options)
        self.stub = relay_pb2_grpc.RelayStub(self.channel)

    def key(self, name: str):
        return self.messages.ProcessKey(namespace=self.namespace, name=name)

    def output(self, name: str, attempt: int = 0, follow: bool = False, limit: float = 60):
        """The bytes of stdout in order, until the end of the process, or until what is there now. A gap is an error."""
        request = self.requests.WatchOutputRequest(
            protocol=PROTOCOL,
            process=self.key(name),
            attempt=attempt,
            stream=STDOUT,
            cursor=self.messages.Cursor(),
            follow=follow,
        )
        for frame in self.stub.WatchOutput(request, timeout=limit):
            kind = frame.WhichOneof("frame")
            if kind == "data":
                yield frame.data.bytes
            elif kind == "gap":
                raise RuntimeError(f"the output of {name} has a gap")

    def open(self, name: str, session: str, resume: bool):
        """The first message of an `Attach`."""
        opening = self.messages.AttachOpen(protocol=PROTOCOL, process=self.key(name), session=session, resume=resume)
        return self.messages.AttachRequest(open=opening)

    def input(self, offset: int, data: bytes) -> list:
        """The messages of an `Attach` with these bytes for the program."""
        begins = range(0, len(data), INPUT_BYTES)
        pieces = [self.messages.Input(offset=offset + begin, bytes=data[begin : begin + INPUT_BYTES]) for begin in begins]
        return [self.messages.AttachRequest(input=piece) for piece in pieces]
