"""CPU time of the parts of the system on this machine, from /proc, as time passes."""

import bisect
import os
import pathlib
import threading
import time

TICKS = os.sysconf("SC_CLK_TCK")
EVERY = 0.5
# The part of a long-lived program. Programs that end take their CPU time with them: those of pods count in `all pods` only.
PARTS = {
    "bridge": "bridge",
    "operator": "operator",
    "kube-apiserver": "API server",
    "etcd": "etcd",
    "kubelet": "kubelet and containerd",
    "containerd": "kubelet and containerd",
    "nats-server": "broker",
    "beam.smp": "broker",
    # Between pods and the emulator of Pub/Sub.
    "socat": "broker",
}
# Everything in pods, also what has ended: operator, bridge, agents, entrypoints and programs.
PODS = "all pods"
COLUMNS = ("bridge", "operator", "API server", "etcd", "kubelet and containerd", "broker", PODS)
# The control group of all pods of the development cluster: version 1 in nanoseconds, version 2 in microseconds.
GROUP = "remoteprocess-dev/kubepods"
GROUP_FILES = (("cpuacct", "cpuacct.usage", 1e9), ("", "cpu.stat", 1e6))


def part_of(arguments: list[str], name: str) -> str | None:
    """The part to which a process belongs, by its command line and the name that the kernel has for it."""
    program = arguments[0].rsplit("/", 1)[-1] if arguments else name
    if program == "java" and any("pubsub" in argument for argument in arguments):
        return "broker"
    return PARTS.get(program) or PARTS.get(name)


def times(stat: str) -> tuple[str, float, str]:
    """Name, CPU seconds and start time of a process, from its `stat` (proc(5), fields 2, 14, 15 and 22)."""
    head, rest = stat.rsplit(")", 1)
    fields = rest.split()
    return head.split("(", 1)[1], (int(fields[11]) + int(fields[12])) / TICKS, fields[19]


def group_seconds(root: pathlib.Path = pathlib.Path("/sys/fs/cgroup")) -> float | None:
    """CPU seconds of all pods since the cluster was made; none if their control group is not there."""
    for controller, name, unit in GROUP_FILES:
        file = root / controller / GROUP / name
        if file.exists():
            # The first number: of the whole file, or of its first line, `usage_usec N`.
            return int(file.read_text().splitlines()[0].split()[-1]) / unit
    return None


class Usage:
    """CPU seconds of each part since the first sample. The usage of a process after the last sample that saw it is missing."""

    def __init__(self):
        self.moments: list[float] = []
        self.samples: list[dict[str, float]] = []
        self._last: dict[tuple[str, str], float] = {}
        self._sums: dict[str, float] = {}

    def add(self, moment: float, pods: float | None, processes: dict[tuple[str, str], tuple[str | None, float]]) -> None:
        """Takes one sample: CPU seconds of all pods, and by pid and start time, the part of each process and its CPU seconds."""
        for process, (part, seconds) in processes.items():
            # A process that began since the last sample has used all of it in the meantime.
            before = self._last.get(process, 0.0 if self.samples else seconds)
            if part is not None:
                self._sums[part] = self._sums.get(part, 0.0) + seconds - before
        self._last = {process: seconds for process, (_, seconds) in processes.items()}
        self.moments.append(moment)
        self.samples.append(self._sums | {PODS: pods or 0.0})

    def between(self, begin: float, end: float) -> dict[str, float]:
        """CPU seconds of each column from one moment to another, by the samples around them, in proportion."""
        return {part: self._at(end, part) - self._at(begin, part) for part in COLUMNS}

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
        self.usage.add(time.time(), group_seconds(), found)


def load_average() -> float:
    """The number of processes that wanted a processor, over the last minute."""
    return os.getloadavg()[0]
