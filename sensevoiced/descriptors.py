"""Closing descriptors that came from others, and how many of them hang; standard library only."""

from __future__ import annotations

import os
import threading
from collections import Counter

from sensevoiced import threads

MAX_CLOSING, MAX_CLOSING_PER_USER = 1_024, 128
"""Descriptors that are being closed at a time. A close takes microseconds, unless its file system does not
answer: then it holds a thread and the descriptor for as long. One user's are an eighth of them at most: more
than ever are on their way where none hangs."""


class Closing:
    """Descriptors on their way out, by whose they were; safe from any thread."""

    def __init__(self) -> None:
        """None so far."""
        # Reentrant: where an object is made under it, the collector may run, and end an abandoned run, whose
        # descriptors are closed here too.
        self._lock = threading.RLock()
        self._of: Counter[int] = Counter()
        self._all = 0

    def __len__(self) -> int:
        """Count them."""
        return self._all

    def full(self, owner: int) -> bool:
        """Say whether nothing more should be taken from this user, because too much of it may never go."""
        with self._lock:
            return self._of[owner] >= MAX_CLOSING_PER_USER or self._all >= MAX_CLOSING

    def began(self, owner: int) -> None:
        """Count one in."""
        with self._lock:
            self._of[owner] += 1
            self._all += 1

    def ended(self, owner: int) -> None:
        """Count one out."""
        with self._lock:
            self._all -= 1
            self._of[owner] -= 1
            if not self._of[owner]:
                del self._of[owner]


closing = Closing()
"""Of the process, as descriptors are."""


def close_later(fd: int, owner: int) -> None:
    """Close a descriptor of the user `owner` off the loop; on it only where no thread can be started.

    Any close of a FUSE file, and the last one of a socket that lingers, may block. Never raises.
    """
    counted = False
    try:
        closing.began(owner)
        counted = True
        threads.start(_close, fd, owner)
    except (RuntimeError, MemoryError):
        # No thread can be started (a limit, or the interpreter ends), and a descriptor must not be lost.
        _close(fd, owner if counted else None)


def _close(fd: int, owner: int | None) -> None:
    try:
        os.close(fd)
    except OSError:
        # What a file system has to say at a close concerns writers; the descriptor is gone in any case.
        # (Not `suppress`, which would need memory before anything is closed.)
        pass
    finally:
        if owner is not None:
            closing.ended(owner)
