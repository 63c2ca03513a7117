"""The client for programs on asyncio: `svctl.AsyncClient`, many requests at a time over one connection.

Not imported by the command line.

>>> async def main():
...     async with AsyncClient() as client:
...         transcript = await client.transcribe("call.wav")
...         print(transcript.language, transcript.text)
>>> asyncio.run(main())
en hello world
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any, Self, Unpack

from svctl import wire
from svctl.connection import error_of, overdue, pause_s
from svctl.library import Wishes, fields_of
from svctl.link import linked, readable
from svctl.options import PATIENCE_S
from svctl.pipeline import AUDIO_BYTES
from svctl.recording import source_of
from svctl.results import segment_of, transcript_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from types import TracebackType

    from svctl.link import Arriving, Link
    from svctl.recording import Audio
    from svctl.results import Segment, Transcript
    from svctl.sources import Source
    from svctl.wire import Message

_IN_FLIGHT = 32
"""Transcriptions at once, what the daemon takes of one connection; so many files are open, too."""


class AsyncClient:
    """One connection to the daemon, for one event loop; use it in an `async with` block.

    Any number of requests may be made at once; those that the daemon would refuse wait for their turn.
    Cancelling a task cancels its request. A connection that the daemon has ended is made anew, and errors are
    raised, as by svctl.Client.
    """

    def __init__(self, socket: str | os.PathLike[str] = "", *, patience_s: float = PATIENCE_S) -> None:
        """As svctl.Client; it connects when the block is entered."""
        self._socket = os.fspath(socket)
        self._patience_s = patience_s
        self._links: list[Link] = []
        """The last is asked; those before are of a daemon that drains, and answer what they have accepted."""
        self._slots: asyncio.Semaphore
        self._connecting: asyncio.Lock
        self._heard_s = 0.0
        """When the daemon last said something of any request, on the loop's clock."""
        sentence = "The client is not connected: use it in an `async with` block."
        self._closed: wire.WireError | None = wire.WireError("unavailable", sentence)
        """Why nothing can be asked."""

    async def __aenter__(self) -> Self:
        """Connect, waiting for a daemon that is loading or full."""
        self._links = [await linked(self._socket, self._patience_s)]
        # Both belong to the loop in which somebody first waits for them, and the last block may have been
        # in another one, as with two asyncio.run.
        self._slots = asyncio.Semaphore(_IN_FLIGHT)
        self._connecting = asyncio.Lock()
        self._heard_s = 0.0
        self._closed = None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; what is unfinished is dropped, and whoever waits for it is told `cancelled`."""
        sentence = "The client was closed before the daemon had answered."
        self._closed = wire.WireError("cancelled", sentence)
        for link in self._links:
            link.end(self._closed)

    @property
    def server(self) -> str:
        """Which daemon answers, such as `sensevoiced/0.1.0`."""
        return self._links[-1].connection.server

    async def transcribe(
        self,
        audio: Audio,
        *,
        rate: int | None = None,
        label: str | None = None,
        timeout_s: float | None = None,
        **wishes: Unpack[Wishes],
    ) -> Transcript:
        """Transcribe one recording; arguments as of Client.transcribe, `timeout_s` counts from its turn."""
        fields = fields_of(**wishes)
        async with self._turn():
            source = source_of(audio, rate, label)
            async with contextlib.aclosing(self._events(source, fields, timeout_s)) as arriving:
                events = [event async for event in arriving]
        *segments, done = (event for event in events if event["type"] in ("segment", "done"))
        return transcript_of(source.label, segments, done)

    async def segments(
        self,
        audio: Audio,
        *,
        rate: int | None = None,
        label: str | None = None,
        timeout_s: float | None = None,
        **wishes: Unpack[Wishes],
    ) -> AsyncGenerator[Segment, None]:
        """Give the segments of one recording as they are recognised; arguments as of `transcribe`.

        Close it (contextlib.aclosing) where the loop may be left early: that cancels what is left.
        """
        fields = fields_of(**wishes)
        async with self._turn():
            source = source_of(audio, rate, label)
            async with contextlib.aclosing(self._events(source, fields, timeout_s)) as arriving:
                async for event in arriving:
                    if event["type"] == "segment":
                        yield segment_of(event)

    async def status(self) -> dict[str, Any]:
        """What the daemon runs, holds and has done: `status` of PROTOCOL.md."""
        status: dict[str, Any] = (await self._call("status"))["status"]
        return status

    async def ping(self) -> None:
        """Return when the daemon has answered."""
        await self._call("ping")

    async def reload(self) -> str:
        """Let the daemon read its settings again; what came of it, in a sentence."""
        message: str = (await self._call("reload"))["message"]
        return message

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        self._require_open()
        async with self._slots:
            yield

    def _require_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    async def _ready(self) -> Link:
        """The connection: a new one, where the daemon has ended the last. Nothing was sent over it yet."""
        self._require_open()
        async with self._connecting:
            if not self._links[-1].usable:
                link = await linked(self._socket, self._patience_s)
                try:
                    self._require_open()  # still
                except wire.WireError as error:
                    link.end(error)
                    raise
                self._links = [*(old for old in self._links if not old.ended), link]
            return self._links[-1]

    async def _call(self, kind: str) -> Message:
        async with _until(_ends_s(self._patience_s)):
            while True:
                link = await self._ready()
                with link.request(kind) as (_, arriving):
                    event = await link.next(arriving)
                if event["type"] != "error":
                    return event
                error = error_of(event)
                if error.retry_after_ms is None:
                    raise error
                await asyncio.sleep(pause_s(error.retry_after_ms))

    async def _events(
        self, source: Source, fields: dict[str, Any], timeout_s: float | None
    ) -> AsyncGenerator[Message, None]:
        """The events of one transcription; raises WireError for an error, or `timeout`."""
        ends_s = _ends_s(timeout_s)
        try:
            async with contextlib.aclosing(self._tries(source, fields)) as arriving:
                while True:
                    # around each step alone: in between, the timeout would cancel what the caller does
                    async with _until(ends_s):
                        event = await anext(arriving, None)
                    if event is None:
                        return
                    yield event
        finally:
            os.close(source.descriptor)

    async def _tries(self, source: Source, fields: dict[str, Any]) -> AsyncGenerator[Message, None]:
        """Ask, and ask again while the daemon is full."""
        began_s = asyncio.get_running_loop().time()
        while True:
            link = await self._ready()
            for name in fields:
                link.connection.needs(name)
            event: Message | None = None
            async with contextlib.aclosing(_one_try(link, source, fields)) as arriving:
                async for event in arriving:
                    if event["type"] != "error":
                        self._heard_s = asyncio.get_running_loop().time()
                        yield event
            if event is None or event["type"] != "error":
                return
            error = error_of(event)
            # a stream's bytes have gone: it cannot be sent again
            again = error.code == "busy" and not source.streamed
            # while the daemon works on others of ours it is not stuck: patience counts from the last it said
            since_s = max(began_s, self._heard_s)
            if not again or asyncio.get_running_loop().time() - since_s > self._patience_s:
                raise error
            await asyncio.sleep(pause_s(error.retry_after_ms))


async def _one_try(link: Link, source: Source, fields: dict[str, Any]) -> AsyncGenerator[Message, None]:
    kind, descriptor = ("stream", -1) if source.streamed else ("fd", source.descriptor)
    with link.request("transcribe", descriptor, source=kind, label=source.label, **fields) as (
        request,
        arriving,
    ):
        upload = None
        if source.streamed:
            upload = asyncio.create_task(_upload(link, request, source, arriving))
        finished = False
        try:
            while not finished:
                event = await link.next(arriving)
                finished = event["type"] in ("done", "error")
                yield event
        finally:
            if not finished:
                link.send({"type": "cancel", "id": request})
            if upload is not None:
                upload.cancel()
                # it lets go of the descriptor, whose number may be another's as soon as it is closed
                await asyncio.gather(upload, return_exceptions=True)


async def _upload(link: Link, request: int, source: Source, arriving: Arriving) -> None:
    while True:
        await link.room()
        try:
            await readable(source.descriptor)
            data = os.read(source.descriptor, AUDIO_BYTES)
        except BlockingIOError:
            continue  # somebody else has read it
        except OSError as error:
            sentence = f"{source.label} cannot be read: {error.strerror}."
            link.send({"type": "cancel", "id": request})
            arriving.put_nowait(wire.WireError("not_found", sentence, request=request).to_message())
            return
        if not data:
            link.send({"type": "end", "id": request})
            return
        link.send({"type": "audio", "id": request, "data": data})


def _ends_s(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s


@contextlib.asynccontextmanager
async def _until(ends_s: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(ends_s):
            yield
    except TimeoutError:
        raise overdue() from None
