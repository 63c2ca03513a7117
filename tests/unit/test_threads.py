"""Threads for calls that may hang: kept between two calls, and never waited for."""

from __future__ import annotations

import _thread
import threading

import pytest
from harness.daemon import wait_until

from sensevoiced import threads


@pytest.fixture(autouse=True)
def asleep():
    """As many threads sleep as are kept, before each test and after it."""
    threads.keep_ready()
    wait_until(lambda: len(threads._sleepers) == threads.KEPT, "all asleep")
    yield
    wait_until(lambda: len(threads._sleepers) == threads.KEPT, "all asleep again")


def test_a_call_runs_on_a_thread_that_was_kept():
    """One after the other, no thread is added."""
    before, found = _thread._count(), []
    for number in range(20):
        threads.start(found.append, number)
        wait_until(lambda n=number: found[-1:] == [n], "it was run")
        wait_until(lambda: len(threads._sleepers) == threads.KEPT, "it sleeps")
    assert found == list(range(20))
    assert _thread._count() == before


def test_a_call_never_waits_for_one_that_hangs():
    """With all that are kept at the wall there is a new one, and what was too many ends afterwards."""
    wall, through, before = threading.Event(), [], _thread._count()
    many = threads.KEPT + 5
    for _ in range(many):
        threads.start(wall.wait, 30)
    threads.start(through.append, "through")
    wait_until(lambda: through, "one got past")
    assert not wall.is_set()
    wall.set()
    wait_until(lambda: _thread._count() == before, "those too many have ended")


def test_without_memory_those_that_are_kept_still_work(monkeypatch):
    """And where one more is needed, whoever asked for it is told."""

    def lacking(*_):
        raise MemoryError

    monkeypatch.setattr(threads._thread, "start_new_thread", lacking)
    wall, held = threading.Event(), []
    for _ in range(threads.KEPT):
        threads.start(lambda: held.append(wall.wait(30)))
    wait_until(lambda: not threads._sleepers, "all at work")
    with pytest.raises(MemoryError):
        threads.start(held.append, "never")
    threads.keep_ready()
    wall.set()
    wait_until(lambda: held == [True] * threads.KEPT, "all done")


def test_what_is_collected_while_a_thread_starts_may_start_one_too(monkeypatch):
    """An abandoned run closes its descriptor wherever the collector finds it, also during a start."""
    monkeypatch.setattr(threads, "_sleepers", [])  # none is asleep, so each start makes a thread
    began, found, really = [], [], _thread.start_new_thread

    def collected(*args):
        if not began:
            began.append(True)
            threads.start(found.append, "inner")
        return really(*args)

    monkeypatch.setattr(threads._thread, "start_new_thread", collected)
    outer = threading.Thread(target=threads.start, args=(found.append, "outer"), daemon=True)
    outer.start()
    outer.join(10)
    assert not outer.is_alive(), "it waits for itself"
    wait_until(lambda: sorted(found) == ["inner", "outer"], "both ran")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_defect_costs_its_thread_alone():
    """The next call gets another one."""
    found = []

    def defect():
        found.append("began")
        raise ValueError

    threads.start(defect)
    wait_until(lambda: found == ["began"], "it began")
    threads.start(found.append, "next")
    wait_until(lambda: len(found) == 2, "the next one ran")
    assert found == ["began", "next"]
    threads.keep_ready()
