"""Threads for one system call each that may hang; standard library only."""

from __future__ import annotations

import _thread
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

STACK_BYTES = 512 * 2**10
"""Plenty for a system call, and little of the address space, where the usual 8 MiB may not be had."""

_starting = threading.Lock()


def start(work: Callable[..., object], *args: object) -> None:
    """Run `work` on a thread of its own, for which the end of the process does not wait.

    Raises RuntimeError or MemoryError where none can be started, and `work` is not begun then.
    """
    # Not threading.Thread: its start() waits for the thread to say that it runs, and where memory is lacking
    # the thread may die before it has: whoever started it would wait for ever.
    with _starting:
        before = threading.stack_size(STACK_BYTES)
        try:
            _thread.start_new_thread(work, args)
        finally:
            threading.stack_size(before)
