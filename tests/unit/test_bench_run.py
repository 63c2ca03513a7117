"""How a benchmark treats its contenders: turns, failures, interruptions, and whoever it has to end."""

import json
import threading
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import report
from benchmarks.bench import SLOW_S, Bench
from benchmarks.clients import burst
from benchmarks.contender import Answer, Burst, ContenderError, Machine, Started, environment
from benchmarks.measure import Memory, family, machine_facts, memory
from benchmarks.records import Records
from benchmarks.workloads import clip, several


class Clips:
    """The names of clips, without audio."""

    notes = ()

    def dense(self, length_s, number=0):
        return Path(f"{length_s}-{number}.wav")


class Fake:
    """A contender that answers at once, says what it was asked, and fails when it is told to."""

    precision = "float32"

    def __init__(self, name, *, missing=None, seconds=0.5, fails_at=None):
        self.name = name
        self.missing = missing
        self.seconds = seconds
        self.fails_at = fails_at
        self.asked = []
        self.running = False

    def start(self, first):
        self.running = True
        return Started(1.0, 2.0)

    def one(self, clip):
        self.asked.append(clip)
        if self.fails_at is not None and len(self.asked) >= self.fails_at:
            raise ContenderError("it fell over")
        return Answer(self.seconds, "text")

    def many(self, clips, clients):
        if clients > 1:
            raise NotImplementedError
        return Burst(1.0, (0.1,) * len(clips))

    def processes(self):
        return []

    def stop(self):
        self.running = False


@pytest.fixture
def make_bench(tmp_path, monkeypatch):
    """Make a run of some fakes."""
    monkeypatch.setattr(clip, "length_s", lambda file: 5.0)
    monkeypatch.setattr(several, "length_s", lambda file: 5.0)

    def make(*contenders, rounds=2):
        machine = Machine(tmp_path, tmp_path, "cpu", 1, tmp_path, tmp_path)
        return Bench(machine, list(contenders), Clips(), Records(), rounds=rounds)

    return make


def test_contenders_take_turns_and_the_first_changes(make_bench):
    """Nobody always follows the same neighbour."""
    order = []
    bench = make_bench(Fake("a"), Fake("b"))

    def work(contender, number):
        order.append((number, contender.name))
        return 0.0

    bench.rounds_of("w", bench.contenders, 2, work)
    assert order == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]


def test_a_slow_contender_has_one_round(make_bench):
    """The others do not wait for it all day."""
    seen = []
    bench = make_bench(Fake("slow"), Fake("quick"))

    def work(contender, number):
        seen.append(contender.name)
        return SLOW_S + 1 if contender.name == "slow" else 0.0

    bench.rounds_of("w", bench.contenders, 3, work)
    assert sorted(seen) == ["quick", "quick", "quick", "slow"]


def test_a_contender_that_fails_is_ended_and_the_others_go_on(make_bench):
    """Its sentence becomes its row."""
    bad, good = Fake("stock", fails_at=5), Fake("ours-float32")
    bench = make_bench(bad, good)
    clip.run(bench)
    (table,) = clip.tables(bench.records)
    assert not bad.running
    assert good.running
    assert ("stock", "none") in [row[:2] for row in table.rows]
    assert "stock: not measured: it fell over" in table.notes
    assert len(bench.records.get("clip", "ours-float32", "15 s").values) == 2


def test_a_contender_that_is_not_installed_is_not_started(make_bench):
    """Its reason becomes its row."""
    absent = Fake("stock", missing="it is not installed: make bench-setup")
    bench = make_bench(absent, Fake("ours-float32"))
    clip.run(bench)
    assert absent.asked == []
    assert "stock: not measured: it is not installed: make bench-setup" in clip.tables(bench.records)[0].notes


def test_who_takes_one_at_a_time_has_a_row_for_one_client_only(make_bench):
    """An in-process peer is no server."""
    bench = make_bench(Fake("stock"))
    several.run(bench)
    assert bench.records.get("clients", "stock", f"1 {several.RATE}") is not None
    assert bench.records.get("clients", "stock", f"8 {several.RATE}") is None
    assert bench.records.failed("clients") == []


def test_an_interrupted_run_ends_every_contender(make_bench):
    """Also those that a workload did not touch."""
    one, two = Fake("a"), Fake("b")
    bench = make_bench(one, two)

    class Interrupted:
        NAME = "interrupted"

        def run(self, bench):
            bench.warm(self.NAME, bench.contenders)
            raise KeyboardInterrupt

    assert program._run(bench, [Interrupted()], lambda: None) is True
    assert not one.running
    assert not two.running


def test_a_workload_that_breaks_costs_its_own_tables(make_bench):
    """And the next one runs."""
    ran = []

    class Broken:
        NAME = "broken"

        def run(self, bench):
            raise ZeroDivisionError("by design")

    class Next:
        NAME = "next"

        def run(self, bench):
            ran.append(True)

    bench = make_bench()
    assert program._run(bench, [Broken(), Next()], lambda: None) is False
    assert ran == [True]
    (failure,) = bench.records.failed("broken")
    assert failure.sentence == "ZeroDivisionError: by design"


def test_each_client_of_a_burst_asks_again_when_it_is_answered():
    """Every clip once, errors noted beside the answers, every client closed."""
    lock, open_clients, asked, closed = threading.Lock(), [], [], []

    class Client:
        def one(self, clip):
            with lock:
                asked.append(clip)
            if clip == "bad":
                raise ValueError("no")

        def close(self):
            closed.append(self)

    def open_client():
        open_clients.append(Client())
        return open_clients[-1]

    found = burst(["a", "b", "bad", "c"], 2, open_client)
    assert sorted(asked) == ["a", "b", "bad", "c"]
    assert len(found.latencies_s) == 3
    assert found.errors == ("ValueError: no",)
    assert closed == open_clients or sorted(map(id, closed)) == sorted(map(id, open_clients))


def test_nobody_inherits_variables_that_choose_threads(monkeypatch):
    """OMP_NUM_THREADS of the caller's shell would give one contender fewer than another."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    found = environment(EXTRA="yes")
    assert "OMP_NUM_THREADS" not in found
    assert "OPENBLAS_NUM_THREADS" not in found
    assert found["EXTRA"] == "yes"


def test_memory_and_family_of_a_process_that_is_gone_are_nothing():
    """A contender may have crashed."""
    gone = 2**22 + 1
    assert family(gone) == []
    assert memory([gone]) == Memory(0, 0, 0, 0, 0)


def test_an_earlier_run_can_be_shown_again(make_bench):
    """The document holds all that the page needs, and every sample."""
    bench = make_bench(Fake("stock"), Fake("ours-float32"))
    clip.run(bench)
    load = {"load_average": [0.1, 0.1, 0.1], "cpu_pressure_60s_percent": None, "available_gib": 1.0}
    about = {
        "machine": machine_facts(Path("/nonexistent")),
        "device": "cpu",
        "checkpoint": "random",
        "rounds": 2,
        "load_at_start": load,
        "load_at_end": load,
        "minutes": 1.0,
        "notes": ["A note."],
        "interrupted": True,
    }
    written = json.loads(report.as_json(report.document(bench.records, [clip], about)))
    page = "\n".join(report.pages(written, [clip, several]))
    assert "A note." in page
    assert "INTERRUPTED" in page
    assert "One warm request" in page
    assert "by several clients" not in page
    assert Records.from_json(written) == bench.records
    assert written["targets"][0]["verdict"] == "NOT HELD"
