"""Closing descriptors that came from others, and how many of them hang; standard library only."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter

from sensevoiced import threads

MAX_CLOSING, MAX_CLOSING_PER_USER = 1_024, 128
"""Descriptors that are being closed at a time. A close takes microseconds, unless its file system does not
answer: then it holds a thread and the descriptor for as long. One user's are an eighth of them at most: more
than ever are on their way where none hangs. Connections that are closed with unread input may be more; they
count for no more than that, too."""
LINGER_S = 1.0
"""The last close of a socket that lingers (SO_LINGER, socket(7)) waits for its peer, for as long as its owner
likes. After so much we have waited enough: a signal to the thread ends that wait, and the socket is gone all
the same. What a FUSE server holds up does not end by it."""
HURRY = signal.SIGURG
"""The signal, which the process has to catch: what is ignored interrupts nothing. Where it is not caught any
more, at the end, it does no harm."""


class Closing:
    """Descriptors on their way out, by whose they were; safe from any thread."""

    def __init__(self) -> None:
        """None so far."""
        # Reentrant: where an object is made under it, the collector may run, and end an abandoned run, whose
        # descriptors are closed here too.
        self._lock = threading.RLock()
        self._of: Counter[int] = Counter()
        self._threads: dict[int, float] = {}
        """Who closes one just now, since when (time.monotonic())."""
        self._waiting: list[tuple[int, int]] = []
        """Descriptors and their users, until a thread takes them."""

    def __len__(self) -> int:
        """Count them."""
        with self._lock:
            return sum(self._of.values())

    def full(self, owner: int) -> bool:
        """Say whether nothing more should be taken from this user, because too much of it may never go."""
        with self._lock:
            if self._of[owner] >= MAX_CLOSING_PER_USER:
                return True
            return sum(min(one, MAX_CLOSING_PER_USER) for one in self._of.values()) >= MAX_CLOSING

    def began(self, owner: int) -> None:
        """Count one in."""
        with self._lock:
            self._of[owner] += 1

    def ended(self, owner: int) -> None:
        """Count one out."""
        with self._lock:
            self._threads.pop(threading.get_ident(), None)
            self._of[owner] -= 1
            if not self._of[owner]:
                del self._of[owner]

    def here(self) -> None:
        """The calling thread closes one from here on, until it says `ended`."""
        with self._lock:
            self._threads[threading.get_ident()] = time.monotonic()

    def hurry(self) -> None:
        """End the waits for sockets that linger; for whoever looks about every second.

        In a process that catches HURRY.
        """
        now_s = time.monotonic()
        with self._lock:  # under which none of them can end
            for thread, since_s in self._threads.items():
                if now_s - since_s >= LINGER_S:
                    signal.pthread_kill(thread, HURRY)

    def wait(self, fd: int, owner: int) -> None:
        """Keep one, which is counted in already, for a thread to close."""
        self._waiting.append((fd, owner))

    def start_one(self) -> bool:
        """Start a thread for those that wait; False where there is none to be had."""
        try:
            threads.start(self._close_waiting)
        except (RuntimeError, MemoryError):
            return False
        return True

    def go_on(self) -> None:
        """Start threads for those that still wait, as far as there are any; for whoever looks about."""
        for _ in range(len(self._waiting)):
            if not self.start_one():
                return

    def _close_waiting(self) -> None:
        while self._waiting:
            try:
                fd, owner = self._waiting.pop()
            except IndexError:
                return  # another thread was faster
            try:
                self.here()
            except MemoryError:
                pass  # then nobody will hurry it
            finally:
                _close(fd)
                self.ended(owner)


closing = Closing()
"""Of the process, as descriptors are."""


def close_later(fd: int, owner: int) -> None:
    """Close a descriptor of the user `owner` off the loop.

    Any close of a FUSE file, and the last one of a socket that lingers, may block. Where no thread can be
    started (a limit), it waits until one has come free or `closing.go_on` has started one. Never raises.
    """
    counted = waits = False
    try:
        closing.began(owner)
        counted = True
        # Not handed to the thread: without memory it may die before its first line.
        closing.wait(fd, owner)
        waits = True
        closing.start_one()
    except MemoryError:
        if waits:
            return
        # Not even for an entry in a list; and a descriptor must not be lost.
        _close(fd)
        if counted:
            closing.ended(owner)


def _close(fd: int) -> None:
    try:  # noqa: SIM105 - `suppress` would need memory before anything is closed
        os.close(fd)
    except OSError:
        pass  # what a file system has to say at a close concerns writers; the descriptor is gone in any case
