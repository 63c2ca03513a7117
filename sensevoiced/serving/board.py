"""Every unfinished job of every connection under a number of its own, for `svctl ps` and `svctl cancel`.

Knows whose each is: nobody but root and the daemon's own user sees or ends another user's.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from svctl.wire import MAX_JOB_LABEL_CHARS, MAX_JOBS, WireError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sensevoiced.serving.job import Job
    from sensevoiced.serving.listener import Peer

_SECONDS_DIGITS = 3


@dataclass(frozen=True, slots=True)
class _Entry:
    number: int
    peer: Peer
    cancel: Callable[[], None]


class Board:
    """The jobs in the order of their arrival; all methods belong to the event loop."""

    def __init__(self) -> None:
        """Begin empty."""
        self._numbers = itertools.count(1)
        self._entries: dict[Job, _Entry] = {}

    def add(self, peer: Peer, job: Job, cancel: Callable[[], None]) -> None:
        """Show a job. `cancel` ends it, and must not wait."""
        self._entries[job] = _Entry(next(self._numbers), peer, cancel)

    def remove(self, job: Job) -> None:
        """Show it no longer, where it was shown."""
        self._entries.pop(job, None)

    def jobs(self, peer: Peer) -> list[dict[str, Any]]:
        """What `peer` may see, oldest first, up to MAX_JOBS."""
        now_s = asyncio.get_running_loop().time()
        seen = ((job, entry) for job, entry in self._entries.items() if _may(peer, entry.peer))
        return [_shown(job, entry, now_s) for job, entry in itertools.islice(seen, MAX_JOBS)]

    def cancel(self, peer: Peer, number: int) -> None:
        """End a job. Raises WireError `not_found` where there is none that `peer` may see."""
        entry = next((entry for entry in self._entries.values() if entry.number == number), None)
        # Another user's job is not there, rather than forbidden: numbers tell nobody how busy others are.
        if entry is None or not _may(peer, entry.peer):
            sentence = f"You have no unfinished job {number}: `svctl ps` shows those that you have."
            raise WireError("not_found", sentence)
        entry.cancel()


def _may(peer: Peer, owner: Peer) -> bool:
    return peer.uid in (owner.uid, 0, os.geteuid())


def _shown(job: Job, entry: _Entry, now_s: float) -> dict[str, Any]:
    return {
        "job": entry.number,
        "uid": entry.peer.uid,
        "pid": entry.peer.pid,
        "label": job.label[:MAX_JOB_LABEL_CHARS],
        "state": job.state,
        "waits_for": job.waits_for,
        "age_s": round(now_s - job.began_s, _SECONDS_DIGITS),
        "decoded_s": round(job.decoded_s, _SECONDS_DIGITS),
        "recognised_s": round(job.recognised_s, _SECONDS_DIGITS),
    }
