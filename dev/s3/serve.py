#!/usr/bin/env python3
"""An S3 server for tests: moto, with the versions of requirements.txt, in the foreground.

    python3 dev/s3/serve.py [--host 127.0.0.1] [--port 0] [--bucket archive] [--journal FILE]

Prints `listening on http://HOST:PORT` once it serves and the bucket is there. Any credentials will do. Objects live in its
memory and end with it; with a journal, which holds each change before it is answered, they are there again after any death
(multipart uploads aside: their ids are drawn anew). The packages are kept in the user's cache folder; only the first start needs the network.
"""

import argparse
import io
import os
import pathlib
import pickle
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
# The checkout stays as it is.
sys.dont_write_bytecode = True
import packages

REQUIREMENTS = pathlib.Path(__file__).with_name("requirements.txt")


class Journal:
    """Passes requests on to an application; writes each that changes something down first, and repeats them at the start."""

    def __init__(self, path: str, application):
        self.application = application
        self.lock = threading.Lock()
        self.file = open(path, "a+b")
        self.file.seek(0)
        whole = 0
        try:
            while True:
                environ, body = pickle.load(self.file)
                whole = self.file.tell()
                errors = {"wsgi.input": io.BytesIO(body), "wsgi.errors": sys.stderr}
                for _ in application(environ | errors, lambda *_: None):
                    pass
        except (EOFError, pickle.UnpicklingError):
            # The last one may be cut off: it was never answered.
            self.file.truncate(whole)

    def __call__(self, environ, start_response):
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self.application(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        plain = {key: value for key, value in environ.items() if isinstance(value, (str, tuple, bool))}
        with self.lock:
            pickle.dump((plain, body), self.file)
            self.file.flush()
            os.fsync(self.file.fileno())
            return list(self.application(environ | {"wsgi.input": io.BytesIO(body)}, start_response))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0: any that is free")
    parser.add_argument("--bucket", default="archive", help="bucket that is made at the start")
    parser.add_argument("--journal", help="file that keeps the changes, so that a further start has them")
    args = parser.parse_args()
    sys.path.insert(0, str(packages.folder("s3", REQUIREMENTS)))

    import logging

    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import WSGIRequestHandler, make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].create_bucket(args.bucket, "us-east-1")
    dispatcher = DomainDispatcherApplication(create_backend_app)

    def application(environ, start_response):
        # Google's client speaks the same XML, with a token that moto takes for a broken signature.
        if environ.get("HTTP_AUTHORIZATION", "").startswith("Bearer"):
            del environ["HTTP_AUTHORIZATION"]
        return dispatcher(environ, start_response)

    served = Journal(args.journal, application) if args.journal else application
    server = make_server(args.host, args.port, served, threaded=True)
    print(f"listening on http://{args.host}:{server.port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
