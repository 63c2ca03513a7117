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
from functools import partial
from typing import TYPE_CHECKING, Any, Self, Unpack

from svctl import connection, wire
from svctl.connection import error_of, overdue, pause_s
from svctl.library import Wishes, fields_of
from svctl.link import linked, readable
from svctl.options import PATIENCE_S
from svctl.pipeline import AUDIO_BYTES
from svctl.recording import source_of
from svctl.results import segment_of, transcript_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
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

    Any number of requests may be made at once; those that the daemon would refuse wait for their turn, of
    which there are 32. A turn lasts as long as the daemon has work with it, whatever a loop over segments
    does meanwhile; that of a stream lasts until its end, so that many live ones need more than one client.
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
        if not self._links:
            self._require_open()
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
        events: list[Message] = []
        opened = partial(source_of, audio, rate, label)
        named = await self._transcribed(events.append, opened, fields_of(**wishes), timeout_s)
        *segments, done = (event for event in events if event["type"] in ("segment", "done"))
        return transcript_of(named, segments, done)

    def segments(
        self,
        audio: Audio,
        *,
        rate: int | None = None,
        label: str | None = None,
        timeout_s: float | None = None,
        **wishes: Unpack[Wishes],
    ) -> AsyncGenerator[Segment, None]:
        """Give the segments of one recording as they are recognised; arguments as of `transcribe`.

        They wait for the loop, and not the daemon, where its body takes its time.
        Close it (contextlib.aclosing) where the loop may be left early: that cancels what is left.
        """
        return self._segments(partial(source_of, audio, rate, label), fields_of(**wishes), timeout_s)

    async def _segments(
        self, opened: Callable[[], Source], fields: dict[str, Any], timeout_s: float | None
    ) -> AsyncGenerator[Segment, None]:
        arriving: asyncio.Queue[Message | None] = asyncio.Queue()
        # A task of its own has the turn, for as long as the daemon has work with it: the caller, who has
        # all the time that it likes for each segment, may itself wait for another turn meanwhile.
        asking = asyncio.create_task(self._transcribed(arriving.put_nowait, opened, fields, timeout_s))
        asking.add_done_callback(lambda _: arriving.put_nowait(None))
        try:
            while (event := await arriving.get()) is not None:
                if event["type"] == "segment":
                    yield segment_of(event)
            await asking
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

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

    async def _transcribed(
        self,
        give: Callable[[Message], object],
        opened: Callable[[], Source],
        fields: dict[str, Any],
        timeout_s: float | None,
    ) -> str:
        """Wait for a turn and have one recording transcribed; its events go to `give`, its label is returned.

        Raises WireError for an error, or `timeout`, and as source_of does.
        """
        self._require_open()
        async with self._slots:
            source = opened()
            try:
                async with _until(_ends_s(timeout_s)):
                    await self._tries(give, source, fields)
            finally:
                os.close(source.descriptor)
        return source.label

    async def _tries(self, give: Callable[[Message], object], source: Source, fields: dict[str, Any]) -> None:
        """Ask, and ask again while the daemon is full."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()

        def hear(event: Message) -> None:
            self._heard_s = loop.time()
            give(event)

        while True:
            link = await self._ready()
            for name in fields:
                link.connection.needs(name)
            try:
                return await _one_try(hear, link, source, fields)
            except wire.WireError as error:
                # a stream's bytes have gone: it cannot be sent again
                again = error.code == "busy" and error.request is not None and not source.streamed
                # while the daemon works on others of ours it is not stuck: patience counts from the last
                # it said
                since_s = max(began_s, self._heard_s)
                if not again or loop.time() - since_s > self._patience_s:
                    raise
                wait_s = pause_s(error.retry_after_ms)
            await asyncio.sleep(wait_s)


async def _one_try(
    give: Callable[[Message], object], link: Link, source: Source, fields: dict[str, Any]
) -> None:
    """Ask once; raises WireError for an error."""
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
                if event["type"] == "error":
                    raise error_of(event)
                give(event)
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
            async with asyncio.timeout(connection.KEEP_ALIVE_S):
                await readable(source.descriptor)
        except TimeoutError:
            link.keep_alive()
            continue
        try:
            data = source.read(AUDIO_BYTES)
        except wire.WireError as error:
            link.send({"type": "cancel", "id": request})
            error.request = request
            arriving.put_nowait(error.to_message())
            return
        if data is None:
            continue
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
