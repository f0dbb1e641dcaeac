#!/usr/bin/env python3
"""Sends the same messages by each way to a program, with Locust, and compares what happens. `cargo xtask load` runs it.

    load.py [--messages 100] [--out DIR] [--only http,nats,…] [--traffic FILE] [--shape FILE]

KUBECONFIG, KUBECTL and RPROC_BIN name the cluster and the programs; LOAD_NATS, LOAD_RABBITMQ and LOAD_PUBSUB have the
addresses of the brokers, as pods and this machine reach them. The exit code is 1 if a message was lost or doubled.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "dev"))
# The checkout stays as it is.
sys.dont_write_bytecode = True
import packages

PACKAGES = packages.folder("locust", HERE / "requirements.txt")
sys.path.insert(0, str(PACKAGES))
import cluster
import machine
import relay
import report
import summary
import traffic
import ways

# Seconds without messages: before the first way, to learn what the parts use then, and before each, until the cluster has
# cleaned up after the one before.
IDLE, SETTLE = 10, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100, help="how many messages each way gets; gRPC gets 20 times as many")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the reports")
    parser.add_argument("--only", type=lambda text: text.split(","), help="only these ways")
    parser.add_argument("--traffic", type=pathlib.Path, default=HERE / "traffic.json", help="file with the messages")
    parser.add_argument("--shape", type=pathlib.Path, default=HERE / "shape.json", help="file with the phases of the load")
    args = parser.parse_args()
    names = [way.name for way in ways.ALL]
    if unknown := set(args.only or ()) - set(names):
        sys.exit(f"load.py: there is no way {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    try:
        phases = traffic.phases(traffic.read(args.shape))
        listed = traffic.read(args.traffic)
        traffic.divide(len(traffic.messages(listed, args.messages)), phases)
        args.out.mkdir(parents=True, exist_ok=True)
        outcome = measure(args, phases, listed)
    except (traffic.Refused, cluster.Failed, OSError) as error:
        sys.exit(f"load.py: {error}")
    report.write(args.out, outcome)
    print(report.markdown(outcome))
    print(f"written to {args.out}: load.md, load.json, load.svg, and Locust's own report of each way")
    if any(way["faults"]["lost"] or way["faults"]["doubled"] for way in outcome["ways"]):
        sys.exit("load.py: messages were lost or doubled")


def measure(args: argparse.Namespace, phases: list[traffic.Phase], listed) -> dict:
    """Runs the ways in turn."""
    outcome = {"messages": args.messages, "begin": time.time(), "loadAverage": machine.load_average(), "ways": [], "leftOut": []}
    outcome["mostRunning"] = max(phase.users for phase in phases)
    with machine.Watch() as watch:
        time.sleep(IDLE)
    moments = watch.usage.moments
    used = watch.usage.between(moments[0], moments[-1])
    at_rest = {part: seconds / (moments[-1] - moments[0]) for part, seconds in used.items()}
    with tempfile.TemporaryDirectory(prefix="rproc-load-") as folder:
        certificates, stubs = pathlib.Path(folder, "certificates"), pathlib.Path(folder, "stubs")
        stubs.mkdir()
        relay.generate(stubs)
        name = cluster.login(str(certificates))
        at = {"address": cluster.relay(), "name": name, "certificates": str(certificates), "stubs": str(stubs)}
        for way in ways.ALL:
            if args.only and way.name not in args.only:
                continue
            if way.address() is None:
                outcome["leftOut"].append(way.title)
                print(f"{way.title}: left out, there is no broker", file=sys.stderr, flush=True)
                continue
            ids = {message.id for message in traffic.messages(listed, count(way, args))}
            print(f"{way.title}: {len(ids)} messages", file=sys.stderr, flush=True)
            outcome["ways"].append(one(way, args, outcome["mostRunning"], phases, ids, at, at_rest, pathlib.Path(folder)))
    outcome["seconds"] = time.time() - outcome["begin"]
    return outcome


def count(way: ways.Way, args: argparse.Namespace) -> int:
    """How many messages the way gets."""
    return min(args.messages * way.factor, traffic.MESSAGES)


def one(way: ways.Way, args, most: int, phases, ids: set[str], at: dict, at_rest: dict, folder: pathlib.Path) -> dict:
    """Runs one way, and returns its figures; `at_rest` has the processors that each part uses without messages."""
    begin = time.time()
    with cluster.Namespace(way.name) as namespace:
        with way.ready(namespace, most, at) as target, machine.Watch() as watch:
            time.sleep(SETTLE)
            run = locust(way, args, target, folder)
        reader = relay.Relay(at, namespace.name)
        starts, unread = cluster.journal(namespace, reader, list(way.selector))
        reader.channel.close()
    records = run["records"]
    results = {record["id"]: set(record["results"]) for record in records} | {id: set(of) for id, of in run["strays"].items()}
    measured = {phase.name for phase in phases if phase.is_measured}
    found = {"name": way.name, "title": way.title, "seconds": time.time() - begin, "complaints": run["complaints"] + unread}
    found["faults"] = summary.faults(ids, starts, results)
    found["phases"] = [
        figures(phase.name, [record for record in records if record["phase"] == phase.name], watch.usage, at_rest)
        for phase in phases
        if phase.name in measured
    ]
    found["records"] = [record for record in records if record["phase"] in measured]
    for complaint in found["complaints"]:
        print(f"    {complaint}", file=sys.stderr)
    return found


def figures(name: str, records: list[dict], usage: machine.Usage, at_rest: dict) -> dict:
    """The figures of a phase, with the CPU time of each part for a message, in seconds, above what it uses without messages."""
    found = {"phase": name, **summary.of_phase(records)}
    ends = [record["result"] for record in records if record["result"] is not None]
    found["cpuPerMessage"] = {}
    if ends:
        begin, end = min(record["sent"] for record in records), max(ends)
        used = usage.between(begin, end)
        found["cpuPerMessage"] = {part: (used[part] - at_rest[part] * (end - begin)) / len(records) for part in used}
    return found


def locust(way: ways.Way, args, target: dict, folder: pathlib.Path) -> dict:
    """Runs Locust with the users of the way, and returns what they noted."""
    config, out = folder / f"{way.name}.config.json", folder / f"{way.name}.json"
    told = {"way": way.name, "messages": count(way, args), "at": target, "out": str(out)}
    told |= {"traffic": str(args.traffic.resolve()), "shape": str(args.shape.resolve())}
    config.write_text(json.dumps(told))
    environment = os.environ | {"PYTHONPATH": str(PACKAGES), "LOAD_RUN": str(config), "PYTHONDONTWRITEBYTECODE": "1"}
    log = args.out / f"{way.name}.log"
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless", "--only-summary"]
    command += ["--exit-code-on-error", "0", "--stop-timeout", "5", "--html", str(args.out / f"{way.name}.html"), way.user]
    with open(log, "w") as file:
        done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    if done.returncode != 0 or not out.exists():
        raise cluster.Failed(f"Locust ended with {done.returncode}; its log, {log}, ends with:\n{log.read_text()[-2000:]}")
    return json.loads(out.read_text())


if __name__ == "__main__":
    main()
