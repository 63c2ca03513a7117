"""Counters of one daemon's life, and what the kernel says of its memory.

Imports nothing but the standard library; takes no decisions.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


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


def resident_bytes(pid: int | None = None) -> int:
    """Resident set size of a process, None meaning this one (proc(5), statm).

    0 where it is gone, and where we have no descriptor left to look: a status is wanted most of all then.
    """
    try:
        pages = Path(f"/proc/{'self' if pid is None else pid}/statm").read_bytes().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * _PAGE_BYTES
