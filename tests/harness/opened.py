"""Tells whether anybody opened a file (inotify(7))."""

from __future__ import annotations

import ctypes
import os


class Opened:
    """Watches one file from now on; call it to ask whether it was opened since the last call."""

    IN_OPEN = 0x20

    def __init__(self, path):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._libc.inotify_add_watch(self._fd, os.fsencode(path), self.IN_OPEN) >= 0

    def __call__(self):
        try:
            return bool(os.read(self._fd, 4096))
        except BlockingIOError:
            return False

    def close(self):
        os.close(self._fd)
