"""Counters of one daemon's life, and what the kernel says of our memory.

Standard library only, no decisions.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_RESIDENT = 1
"""Column of /proc/<pid>/statm, see proc_pid_statm(5)."""


@dataclass(slots=True)
class Metrics:
    """What has happened so far; only ever written on the event loop."""

    jobs_done: int = 0
    jobs_failed: int = 0
    jobs_cancelled: int = 0
    """By the client's word, or because the client went away."""
    jobs_rejected: int = 0
    """Refused before any work: busy, shutting down."""
    clients_rejected: int = 0
    connections_closed: Counter[str] = field(default_factory=Counter)
    """Connections that we ended, by error code."""
    audio_s: float = 0.0
    """Audio that has passed the engine, silence between utterances included."""


def resident_bytes(pid: int | str = "self") -> int:
    """Resident set size of a process; 0 where it is gone or not ours to see."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[_RESIDENT]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0
