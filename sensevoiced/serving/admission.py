"""Decides who may add how much work: caps of connections, jobs and queued audio, over all and by uid.

Pure bookkeeping, no I/O.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from svctl.wire import WireError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sensevoiced.config import ServingConfig

ASSUMED_RTF = 0.1
"""Seconds of work per second of audio before anything was measured: a modest CPU."""
MIN_RETRY_MS, MAX_RETRY_MS = 100, 60_000
"""Sooner would be a busy loop, later would leave a queue idle that emptied faster than expected."""


class Ticket:
    """One admitted job, and the seconds of audio that it stands for in the queue."""

    __slots__ = ("_admission", "_charged_s", "_released", "_total_s", "uid")

    def __init__(self, admission: Admission, uid: int) -> None:
        """Made by `Admission.admit` only."""
        self._admission = admission
        self._charged_s = 0.0
        self._total_s = 0.0
        self._released = False
        self.uid = uid

    def charge_bytes(self, size: int) -> None:
        """Charge for a recording of `size` bytes.

        Raises WireError `busy` where the queue has no room for it.
        """
        total_s = size / self._admission.limits.assumed_bytes_per_s
        self._admission.check_audio(self.uid, self._admission.charge_of(total_s))
        self._total_s = total_s
        self._set(total_s)

    def progress(self, decoded_s: float, recognised_s: float) -> None:
        """Charge for what is left: what the size promised, or what was decoded where that is more.

        What a job passes over counts until it is decoded: `recognised_s` begins at the job's `start`, which
        is anything that its client says.
        """
        self._total_s = max(self._total_s, decoded_s)
        self._set(self._total_s - min(recognised_s, decoded_s))

    def release(self) -> None:
        """End the job; harmless when repeated."""
        if not self._released:
            self._set(0.0)
            self._released = True
            self._admission.job_ended(self.uid)

    def _set(self, remaining_s: float) -> None:
        if not self._released:
            charge_s = self._admission.charge_of(remaining_s)
            self._admission.recharge(self.uid, charge_s - self._charged_s)
            self._charged_s = charge_s


class Admission:
    """The present load against the limits in force; `limits` may be replaced at any time."""

    def __init__(self, limits: ServingConfig, rtf: Callable[[], float | None]) -> None:
        """`rtf` gives the measured seconds of work per second of audio, or None."""
        self.limits = limits
        self._rtf = rtf
        self._connections: defaultdict[int, int] = defaultdict(int)
        self._jobs: defaultdict[int, int] = defaultdict(int)
        self._audio_s: defaultdict[int, float] = defaultdict(float)

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return sum(self._connections.values())

    @property
    def jobs(self) -> int:
        """Jobs admitted and not ended."""
        return sum(self._jobs.values())

    @property
    def queued_audio_s(self) -> float:
        """Seconds of audio admitted and not recognised, as far as known."""
        return sum(self._audio_s.values())

    def connect(self, uid: int) -> None:
        """Count a connection in. Raises WireError `too_many_connections`.

        Pair with `disconnect` only where it did not.
        """
        if self.connections >= self.limits.max_connections:
            raise WireError(
                "too_many_connections",
                f"The daemon has {self.connections} connections, its limit.",
                retry_after_ms=self._retry_ms(0.0),
            )
        if self._connections[uid] >= self.limits.max_connections_per_uid:
            raise WireError(
                "too_many_connections",
                f"User {uid} has {self._connections[uid]} connections, the limit of one user.",
                retry_after_ms=self._retry_ms(0.0),
            )
        self._connections[uid] += 1

    def disconnect(self, uid: int) -> None:
        """Count a connection out."""
        self._connections[uid] -= 1
        if not self._connections[uid]:
            del self._connections[uid]

    def admit(self, uid: int, of_connection: int) -> Ticket:
        """Count a job in; its connection has `of_connection` already. Raises WireError `busy`."""
        if of_connection >= self.limits.max_jobs_per_connection:
            raise self._busy(
                f"This connection has {of_connection} unfinished requests, its limit", self._a_job_s()
            )
        if self.jobs >= self.limits.max_jobs:
            raise self._busy(f"The daemon has {self.jobs} unfinished requests, its limit", self._a_job_s())
        if self._jobs.get(uid, 0) >= self.limits.max_jobs_per_uid:
            why = f"User {uid} has {self._jobs[uid]} unfinished requests, the limit of one user"
            raise self._busy(why, self._a_job_s())
        ticket = Ticket(self, uid)
        self._jobs[uid] += 1  # last: who gets no ticket could not be counted out again
        return ticket

    # --- for Ticket ---------------------------------------------------------------------------------------

    def charge_of(self, remaining_s: float) -> float:
        """What a job with so much left counts for.

        Jobs take turns, so a giant delays nobody more than a job of `max_job_charge_s`.
        """
        return min(max(remaining_s, 0.0), self.limits.max_job_charge_s)

    def check_audio(self, uid: int, charge_s: float) -> None:
        """Raise WireError `busy` where `charge_s` more does not fit.

        What comes to an empty queue always fits.
        """
        for have_s, limit_s, whose in (
            (self._audio_s.get(uid, 0.0), self.limits.max_queued_audio_per_uid_s, f"User {uid}"),
            (self.queued_audio_s, self.limits.max_queued_audio_s, "The daemon"),
        ):
            over_s = have_s + charge_s - limit_s
            if have_s > 0 and over_s > 0:
                raise self._busy(
                    f"{whose} has {have_s:.0f} s of audio waiting, and {limit_s:.0f} s is the limit", over_s
                )

    def recharge(self, uid: int, by_s: float) -> None:
        """Move a uid's queued audio by so much."""
        self._audio_s[uid] += by_s

    def job_ended(self, uid: int) -> None:
        """Count a job out."""
        self._jobs[uid] -= 1
        if not self._jobs[uid]:
            # Nothing of this uid is left, so neither are rounding errors of many small steps.
            del self._jobs[uid]
            self._audio_s.pop(uid, None)

    def _a_job_s(self) -> float:
        return self.queued_audio_s / self.jobs if self.jobs else 0.0

    def _busy(self, why: str, audio_s: float) -> WireError:
        return WireError("busy", f"{why}.", retry_after_ms=self._retry_ms(audio_s))

    def _retry_ms(self, audio_s: float) -> int:
        rtf = self._rtf()
        wait_ms = round(audio_s * (ASSUMED_RTF if rtf is None else rtf) * 1000)
        return min(max(wait_ms, MIN_RETRY_MS), MAX_RETRY_MS)
