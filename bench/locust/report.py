"""The report: two tables in Markdown, all figures as JSON, and a plot. Times are in seconds."""

import json
import math
import pathlib
import time

import machine


def markdown(outcome: dict) -> str:
    """The tables."""
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(outcome["begin"]))
    head = (
        f"{outcome['messages']} messages by each way (gRPC: 20 times as many), at most {outcome['mostRunning']} programs at once; {when}, "
        f"{outcome['seconds']:.0f} s in all, load average {outcome['loadAverage']:.1f} before.\n"
    )
    if outcome["leftOut"]:
        head += f"Left out, because there is no broker on this machine: {', '.join(outcome['leftOut'])}.\n"
    return "\n".join((head, table(TIMES, rows(outcome, times)), table(CPU, rows(outcome, cpu))))


TIMES = ("way", "phase", "messages", "accepted per s", "results per s")
TIMES += ("to accepted, s: p50", "p95", "p99", "to start, s: p50", "p95", "p99", "to result, s: p50", "p95", "p99")
TIMES += ("lost", "doubled")
CPU = ("way", "phase", *(f"CPU ms per message: {machine.COLUMNS[0]}", *machine.COLUMNS[1:]))


def rows(outcome: dict, cells) -> list[list[str]]:
    return [[way["title"], phase["phase"], *cells(way, phase)] for way in outcome["ways"] for phase in way["phases"]]


def times(way: dict, phase: dict) -> list[str]:
    found = [str(phase["messages"]), number(phase["acceptedPerSecond"]), number(phase["resultsPerSecond"])]
    for span in ("toAccepted", "toStart", "toResult"):
        found += [number(value) for value in phase[span].values()]
    return [*found, str(way["faults"]["lost"]), str(way["faults"]["doubled"])]


def cpu(_way: dict, phase: dict) -> list[str]:
    used = phase["cpuPerMessage"]
    return [number(used[part] * 1000) if part in used else "–" for part in machine.COLUMNS]


def number(value: float | None) -> str:
    """A figure with three digits that count; a dash for none."""
    if value is None:
        return "–"
    if abs(value) < 5e-5:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(4, max(0, digits))}f}"


def table(head: tuple, lines: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines)) + "\n"


def write(folder: pathlib.Path, outcome: dict) -> None:
    """Writes the report into a folder."""
    (folder / "load.md").write_text(markdown(outcome))
    (folder / "load.json").write_text(json.dumps(outcome, indent=1) + "\n")
    plot(folder / "load.svg", outcome)


def plot(path: pathlib.Path, outcome: dict) -> None:
    """For each phase: which share of the messages had its program started, or its result, after which time."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(phase["phase"] for way in outcome["ways"] for phase in way["phases"]))
    figure, axes = pyplot.subplots(len(names), 2, figsize=(11, 4 * len(names)), squeeze=False, sharey=True)
    for row, name in zip(axes, names):
        for axis, (event, title) in zip(row, (("started", "start of the program"), ("result", "result"))):
            for way in outcome["ways"]:
                done = [record for record in way["records"] if record["phase"] == name and record[event] is not None]
                spans = sorted(record[event] - record["sent"] for record in done)
                shares = [(index + 1) / len(spans) for index in range(len(spans))]
                axis.step(spans, shares, where="post", label=way["title"])
            axis.set(title=f"{name}: message to {title}", xlabel="seconds", xscale="log", ylim=(0, 1.02))
            axis.grid(True, alpha=0.3)
    axes[0][0].set_ylabel("share of the messages")
    axes[0][0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path)
