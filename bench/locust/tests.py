"""Tests of what is pure: `python3 -m unittest tests` in this folder. They need no packages and no cluster."""

import json
import pathlib
import random
import tempfile
import threading
import unittest

import cluster
import machine
import nats
import report
import summary
import traffic

HERE = pathlib.Path(__file__).parent


def shape(*parts: dict) -> list[traffic.Phase]:
    return traffic.phases({"phases": [{"name": f"p{number}", "users": 1, **part} for number, part in enumerate(parts)]})


class Traffic(unittest.TestCase):
    def test_the_files_of_this_folder_are_read(self):
        messages = traffic.messages(traffic.read(HERE / "traffic.json"), 12)
        self.assertEqual(len({message.id for message in messages}), 12)
        self.assertEqual(messages[0].payload, messages[5].payload)
        self.assertNotIn("\n", "".join(message.payload for message in messages))
        phases = traffic.phases(traffic.read(HERE / "shape.json"))
        self.assertEqual([phase.waits for phase in phases], [True, True, False])
        self.assertEqual(traffic.divide(100, phases), [3, 33, 64])

    def test_files_that_say_something_else_are_refused(self):
        for value in (
            [],
            {},
            {"messages": []},
            {"messages": [{"id": "a"}]},
            {"messages": [{"id": "a b", "payload": 1}]},
            {"messages": [{"id": "a\n", "payload": 1}]},
            {"messages": [{"id": "ä", "payload": 1}]},
            {"messages": [{"id": "a" * 600, "payload": 1}]},
            {"messages": [{"id": "a", "payload": 1}, {"id": "a", "payload": 2}]},
            {"messages": [{"id": "a", "payload": "x" * (traffic.PAYLOAD_BYTES + 1)}]},
        ):
            with self.assertRaises(traffic.Refused, msg=str(value)[:80]):
                traffic.messages(value, 1)
        good = {"messages": [{"id": "a", "payload": 1}]}
        for count in (0, -1, traffic.MESSAGES + 1):
            with self.assertRaises(traffic.Refused):
                traffic.messages(good, count)
        for part in (
            {"share": 0},
            {"share": "1"},
            {"share": True},
            {"share": float("nan")},
            {"share": 1, "users": 0},
            {"share": 1, "users": 1.5},
            {"share": 1, "spawnRate": 0},
            {"share": 1, "waits": 1},
            {"share": 1, "name": "a|b"},
            {"share": 1, "wait": True},
        ):
            with self.assertRaises(traffic.Refused, msg=str(part)):
                shape(part)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "file")
            for text in ("{", "[" * 100_000):
                path.write_text(text)
                with self.assertRaises(traffic.Refused):
                    traffic.read(path)

    def test_each_message_has_one_phase(self):
        for seed in range(200):
            chance = random.Random(seed)
            phases = shape(*({"share": chance.choice([0.001, 1, 7, 1000])} for _ in range(chance.randint(1, 6))))
            count = chance.randint(len(phases), 300)
            sizes = traffic.divide(count, phases)
            self.assertEqual(sum(sizes), count)
            self.assertGreaterEqual(min(sizes), 1)
        with self.assertRaises(traffic.Refused):
            traffic.divide(1, shape({"share": 1}, {"share": 1}))

    def test_each_message_goes_to_one_user_whatever_their_number(self):
        messages = traffic.messages({"messages": [{"id": "a", "payload": 1}]}, 500)
        for users in (1, 3, 16):
            deal = traffic.Deal(messages, shape({"share": 1}, {"share": 2}))
            taken: list[list[str]] = [[] for _ in range(users)]

            def take(own: list[str]) -> None:
                for phase in (0, 1):
                    while message := deal.take(phase):
                        own.append(message.id)

            threads = [threading.Thread(target=take, args=[own]) for own in taken]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(sorted(sum(taken, [])), sorted(message.id for message in messages))
            self.assertIsNone(deal.take(0))


class Summary(unittest.TestCase):
    def test_percentiles_are_values_that_were_measured(self):
        values = [float(value) for value in range(1, 101)]
        random.Random(1).shuffle(values)
        self.assertEqual(summary.percentiles(values), {"p50": 50.0, "p95": 95.0, "p99": 99.0})
        self.assertEqual(summary.percentiles([3.0]), {"p50": 3.0, "p95": 3.0, "p99": 3.0})
        self.assertEqual(summary.percentiles([1.0, 2.0]), {"p50": 1.0, "p95": 2.0, "p99": 2.0})
        self.assertEqual(summary.percentiles([]), {"p50": None, "p95": None, "p99": None})

    def test_what_is_lost_or_doubled_is_counted(self):
        once = {"a": 1, "b": 1}, {"a": {"x"}, "b": {"y"}}
        counted = lambda starts, results: tuple(summary.faults({"a", "b"}, starts, results)[key] for key in ("lost", "doubled"))
        self.assertEqual(counted(*once), (0, 0))
        self.assertEqual(counted({"a": 1}, once[1]), (1, 0), "a program that did not start")
        self.assertEqual(counted(once[0], {"a": {"x"}, "b": set()}), (1, 0), "a result that did not come")
        self.assertEqual(counted({}, {}), (2, 0))
        self.assertEqual(counted({"a": 3, "b": 1}, once[1]), (0, 2), "a program that started three times")
        self.assertEqual(counted(once[0], {"a": {"x", "z"}, "b": {"y"}}), (0, 1), "two results of one message")
        self.assertEqual(counted({**once[0], "c": 1}, once[1]), (0, 1), "what nobody sent")

    def test_a_phase_has_rates_and_times_from_the_moment_of_sending(self):
        records = [
            {"sent": 10.0, "accepted": 10.1, "started": 11.0, "result": 11.5},
            {"sent": 11.0, "accepted": 12.0, "started": 12.0, "result": 15.0, "refusals": 2},
            {"sent": 12.0, "accepted": None, "started": None, "result": None},
        ]
        found = summary.of_phase(records)
        self.assertEqual((found["messages"], found["refusals"]), (3, 2))
        self.assertEqual((found["acceptedPerSecond"], found["resultsPerSecond"]), (1.0, 0.4))
        self.assertEqual((found["toStart"]["p50"], found["toResult"]["p99"]), (1.0, 4.0))
        self.assertEqual(summary.of_phase([])["toStart"]["p50"], None)

    def test_starts_are_read_from_what_programs_print(self):
        self.assertEqual(cluster.starts(b"1796038161.35 order-1.0\n1796038162.00 order-2.0\n"), ["order-1.0", "order-2.0"])
        self.assertEqual(cluster.starts(b""), [])

    def test_the_journal_has_all_attempts_and_says_what_it_cannot_read(self):
        class Reader:
            class grpc:
                RpcError = ConnectionError

            def output(self, name, attempt):
                if (name, attempt) == ("b", 1):
                    raise RuntimeError("a gap")
                return [f"1.5 {name}\n".encode()]

        class Two(cluster.Namespace):
            def processes(self, *selector):
                named = (("a", {"attempt": 2}), ("b", {"attempt": 2}), ("c", {}))
                return [{"metadata": {"name": name}, "status": status} for name, status in named]

        counts, complaints = cluster.journal(Two("way"), Reader(), [])
        self.assertEqual(counts, {"a": 2, "b": 1})
        self.assertEqual(complaints, ["output of b, attempt 1: a gap"])


class Machine(unittest.TestCase):
    def test_processes_have_a_part_by_their_program(self):
        for arguments, name, part in (
            (["/bridge", "--namespace=a"], "bridge", "bridge"),
            (["/usr/lib/erlang/erts-13.1.5/bin/beam.smp", "-W"], "beam.smp", "broker"),
            (["/usr/bin/java", "-jar", "/x/cloud-pubsub-emulator.jar"], "java", "broker"),
            (["/usr/bin/java", "-jar", "/x/other.jar"], "java", None),
            (["python3", "-m", "locust"], "python3", None),
            ([], "kthreadd", None),
        ):
            self.assertEqual(machine.part_of(arguments, name), part, arguments)

    def test_proc_is_read(self):
        stat = "12 (a) b) S 1 1 1 0 -1 0 0 0 0 0 150 50 0 0 20 0 1 0 777 0"
        self.assertEqual(machine.times(stat), ("a) b", 200 / machine.TICKS, "777"))

    def test_the_control_group_of_pods_is_read_in_both_versions(self):
        for controller, name, text in (("cpuacct", "cpuacct.usage", "1500000000\n"), ("", "cpu.stat", "usage_usec 1500000\nuser_usec 1\n")):
            with tempfile.TemporaryDirectory() as folder:
                root = pathlib.Path(folder)
                self.assertIsNone(machine.group_seconds(root))
                (root / controller / machine.GROUP).mkdir(parents=True)
                (root / controller / machine.GROUP / name).write_text(text)
                self.assertEqual(machine.group_seconds(root), 1.5)

    def test_usage_counts_what_begins_and_forgets_nothing_that_ends(self):
        usage, bridge, old = machine.Usage(), ("7", "1"), ("8", "1")
        usage.add(0.0, 100.0, {old: ("etcd", 50.0)})
        usage.add(1.0, 102.0, {old: ("etcd", 50.5), bridge: ("bridge", 0.25), ("9", "1"): (None, 1.0)})
        usage.add(2.0, 103.0, {bridge: ("bridge", 0.5), ("7", "2"): ("bridge", 0.125)})
        used = usage.between(0.0, 2.0)
        self.assertEqual((used["etcd"], used["bridge"], used["operator"]), (0.5, 0.625, 0.0))
        self.assertEqual(used[machine.PODS], 3.0)
        self.assertEqual(usage.between(0.5, 1.0)["bridge"], 0.125, "in proportion")

    def test_this_machine_is_watched(self):
        with machine.Watch() as watch:
            pass
        self.assertGreaterEqual(watch.usage.between(watch.usage.moments[0], watch.usage.moments[-1])[machine.PODS], 0.0)
        self.assertGreaterEqual(len(watch.usage.samples), 2)


class Report(unittest.TestCase):
    def test_figures_have_three_digits(self):
        numbers = [report.number(value) for value in (None, 0, 0.000_01, 0.012_34, 0.5, 1.234, 12.34, 1234.5, -2.5)]
        self.assertEqual(numbers, ["–", "0", "0", "0.0123", "0.500", "1.23", "12.3", "1234", "-2.50"])

    def test_the_table_has_a_row_for_each_way_and_phase(self):
        phase = {"phase": "alone", **summary.of_phase([{"sent": 1.0, "accepted": 1.5, "started": 2.0, "result": 3.0}])}
        phase["cpuPerMessage"] = {part: 0.001 for part in machine.COLUMNS}
        way = {"title": "NATS", "faults": {"lost": 0, "doubled": 2}, "phases": [phase, {**phase, "cpuPerMessage": {}}]}
        outcome = {"messages": 1, "mostRunning": 4, "begin": 0, "seconds": 9, "loadAverage": 0.5, "leftOut": ["Pub/Sub"]}
        text = report.markdown({**outcome, "ways": [way, way]})
        lines = [line for line in text.splitlines() if line.startswith("| NATS")]
        self.assertEqual(len(lines), 8)
        self.assertEqual(len({line.count("|") for line in lines[:4]}), 1)
        self.assertTrue(lines[0].endswith("| 0 | 2 |"), lines[0])
        self.assertIn("Left out, because there is no broker on this machine: Pub/Sub.", text)
        json.dumps(outcome)


class Protocol(unittest.TestCase):
    def test_a_message_of_nats_is_taken_apart(self):
        class Spoken(nats.Connection):
            def __init__(self, data: bytes):
                self._data, self._written = [data], b""
                import io

                self._file = io.BytesIO(data)

            def _write(self, data: bytes) -> None:
                self._written += data

        spoken = Spoken(b"PING\r\nMSG a 1 5\r\nhe\r\no\r\nHMSG b 1 c 12 14\r\nNATS/1.0\r\n\r\nok\r\n")
        self.assertEqual(spoken._message(), ("a", b"he\r\no"))
        self.assertEqual(spoken._message(), ("b", b"ok"))
        self.assertEqual(spoken._written, b"PONG\r\n")
        for broken in (b"", b"MSG a 1 5\r\nhe", b"MSG a 1 99999999\r\n", b"-ERR 'no'\r\n"):
            with self.assertRaises(nats.Unavailable):
                Spoken(broken)._message()


if __name__ == "__main__":
    unittest.main()
