"""What tests of hostile peers ask: the one error, and what it cost the daemon and whoever else was there."""

from __future__ import annotations

import fcntl
import statistics
import struct
import termios
import time
from pathlib import Path


def only_error(messages):
    """Code of the one error that a connection ended with."""
    (error,) = messages
    assert error["type"] == "error"
    assert error["id"] is None
    return error["code"]


class Growth:
    """In a `with` block: by how much the daemon's memory has at most been above what it is now."""

    def __init__(self, daemon):
        self._daemon = daemon

    def __enter__(self):
        # The kernel forgets the peak (proc(5), clear_refs): that of the start would hide what follows.
        Path(f"/proc/{self._daemon.pid}/clear_refs").write_text("5")
        self._before = self._daemon.resident_bytes()
        return self

    def __exit__(self, *_):
        pass

    @property
    def bytes(self):
        return max(0, self._daemon.peak_bytes() - self._before)

    @property
    def mib(self):
        return self.bytes / 2**20


def latency_s(canary, rounds=20):
    """Median of what the canary waits for its answers, its connection included."""
    took = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        canary._sing()
        took.append(time.perf_counter() - began_s)
    return statistics.median(took)


def unread_bytes(sock):
    """How much the other end has not taken yet, the kernel's own bookkeeping included (SIOCOUTQ).

    Nothing is left where the other end is closed.
    """
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
