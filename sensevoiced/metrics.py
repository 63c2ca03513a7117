"""Counters of one daemon's life, and what the kernel says of its memory.

Imports the standard library, psutil when first asked, and nothing of ours; takes no decisions.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


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
    """Resident set size of a process, None meaning this one; 0 where it is gone or not ours to see."""
    import psutil  # noqa: PLC0415 - 25 ms, which the first status may take and no start has to

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
