"""Joins frontend and engine for one job: utterances in, segments out in order, a bounded number between.

Imports neither.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from sensevoiced.jobs import Decoded, JobError, Timings
from sensevoiced.serving.service import Segment
from sensevoiced.stages import Stages

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from sensevoiced.jobs import Recognised, Recognition, Utterance


class FrontendRun(Protocol):
    """What a frontend gives for one source: utterances, and its last word after them."""

    decoded: Decoded | None
    begun_s: float | None
    """When it was taken up, a moment of time.monotonic()."""

    @property
    def decoded_s(self) -> float:
        """Audio read so far."""

    @property
    def waits_for(self) -> str:
        """What it waits for before it can begin, "" for nothing; see serving's Transcript."""

    def __aiter__(self) -> AsyncIterator[Utterance]:
        """Utterances in order; the source is not read on while nobody asks. Raises JobError."""

    async def aclose(self) -> None:
        """Stop, where it is not at its end."""


class Transcription:
    """One job on its way through frontend and engine: serving's Transcript."""

    def __init__(
        self,
        run: FrontendRun,
        recognise: Callable[[Utterance], Awaitable[Recognised]],
        *,
        max_outstanding: int,
        on_progress: Callable[[float], None],
        start_s: float = 0.0,
    ) -> None:
        """`on_progress` hears of every stretch of audio, in seconds, that the job has put behind it.

        `start_s` is where in the recording the job begins.
        """
        self._start_s = start_s
        self.recognised_s = start_s
        self._run = run
        self._recognise = recognise
        self._on_progress = on_progress
        self._slots = asyncio.Semaphore(max_outstanding)
        self._ahead: asyncio.Queue[tuple[int, float, float, int, asyncio.Task[Recognition]] | None] = (
            asyncio.Queue()
        )
        self._tasks: set[asyncio.Task[Recognition]] = set()
        self._stages = Stages(time.monotonic())
        self._segments = self._join()

    @property
    def decoded_s(self) -> float:
        """Audio read so far."""
        return self._run.decoded_s

    @property
    def waits_for(self) -> str:
        """What keeps it from beginning."""
        return self._run.waits_for

    @property
    def timings(self) -> Timings:
        """Where the time went."""
        return self._stages.timings

    @property
    def decoded(self) -> Decoded:
        """The frontend's last word."""
        if self._run.decoded is None:
            raise JobError("internal", "The front end ended without its last word.")
        return self._run.decoded

    def __aiter__(self) -> AsyncIterator[Segment]:
        """Segments in order, each as soon as it and all before it are there. Raises JobError."""
        return self._segments

    async def aclose(self) -> None:
        """Stop the work, where it is not finished; also when this itself is cancelled."""
        try:
            await self._segments.aclose()
        finally:
            await self._run.aclose()

    async def _join(self) -> AsyncGenerator[Segment, None]:
        feeding = asyncio.create_task(self._feed())
        try:
            while (item := await self._ahead.get()) is not None:
                index, start_s, end_s, channel, task = item
                recognition = await task
                self._tasks.discard(task)
                self._advance(end_s)
                yield Segment(index, start_s, end_s, recognition, channel)
                self._slots.release()
            await feeding  # raises what ended the front end, after everything before it was delivered
            self._advance(self._start_s + self.decoded.duration_s)
        finally:
            feeding.cancel()
            for task in self._tasks:
                task.cancel()
            # Also takes note of what the others raised: the first failure is the job's.
            await asyncio.gather(feeding, *self._tasks, return_exceptions=True)

    async def _feed(self) -> None:
        """Hand utterances to the engine as far ahead as the slots allow."""
        try:
            async for utterance in self._run:
                await self._slots.acquire()
                task = asyncio.create_task(self._one(utterance))
                self._tasks.add(task)
                # Not the utterance itself, whose features would stay with it.
                times = utterance.start_s, utterance.end_s
                self._ahead.put_nowait((utterance.index, *times, utterance.channel, task))
            self._stages.front_end_ended(time.monotonic(), self._run.begun_s, self.decoded)
        finally:
            self._ahead.put_nowait(None)

    async def _one(self, utterance: Utterance) -> Recognition:
        """Recognise one, and see where its time goes."""
        handed_s = time.monotonic()
        self._stages.handed(handed_s)
        try:
            found = await self._recognise(utterance)
        finally:
            self._stages.returned(time.monotonic())
        self._stages.recognised(handed_s, found)
        return found.recognition

    def _advance(self, to_s: float) -> None:
        if to_s > self.recognised_s:
            self._on_progress(to_s - self.recognised_s)
            self.recognised_s = to_s
