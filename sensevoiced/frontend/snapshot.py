"""The front end's figures for `svctl status`.

Must never import numpy or torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChildSnapshot:
    """One child."""

    pid: int
    rss_bytes: int
    busy: bool
    jobs: int


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """The pool; the counters count from its start."""

    children: tuple[ChildSnapshot, ...]
    waiting: int
    """Jobs that wait for a child."""
    max_per_user: int
    """Children that one user may have at a time."""
    started: int
    crashed: int
    """Children that ended in a job, by a signal or an error of their own."""
    timeouts: int
    """Children killed because nothing came from them for decode_timeout_s."""
    stopped: int
    """Jobs called off by us before their end."""
    jail: tuple[str, ...]
    """What children are closed in by (see jail.py); empty before the first is ready, and where there is
    nothing."""
