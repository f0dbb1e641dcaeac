"""CPU time of the parts of the system on this machine, from /proc, as time passes."""

import bisect
import os
import pathlib
import threading
import time

TICKS = os.sysconf("SC_CLK_TCK")
EVERY = 0.5
# The part of a long-lived program. Programs that end take their CPU time with them: they count in `machine` only.
PARTS = {
    "bridge": "bridge",
    "operator": "operator",
    "kube-apiserver": "API server",
    "etcd": "etcd",
    "kubelet": "kubelet and containerd",
    "containerd": "kubelet and containerd",
    "nats-server": "broker",
    "beam.smp": "broker",
}
# All programs together but the load generator and this program.
MACHINE = "machine"
GENERATOR = "load generator"
COLUMNS = ("bridge", "operator", "API server", "etcd", "kubelet and containerd", "broker", MACHINE)


def part_of(arguments: list[str], name: str) -> str | None:
    """The part to which a process belongs, by its command line and the name that the kernel has for it."""
    program = arguments[0].rsplit("/", 1)[-1] if arguments else name
    if program == "java" and any("pubsub" in argument for argument in arguments):
        return "broker"
    if program.startswith("python") and any(argument == "locust" or argument.endswith("/load.py") for argument in arguments):
        return GENERATOR
    return PARTS.get(program) or PARTS.get(name)


def times(stat: str) -> tuple[str, float, str]:
    """Name, CPU seconds and start time of a process, from its `stat` (proc(5), fields 2, 14, 15 and 22)."""
    head, rest = stat.rsplit(")", 1)
    fields = rest.split()
    return head.split("(", 1)[1], (int(fields[11]) + int(fields[12])) / TICKS, fields[19]


def busy(stat: str) -> float:
    """CPU seconds that the machine has worked, from the first line of /proc/stat: not idle, not waiting for a disk."""
    fields = [int(field) for field in stat.splitlines()[0].split()[1:]]
    # user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user.
    return (sum(fields[:8]) - fields[3] - fields[4] - fields[7]) / TICKS


class Usage:
    """CPU seconds of each part since the first sample. The usage of a process after the last sample that saw it is missing."""

    def __init__(self):
        self.moments: list[float] = []
        self.samples: list[dict[str, float]] = []
        self._last: dict[tuple[str, str], float] = {}
        self._sums: dict[str, float] = {}
        self._busy = None

    def add(self, moment: float, machine: float, processes: dict[tuple[str, str], tuple[str | None, float]]) -> None:
        """Takes one sample: by pid and start time, the part of each process and its CPU seconds."""
        for process, (part, seconds) in processes.items():
            # A process that began since the last sample has used all of it in the meantime.
            before = self._last.get(process, 0.0 if self.samples else seconds)
            if part is not None:
                self._sums[part] = self._sums.get(part, 0.0) + seconds - before
        self._last = {process: seconds for process, (_, seconds) in processes.items()}
        self._sums["all"] = self._sums.get("all", 0.0) + machine - (machine if self._busy is None else self._busy)
        self._busy = machine
        self.moments.append(moment)
        self.samples.append(dict(self._sums))

    def between(self, begin: float, end: float) -> dict[str, float]:
        """CPU seconds of each column from one moment to another, by the samples around them, in proportion."""
        used = {part: self._at(end, part) - self._at(begin, part) for part in (*COLUMNS[:-1], GENERATOR, "all")}
        return {part: used[part] for part in COLUMNS[:-1]} | {MACHINE: used["all"] - used[GENERATOR]}

    def _at(self, moment: float, part: str) -> float:
        after = bisect.bisect_left(self.moments, moment)
        if after == 0 or after == len(self.moments):
            return self.samples[min(after, len(self.samples) - 1)].get(part, 0.0)
        begin, end = self.moments[after - 1], self.moments[after]
        low, high = (self.samples[index].get(part, 0.0) for index in (after - 1, after))
        return low + (high - low) * (moment - begin) / (end - begin)


class Watch:
    """Samples this machine twice a second while the block runs; `usage` has the samples."""

    def __init__(self):
        self.usage = Usage()
        self._known: dict[tuple[str, str], str | None] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._end.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._end.wait(EVERY):
            self._sample()

    def _sample(self) -> None:
        found = {}
        for folder in pathlib.Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                name, seconds, since = times((folder / "stat").read_text())
                process = (folder.name, since)
                # A process that is being started still has the command line of its parent: an unknown one is looked at again.
                if self._known.get(process) is None:
                    arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    self._known[process] = part_of([word for word in arguments if word], name)
                found[process] = (self._known[process], seconds)
            except (OSError, ValueError, IndexError):
                # It has ended.
                continue
        self.usage.add(time.time(), busy(pathlib.Path("/proc/stat").read_text()), found)


def load_average() -> float:
    """The number of processes that wanted a processor, over the last minute."""
    return os.getloadavg()[0]
