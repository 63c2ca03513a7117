"""Many recordings over one connection: several in flight, refused ones sent again, answers in order.

Never imports click, and never reads an audio file: the daemon gets the descriptor, or the bytes of a pipe.
"""

from __future__ import annotations

import os
import time

from svctl import wire
from svctl.connection import error_of, overdue, pause_s
from svctl.terminal import STDIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from svctl.connection import Connection
    from svctl.sources import Recordings, Source
    from svctl.wire import Message

AUDIO_BYTES = 64 * 2**10
"""One read of a pipe: a pipe's default capacity."""
MAX_BACKLOG_BYTES = 256 * 2**10
"""The pipe is not read while so much waits for the daemon, so that back-pressure reaches its writer."""
_MAX_REPLAY_BYTES = 2**20
"""Streamed bytes kept until the daemon's first word, so that a refused stream can be sent again."""


class _Job:
    """One recording in flight."""

    __slots__ = (
        "answered",
        "audio_s",
        "events",
        "finished",
        "refused_since",
        "replay",
        "request",
        "retry_at",
        "sent_end",
        "share",
        "source",
    )

    def __init__(self, source: Source) -> None:
        self.source = source
        self.request = 0
        self.events: list[Message] = []
        self.answered = False
        self.finished = False
        self.share = self.audio_s = 0.0  # of it, that is done
        self.replay: list[bytes] | None = [] if source.streamed else None
        self.sent_end = not source.streamed
        self.retry_at: float | None = None
        self.refused_since: float | None = None


class Pipeline:
    """Transcribes recordings over one connection, which is free again once `run` has ended."""

    def __init__(
        self,
        names: Recordings,
        options: dict[str, Any],
        *,
        patience_s: float,
        in_flight: int = 1,
        ends_s: float | None = None,
        heard_s: Callable[[], float] = lambda: 0.0,
        wanted: Callable[[Source], bool] = lambda _source: True,
    ) -> None:
        """`options` are fields of every request; a daemon that stays full for `patience_s` is an error.

        Of the recordings, `in_flight` are at the daemon at once.
        At `ends_s` on the monotonic clock the run ends with WireError `timeout`, whatever has not been
        answered. `heard_s` says when, on that clock, the daemon last answered others of ours.
        `wanted` says whether a recording is to be transcribed; it may give the source an error instead.
        """
        self._connection: Connection
        self._names = names
        self._wanted = wanted
        self._ends_s = ends_s
        self._heard_s = heard_s
        self._options = options
        self._patience_s = patience_s
        self._in_flight = in_flight
        self._jobs: list[_Job] = []
        self._last_done_s = time.monotonic()
        self._stdin_taken = names.descriptor == STDIN

    @property
    def under_way(self) -> tuple[float, float]:
        """How much is done of recordings that have not been given yet: recordings, and seconds of audio."""
        return sum(job.share for job in self._jobs), sum(job.audio_s for job in self._jobs)

    def begin(self, connection: Connection) -> None:
        """Send the first requests; once more over another connection, where the first was turned away.

        No answer is waited for, and nothing is read from a stream yet.
        """
        self._connection = connection
        for job in self._jobs:
            if not job.finished:
                self._start(job)
        self._fill()

    def run(self) -> Iterator[tuple[Source, Message]]:
        """Each recording's events, in the order of the names; each recording's last is one `done` or `error`.

        `begin` has to come before. Raises WireError when the connection itself fails.
        """
        names = self._names
        try:
            while True:
                self._fill()
                if not self._jobs:
                    if names.descriptor < 0:
                        return
                    self._connection.wait(readable=names.descriptor)
                    self._take_events()
                    continue
                head = self._jobs[0]
                while head.events:
                    event = head.events.pop(0)
                    if event["type"] in ("done", "error"):
                        self._jobs.pop(0)
                    yield head.source, event
                if not head.finished:
                    self._step()
        finally:
            for job in self._jobs:
                _close(job)

    def _fill(self) -> None:
        while len(self._jobs) < self._in_flight and (source := self._names.next()) is not None:
            if source.name == "-" and source.error is None and self._stdin_taken:
                source.error = wire.WireError("invalid_request", "Standard input can be read only once.")
            self._stdin_taken = self._stdin_taken or source.name == "-"
            job = _Job(source)
            if source.error is None and not self._wanted(source):
                _close(job)
                continue
            self._jobs.append(job)
            if source.error is None:
                self._start(job)
            else:
                self._finish(job, source.error.to_message())

    def _start(self, job: _Job) -> None:
        source = job.source
        kind, descriptor = ("stream", -1) if source.streamed else ("fd", source.descriptor)
        job.retry_at = None
        job.request = self._connection.request(
            "transcribe", descriptor, source=kind, label=source.label, **self._options
        )
        for data in job.replay or ():
            self._connection.send({"type": "audio", "id": job.request, "data": data})
        if job.sent_end and source.streamed:
            self._connection.send({"type": "end", "id": job.request})

    def _finish(self, job: _Job, event: Message) -> None:
        job.events.append(event)
        job.finished = True
        job.share = 1.0
        job.audio_s = event["duration"] if event["type"] == "done" else 0.0
        _close(job)

    def _step(self) -> None:
        """Wait until something happens, and let it."""
        now = time.monotonic()
        due = [job for job in self._jobs if job.retry_at is not None]
        for job in due:
            if job.retry_at is not None and job.retry_at <= now:
                self._start(job)
        pauses = [job.retry_at - now for job in due if job.retry_at is not None]
        upload = next(
            (job for job in self._jobs if not job.sent_end and not job.finished and job.retry_at is None),
            None,
        )
        if upload is not None and self._connection.backlog_bytes >= MAX_BACKLOG_BYTES:
            upload = None
        names_wanted = self._names.descriptor if len(self._jobs) < self._in_flight else -1
        readable = upload.source.descriptor if upload is not None else names_wanted
        if self._ends_s is not None:
            if now >= self._ends_s:
                raise overdue()
            pauses.append(self._ends_s - now)
        ready = self._connection.wait(min(pauses) if pauses else None, readable=readable)
        if ready and upload is not None:
            self._upload(upload)
        self._take_events()

    def _take_events(self) -> None:
        while (event := self._connection.take()) is not None:
            self._dispatch(event)

    def _upload(self, job: _Job) -> None:
        try:
            data = job.source.read(AUDIO_BYTES)
        except wire.WireError as error:
            job.source.error = error
            self._connection.send({"type": "cancel", "id": job.request})
            self._finish(job, error.to_message())
            return
        if data is None:
            return
        if not data:
            self._connection.send({"type": "end", "id": job.request})
            job.sent_end = True
            return
        self._connection.send({"type": "audio", "id": job.request, "data": data})
        if job.replay is not None:
            job.replay.append(data)
            if sum(map(len, job.replay)) > _MAX_REPLAY_BYTES:
                job.replay = None

    def _dispatch(self, event: Message) -> None:
        if event["type"] == "error" and event["id"] is None:
            raise error_of(event)
        job = next(
            (
                job
                for job in self._jobs
                if job.request == event.get("id") and not job.finished and job.retry_at is None
            ),
            None,
        )
        if job is None:
            return
        if event["type"] == "error" and event["code"] == "busy" and self._may_wait(job):
            job.retry_at = time.monotonic() + pause_s(event["retry_after_ms"])
            _note(job, {"type": "progress", "decoded_s": 0.0, "recognised_s": 0.0, "waits_for": wire.ROOM})
            return
        if event["type"] in ("done", "error"):
            if event["type"] == "done":
                self._last_done_s = time.monotonic()
            self._finish(job, event)
        else:
            job.replay = None
            job.answered = job.answered or event["type"] == "segment"
            if event["type"] == "progress":
                begins_s = self._options.get("start", 0.0)
                job.audio_s = max(0.0, event["recognised_s"] - begins_s)
                # decoding is soon at the end
                job.share = job.audio_s / max(event["decoded_s"] - begins_s, job.audio_s, 1.0)
            _note(job, event)

    def _may_wait(self, job: _Job) -> bool:
        # while the daemon works on others of ours it is not stuck: patience counts from the last that ended
        if self._patience_s <= 0 or job.answered or (job.source.streamed and job.replay is None):
            return False
        now = time.monotonic()
        if job.refused_since is None:
            job.refused_since = now
        if any(other is not job and not other.finished and other.retry_at is None for other in self._jobs):
            return True
        return now - max(job.refused_since, self._last_done_s, self._heard_s()) < self._patience_s


def _note(job: _Job, event: Message) -> None:
    if event["type"] == "progress" and job.events and job.events[-1]["type"] == "progress":
        job.events.pop()  # only the latest is of interest while others are printed
    job.events.append(event)


def _close(job: _Job) -> None:
    if job.source.descriptor >= 0:
        os.close(job.source.descriptor)
        job.source.descriptor = -1
