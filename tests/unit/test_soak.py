"""The arithmetic of tools/soak, which no daemon has a part in."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from tools.soak.answers import LOST, RIGHT, WRONG, Tally, answer_of, difference
from tools.soak.report import Run, checks, document, growths, slope, tables, verdict
from tools.soak.watch import Sample, look

MIB = 2**20


def samples(count, *, first=100 * MIB, each=0.0, requests=20, at_s=0.0):
    """A process watched for so many seconds, growing by so many bytes with each request."""
    return [
        Sample(at_s + i, i * requests, round(first + i * requests * each), 30, 5) for i in range(1, count + 1)
    ]


def run(**changes):
    """A soak in which all was well."""
    at_rest = {1: Sample(0.0, 0, 100 * MIB, 20, 4), 2: Sample(0.0, 0, 50 * MIB, 6, 1)}
    found = Run(
        seconds=600.0,
        seed=1,
        outcomes={("steady", RIGHT): 9_000, ("steady", "cancelled"): 1_000},
        errors={"cancelled": 1_000},
        latencies_s={"up to 4 s": [0.1, 0.2, 0.3]},
        sentences=(),
        samples={1: samples(600), 2: samples(600, first=50 * MIB)},
        pid=1,
        before=at_rest,
        after=at_rest,
        status={"queue": {"jobs_active": 0}, "connections": 1, "jobs": {"done": 9_000}},
        survived=True,
        exit_status=0,
        tracebacks=0,
        load_cpu_s=60.0,
    )
    return replace(found, **changes)


def failed(found):
    """What did not hold."""
    return [check.what for check in checks(found) if check.held is False]


def test_a_slope_is_that_of_the_line_nearest_to_the_points():
    """Noise around a level is none, and one point says nothing."""
    assert slope([0, 10, 20], [5, 25, 45]) == pytest.approx(2)
    assert slope([0, 1, 2, 3], [1, -1, -1, 1]) == pytest.approx(0)
    assert slope([7], [3]) == 0
    assert slope([7, 7], [3, 4]) == 0


def test_a_quiet_run_is_held():
    """And says so in its last line, its tables and its JSON."""
    found = run()
    assert failed(found) == []
    assert verdict(checks(found)) == "soak: held"
    assert json.loads(json.dumps(document(found)))["held"] is True
    text = "\n".join(table.markdown() for table in tables(found))
    assert "9,000" in text
    assert "cancelled 1,000" in text


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"survived": False, "exit_status": -11}, "no crash"),
        ({"exit_status": 1}, "no crash"),
        ({"tracebacks": 1}, "no crash"),
        ({"outcomes": {("steady", LOST): 1}}, "no lost answer"),
        ({"outcomes": {("svctl", WRONG): 1}}, "no wrong answer"),
        ({"status": {"queue": {"jobs_active": 1}, "connections": 1}}, "nothing left over"),
        ({"status": {"queue": {"jobs_active": 0}, "connections": 2}}, "nothing left over"),
        ({"status": {}}, "nothing left over"),
        ({"broken": ("steady 1: KeyError: 3",)}, "the soak itself works"),
    ],
)
def test_whatever_fails_is_named(changes, what):
    """In the check and in the last line."""
    found = run(**changes)
    assert failed(found) == [what]
    assert verdict(checks(found)) == f"soak: NOT HELD: {what}"


@pytest.mark.parametrize(("each", "held"), [(1_000, True), (1_100, False)])
@pytest.mark.parametrize("pid", [1, 2])
def test_every_process_may_grow_by_less_than_a_kibibyte_a_request(each, held, pid):
    """The daemon's own and each child's, over the requests of the whole daemon."""
    found = run(samples={**run().samples, pid: samples(600, each=each)})
    assert bool(failed(found)) is not held


def test_the_warm_up_does_not_count():
    """A fifth of the run, and as long from the start of a process that came later."""
    warming = [replace(s, rss_bytes=s.rss_bytes + round(s.at_s) * MIB) for s in samples(119)]
    later = [
        replace(s, at_s=s.at_s + 200.0, requests=s.requests + 4_000) for s in warming + samples(300)[119:]
    ]
    found = run(samples={1: warming + samples(600)[119:], 3: later})
    daemon, child = growths(found)
    assert (daemon.name, daemon.slope_bytes) == ("daemon", pytest.approx(0))
    assert (child.name, child.pid, child.slope_bytes) == ("child 1", 3, pytest.approx(0))
    assert child.replaced


def test_a_process_that_saw_little_is_not_judged():
    """A short run says so and is not held for good."""
    found = run(seconds=60.0, samples={1: samples(60, each=5_000)})
    assert [growth.slope_bytes for growth in growths(found)] == [None]
    assert verdict(checks(found)).startswith("soak: held, but not judged: RSS")


@pytest.mark.parametrize(("what", "pid"), [("descriptors", 1), ("threads", 1), ("descriptors", 2)])
def test_one_more_at_rest_is_not_flat(what, pid):
    """Of the daemon or of a child."""
    before = run().before
    more = replace(before[pid], **{what: getattr(before[pid], what) + 1})
    assert failed(run(after={**before, pid: more})) == [f"{what} flat"]


def test_a_child_that_took_the_place_of_another_is_compared_with_it():
    """They are the same program."""
    before = run().before
    assert failed(run(after={1: before[1], 9: before[2]})) == []
    more = replace(before[2], descriptors=before[2].descriptors + 1)
    assert failed(run(after={1: before[1], 9: more})) == ["descriptors flat"]


def test_a_daemon_that_is_gone_is_flat_in_nothing():
    """However little it holds."""
    assert failed(run(after={})) == ["descriptors flat", "threads flat"]


def segment(**changes):
    """An event, as far as it is looked at."""
    return {
        "type": "segment",
        "id": 7,
        "index": 0,
        "text": "hi",
        "language_score": 0.5,
        "words": [],
        **changes,
    }


def done(**changes):
    """The last event."""
    facts = {"duration": 1.0, "truncated": False, "model": "demo", "segments": 1, "timings": {"total_s": 3}}
    return {"type": "done", "id": 7, **facts, **changes}


def test_an_answer_is_everything_but_ids_and_times():
    """An error is its code, whatever came before."""
    one = answer_of([segment(), done()])
    other = answer_of([segment(id=8), done(id=8, timings={"total_s": 4})])
    assert difference(one, other) == ""
    error = {"type": "error", "id": 7, "code": "bad_input", "message": "x"}
    assert answer_of([segment(), error]) == {"error": "bad_input"}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ([segment(text="ho"), done()], "events[0].text: 'hi' expected, 'ho' came"),
        ([segment(language_score=0.502), done()], "events[0].language_score: 0.5 expected, 0.502 came"),
        ([segment(), segment(index=1), done()], "events: 1 expected, 2 came"),
        ([segment(), done(truncated=True)], "truncated: False expected, True came"),
    ],
)
def test_the_first_difference_is_named(other, said):
    """With its place."""
    assert difference(answer_of([segment(), done()]), answer_of(other)) == said


def test_scores_may_differ_by_what_the_protocol_allows():
    """A thousandth, and no text by anything."""
    one = answer_of([segment(language_score=0.5), done()])
    assert difference(one, answer_of([segment(language_score=0.5009), done()])) == ""


def test_an_error_in_the_place_of_an_answer_is_a_difference():
    """And the other way round."""
    one, error = answer_of([segment(), done()]), {"error": "bad_input"}
    assert "error" in difference(one, error)
    assert "error" in difference(error, one)
    assert difference(error, {"error": "too_long"}) == "error: 'bad_input' expected, 'too_long' came"


def test_a_tally_counts_by_kind_and_outcome():
    """Faults keep their sentence."""
    tally = Tally()
    tally.ended("steady", RIGHT)
    tally.ended("svctl", RIGHT)
    tally.fault("steady", WRONG, "en.wav: text")
    assert (tally.requests, tally.count(RIGHT), tally.count(WRONG)) == (3, 2, 1)
    assert tally.sentences == ["steady, wrong: en.wav: text"]


def test_a_process_that_has_ended_has_no_sample():
    """And one that lives has memory, descriptors and threads."""
    found = look(os.getpid(), 1.0, 2)
    assert (found.at_s, found.requests) == (1.0, 2)
    assert min(found.rss_bytes, found.descriptors, found.threads) > 0
    assert look(2**22 + 1) is None
