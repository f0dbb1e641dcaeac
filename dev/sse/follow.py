#!/usr/bin/env python3
"""Follows the output of a process by server-sent events, with the library launchdarkly-eventsource and its own resuming.

    python3 dev/sse/follow.py --name NAME --cert FILE --key FILE --cacert FILE https://HOST:PORT/v1/…/output?follow=true

Prints one JSON object when the relay has answered 204: the SHA-256 of both streams, the record of the end, the
`Last-Event-ID` of each request, and the number of events. Fails if a byte is missing or comes twice, at any other answer,
and after 100 s.
"""

import argparse
import base64
import hashlib
import json
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
# The checkout stays as it is.
sys.dont_write_bytecode = True
import packages

LIMIT = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="where the output is")
    for flag in ("name", "cert", "key", "cacert"):
        parser.add_argument(f"--{flag}", required=True)
    args = parser.parse_args()
    sys.path.insert(0, str(packages.folder("sse", pathlib.Path(__file__).with_name("requirements.txt"))))
    # Nothing answers in time: the signal ends the program.
    signal.alarm(LIMIT)
    print(json.dumps(follow(args)))


def follow(args: argparse.Namespace) -> dict:
    from ld_eventsource import SSEClient
    from ld_eventsource.config import ConnectStrategy, ErrorStrategy, RetryDelayStrategy
    from ld_eventsource.errors import HTTPContentTypeError, HTTPStatusError
    from urllib3 import PoolManager

    class Remembering(PoolManager):
        """Remembers with which id the library resumes."""

        sent: list = []

        def request(self, method, url, **options):
            self.sent.append(options["headers"].get("Last-Event-ID"))
            return super().request(method, url, **options)

    # A broken connection is what the library resumes; another answer than a stream is the end.
    def judge(error):
        is_answer = isinstance(error, (HTTPContentTypeError, HTTPStatusError))
        return (ErrorStrategy.FAIL if is_answer else ErrorStrategy.CONTINUE, None)

    pool = Remembering(
        cert_file=args.cert, key_file=args.key, ca_certs=args.cacert, server_hostname=args.name, assert_hostname=args.name
    )
    client = SSEClient(
        connect=ConnectStrategy.http(args.url, pool=pool),
        initial_retry_delay=0.05,
        retry_delay_strategy=RetryDelayStrategy.default(backoff_multiplier=1),
        error_strategy=ErrorStrategy.from_lambda(judge),
    )
    streams = {"stdout": [0, hashlib.sha256()], "stderr": [0, hashlib.sha256()]}
    events, end, status = 0, None, None
    try:
        for event in client.events:
            events += 1
            record = json.loads(event.data)
            if end is not None:
                sys.exit(f"a record behind the end: {event.data}")
            if record["type"] == "end":
                end = record
            elif record["type"] == "data":
                stream = streams[record["stream"]]
                if record["offset"] != stream[0]:
                    sys.exit(f"{stream[0]} bytes of {record['stream']}, and then offset {record['offset']}")
                text = record.get("text")
                chunk = base64.b64decode(record["base64"]) if text is None else text.encode()
                stream[0] += len(chunk)
                stream[1].update(chunk)
            elif record["type"] in ("gap", "error"):
                sys.exit(event.data)
    except HTTPStatusError as error:
        status = error.status
    if status != 204:
        sys.exit(f"the last answer was {status}")
    return {
        "sha256": {name: digest.hexdigest() for name, (_, digest) in streams.items()},
        "end": end,
        "lastEventIds": pool.sent,
        "events": events,
        "status": status,
    }


if __name__ == "__main__":
    main()
