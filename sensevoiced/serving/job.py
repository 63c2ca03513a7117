"""One `transcribe` request: from its source to its segments and its `done`.

Knows the connection only as somewhere to send.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sensevoiced.descriptors import close_later
from sensevoiced.jobs import Options
from sensevoiced.serving.source import Upload, examine, on_thread, open_path
from svctl.framing import encode
from svctl.wire import ProtocolError, WireError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sensevoiced.config import ServingConfig
    from sensevoiced.serving.admission import Ticket
    from sensevoiced.serving.service import Segment, Service, Transcript

Message = dict[str, Any]

_TIME_DIGITS, _SCORE_DIGITS = 3, 6
"""Milliseconds, and what float32 softmax can tell apart: equal input gives equal digits."""


class Job:
    """One unfinished request.

    `task` runs `perform`, and `dispose` is due when it has ended, however that was.
    """

    def __init__(self, message: Message, fd: int | None, ticket: Ticket, limits: ServingConfig) -> None:
        """Take over a checked `transcribe` and the descriptor that came with it."""
        self.id: int = message["id"]
        self.began_s = asyncio.get_running_loop().time()
        self.task: asyncio.Task[None] | None = None
        self._options = Options(
            language=message["language"],
            itn=message["itn"],
            vad=message["vad"],
            channels=message["channels"],
            start_s=float(message["start"]),
            duration_s=float(message["duration"]),
        )
        self._path: str | None = message["path"] if message["source"] == "path" else None
        self.label: str = message["label"] or message["path"]
        """What its client calls it; "" where it says nothing."""
        self._fd = fd
        self._ticket = ticket
        self._limits = limits
        self._transcript: Transcript | None = None
        self._waits_for = ""
        # Last: a pipe is lost where what comes after it fails.
        self.upload = Upload(limits.max_upload_buffer_bytes) if message["source"] == "stream" else None

    @property
    def fed(self) -> bool:
        """Whether it needs nothing more from its client."""
        return self.upload is None or self.upload.complete

    @property
    def state(self) -> str:
        """`waiting` (for the model, or for a process of the front end), `uploading`, or `running`."""
        if self.decoded_s:
            return "running"
        return "waiting" if self.fed else "uploading"

    @property
    def waits_for(self) -> str:
        """What it waits for before it can begin: `model`, what a Transcript waits for, or ""."""
        return self._transcript.waits_for if self._transcript else self._waits_for

    @property
    def decoded_s(self) -> float:
        """Seconds of audio that were read."""
        return self._transcript.decoded_s if self._transcript else 0.0

    @property
    def recognised_s(self) -> float:
        """Seconds of audio whose segments have left."""
        return self._transcript.recognised_s if self._transcript else 0.0

    def dispose(self) -> None:
        """Give back everything that it still holds."""
        self._ticket.release()
        if self.upload is not None:
            self.upload.close()
        if self._fd is not None:
            close_later(self._fd, self._ticket.uid)
            self._fd = None

    async def perform(self, service: Service, send: Callable[[bytes], Awaitable[None]]) -> Message:
        """Send the segments as they come, and give the `done` message.

        Raises JobError, WireError and ConnectionLost.
        """
        source_fd = await self._open(service)
        opened_s = asyncio.get_running_loop().time()
        transcript = service.transcribe(source_fd, self._options, label=self.label, owner=self._ticket.uid)
        segments = 0
        async with contextlib.aclosing(transcript):
            self._transcript = transcript
            async for segment in transcript:
                segments += 1
                self._ticket.progress(transcript.decoded_s, transcript.recognised_s)
                await send(encode(segment_event(self.id, segment)))
        decoded, timings = transcript.decoded, transcript.timings
        timings.settle(opened_s - self.began_s, asyncio.get_running_loop().time() - self.began_s)
        return {
            "type": "done",
            "id": self.id,
            "duration": round(decoded.duration_s, _TIME_DIGITS),
            "segments": segments,
            "truncated": decoded.truncated,
            "model": service.model,
            "timings": {name: round(value, _SCORE_DIGITS) for name, value in asdict(timings).items()},
        }

    def progress(self) -> Message | None:
        """The `progress` message, once there is something to tell of; charges the queue for what is left."""
        if self._transcript is not None:
            self._ticket.progress(self.decoded_s, self.recognised_s)
        elif not self._waits_for:
            return None
        return {
            "type": "progress",
            "id": self.id,
            "decoded_s": round(self.decoded_s, _TIME_DIGITS),
            "recognised_s": round(self.recognised_s, _TIME_DIGITS),
            "waits_for": self.waits_for,
        }

    async def _open(self, service: Service) -> int:
        """Examine the source, charge for it, and wait for our turn.

        Gives the descriptor, which the caller owns.
        """
        timeout_s, owner = self._limits.open_timeout_s, self._ticket.uid
        if self.upload is not None:
            # More than this never waits for us: the client is held back.
            self._ticket.charge_bytes(self._limits.max_upload_buffer_bytes)
            await self._wait_for_model(service)
            return self.upload.take_source()
        if self._path is not None:
            path = self._path
            fd, size = await on_thread(
                lambda: open_path(path, owner), timeout_s, lambda opened: opened[0], owner=owner
            )
        else:
            fd = self._take_fd()
            try:
                size = await on_thread(lambda: examine(fd, owner), timeout_s, lambda _: fd, owner=owner)
            except (WireError, MemoryError):
                self._fd = fd  # it was not even tried: still ours, and `dispose` closes it
                raise
        self._fd = fd
        self._ticket.charge_bytes(size)
        await self._wait_for_model(service)
        return self._take_fd()

    async def _wait_for_model(self, service: Service) -> None:
        self._waits_for = "model"
        await service.ready()
        self._waits_for = ""

    def _take_fd(self) -> int:
        if self._fd is None:
            raise ProtocolError("invalid_request", "source is fd, and no descriptor came along.", fatal=False)
        fd, self._fd = self._fd, None
        return fd


def segment_event(request: int, segment: Segment) -> Message:
    """The `segment` message: times of the recording in seconds, rounded to ms."""
    found = segment.recognition
    return {
        "type": "segment",
        "id": request,
        "index": segment.index,
        "start": round(segment.start_s, _TIME_DIGITS),
        "end": round(segment.end_s, _TIME_DIGITS),
        "language": found.language,
        "language_score": round(found.language_score, _SCORE_DIGITS),
        "emotion": found.emotion,
        "emotion_score": round(found.emotion_score, _SCORE_DIGITS),
        "event": found.event,
        "event_score": round(found.event_score, _SCORE_DIGITS),
        "itn": found.itn,
        "text": found.text,
        "raw": found.raw,
        "channel": segment.channel,
        "words": [
            {
                "word": word.word,
                "start": round(segment.start_s + word.start, _TIME_DIGITS),
                "end": round(segment.start_s + word.end, _TIME_DIGITS),
            }
            for word in found.words
        ],
    }
