"""Threads for one system call each that may hang; standard library only."""

from __future__ import annotations

import _thread
import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    _Task = tuple[Callable[..., object], tuple[object, ...]]

STACK_BYTES = 512 * 2**10
"""Plenty for a system call, and little of the address space, where the usual 8 MiB may not be had."""
KEPT = 2
"""Threads that wait for their next call instead of ending: a request makes two, one after the other, and to
wake a thread takes a third of the time that a new one takes. It also needs no memory."""


class _Sleeper:
    """A thread between two calls."""

    __slots__ = ("task", "wake")

    def __init__(self) -> None:
        self.task: _Task | None = None
        self.wake = _thread.allocate_lock()
        self.wake.acquire()


# The first is reentrant: where an object is made under it, the collector may run, and end an abandoned run,
# whose descriptors are closed on a thread too.
_starting, _lying_down = threading.RLock(), threading.Lock()
_sleepers: list[_Sleeper] = []


def start(work: Callable[..., object], *args: object) -> None:
    """Run `work` on a thread that does nothing else, for which the end of the process does not wait.

    Raises RuntimeError or MemoryError where none can be started, and `work` is not begun then.
    """
    task = (work, args)
    try:
        sleeper = _sleepers.pop()
    except IndexError:
        _start_new(task)
    else:
        sleeper.task = task
        sleeper.wake.release()


def keep_ready() -> None:
    """Start those that are kept: so what a lack of memory would keep from starting is there already."""
    with contextlib.suppress(RuntimeError, MemoryError):
        for _ in range(KEPT - len(_sleepers)):
            _start_new(None)


def _start_new(task: _Task | None) -> None:
    # Not threading.Thread: its start() waits for the thread to say that it runs, and where memory is lacking
    # the thread may die before it has: whoever started it would wait for ever.
    with _starting:
        before = threading.stack_size(STACK_BYTES)
        try:
            _thread.start_new_thread(_live, (task,))
        finally:
            threading.stack_size(before)


def _live(task: _Task | None) -> None:
    sleeper: _Sleeper | None = None
    while True:
        if task is not None:
            work, args = task
            task = None
            work(*args)
            # Nothing of it is held on to while the next one is waited for.
            del work, args
        # Not before the first call, which is not to be lost where there is no memory for this.
        sleeper = sleeper or _Sleeper()
        with _lying_down:
            if len(_sleepers) >= KEPT:
                return
            _sleepers.append(sleeper)
        sleeper.wake.acquire()
        task, sleeper.task = sleeper.task, None
