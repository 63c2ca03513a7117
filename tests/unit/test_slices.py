"""slices.py, on this kernel: what is asked for is what the kernel then tells."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading

import pytest

from sensevoiced import slices
from sensevoiced.engine.cores import give_way

RELEASE = tuple(int(part) for part in platform.release().split(".")[:2])
needs_slices = pytest.mark.skipif(
    RELEASE < (6, 12) or platform.machine() not in {"x86_64", "aarch64"},
    reason=f"Linux {platform.release()} on {platform.machine()} lets nobody choose slices: 6.12 does",
)
TELL = "from sensevoiced import slices; print(slices.slice_ns())"


def _on_a_thread(work):
    """Do it where this thread's own slices stay as they are."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


@needs_slices
def test_threads_and_children_have_short_slices_and_the_engine_the_usual():
    """The engine's thread is started by one that has short ones."""

    def work():
        usual = slices.slice_ns()
        slices.ask_for(slices.SHORT_NS)
        child = subprocess.run([sys.executable, "-c", TELL], capture_output=True, text=True, check=True)

        def engine():
            before = slices.slice_ns()
            give_way()
            return before, slices.slice_ns()

        return usual, slices.slice_ns(), int(child.stdout), _on_a_thread(engine)

    usual, short, childs, engines = _on_a_thread(work)
    assert short == childs == slices.SHORT_NS
    assert engines == (slices.SHORT_NS, usual)
    assert usual > slices.SHORT_NS


def test_niceness_is_left_alone():
    """It travels in the same structure."""

    def work():
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 7)
        slices.ask_for(slices.SHORT_NS)
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert _on_a_thread(work) == 7


def test_without_such_a_call_nothing_happens(monkeypatch):
    """A processor whose numbers are not known, and a kernel that refuses."""
    before = slices.slice_ns()
    monkeypatch.setattr(slices, "_NUMBERS", {platform.machine(): (-1, -1)})
    slices.ask_for(slices.SHORT_NS)
    assert slices.slice_ns() == 0
    monkeypatch.setattr(slices, "_NUMBERS", {})
    slices.ask_for(slices.SHORT_NS)
    assert slices.slice_ns() == 0
    monkeypatch.undo()
    assert slices.slice_ns() == before
