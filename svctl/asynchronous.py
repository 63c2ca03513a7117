"""The client for programs on asyncio: `svctl.AsyncClient`, many requests at a time over one connection.

Not imported by the command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any, Self, Unpack

from svctl import wire
from svctl.connect import connect
from svctl.connection import error_of, overdue, pause_s
from svctl.library import Wishes, fields_of
from svctl.options import PATIENCE_S
from svctl.pipeline import AUDIO_BYTES, MAX_BACKLOG_BYTES
from svctl.recording import source_of
from svctl.results import segment_of, transcript_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from types import TracebackType

    from svctl.connection import Connection
    from svctl.recording import Audio
    from svctl.results import Segment, Transcript
    from svctl.sources import Source
    from svctl.wire import Message

_IN_FLIGHT = 32
"""Transcriptions at once, what the daemon takes of one connection; so many files are open, too."""


class AsyncClient:
    """One connection to the daemon, for one event loop; use it in an `async with` block.

    Any number of requests may be made at once; those that the daemon would refuse wait for their turn.
    Cancelling a task cancels its request. Errors as of svctl.Client.
    """

    def __init__(self, socket: str | os.PathLike[str] = "", *, patience_s: float = PATIENCE_S) -> None:
        """As svctl.Client; it connects when the block is entered."""
        self._socket = os.fspath(socket)
        self._patience_s = patience_s
        self._connection: Connection
        self._loop: asyncio.AbstractEventLoop
        self._waiting: dict[int, asyncio.Queue[Message]] = {}
        self._room = asyncio.Event()
        self._slots = asyncio.Semaphore(_IN_FLIGHT)
        sentence = "The client is not connected: use it in an `async with` block."
        self._broken: wire.WireError | None = wire.WireError("unavailable", sentence)
        """Why nothing can be asked."""

    async def __aenter__(self) -> Self:
        """Connect, waiting for a daemon that is loading or full."""
        self._loop = asyncio.get_running_loop()
        self._connection = await asyncio.to_thread(
            connect, self._socket, patience_s=self._patience_s, answer_s=self._patience_s
        )
        self._slots = asyncio.Semaphore(_IN_FLIGHT)
        self._broken = None
        self._loop.add_reader(self._connection.descriptor, self._pump)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; what is unfinished is dropped, and whoever waits for it is told `cancelled`."""
        sentence = "The client was closed before the daemon had answered."
        self._break(wire.WireError("cancelled", sentence))
        self._connection.close()

    @property
    def server(self) -> str:
        """Which daemon answers, such as `sensevoiced/0.1.0`."""
        return self._connection.server

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
        async with self._slots:
            source = source_of(audio, rate, label)
            async with (
                _limit(timeout_s),
                contextlib.aclosing(self._events(source, fields)) as arriving,
            ):
                events = [event async for event in arriving]
        *segments, done = (event for event in events if event["type"] in ("segment", "done"))
        return transcript_of(source.label, segments, done)

    async def segments(
        self,
        audio: Audio,
        *,
        rate: int | None = None,
        label: str | None = None,
        **wishes: Unpack[Wishes],
    ) -> AsyncIterator[Segment]:
        """Give the segments of one recording as they are recognised; arguments as of Client.segments.

        Close it (contextlib.aclosing) where the loop may be left early: that cancels what is left.
        """
        fields = fields_of(**wishes)
        async with self._slots:
            source = source_of(audio, rate, label)
            async with contextlib.aclosing(self._events(source, fields)) as arriving:
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

    async def _call(self, kind: str) -> Message:
        async with _limit(self._patience_s):
            while True:
                with self._request(kind) as (_, arrived):
                    event = await self._next(arrived)
                if event["type"] != "error":
                    return event
                error = error_of(event)
                if error.retry_after_ms is None:
                    raise error
                await asyncio.sleep(pause_s(error.retry_after_ms))

    async def _events(self, source: Source, fields: dict[str, Any]) -> AsyncGenerator[Message, None]:
        """The events of one transcription, asked for again while the daemon is full."""
        try:
            if self._broken is not None:
                raise self._broken
            for name in fields:
                self._connection.needs(name)
            began_s = self._loop.time()
            while True:
                event: Message | None = None
                async with contextlib.aclosing(self._one_try(source, fields)) as arriving:
                    async for event in arriving:
                        if event["type"] != "error":
                            yield event
                if event is None or event["type"] != "error":
                    return
                error = error_of(event)
                # a stream's bytes have gone: it cannot be sent again
                again = error.code == "busy" and not source.streamed
                if not again or self._loop.time() - began_s > self._patience_s:
                    raise error
                await asyncio.sleep(pause_s(error.retry_after_ms))
        finally:
            os.close(source.descriptor)

    async def _one_try(self, source: Source, fields: dict[str, Any]) -> AsyncGenerator[Message, None]:
        kind, descriptor = ("stream", -1) if source.streamed else ("fd", source.descriptor)
        with self._request("transcribe", descriptor, source=kind, label=source.label, **fields) as (
            request,
            arrived,
        ):
            upload = None
            if source.streamed:
                upload = asyncio.create_task(self._upload(request, source, arrived))
            finished = False
            try:
                while not finished:
                    event = await self._next(arrived)
                    finished = event["type"] in ("done", "error")
                    yield event
            finally:
                if not finished:
                    self._send({"type": "cancel", "id": request})
                if upload is not None:
                    upload.cancel()
                    # it lets go of the descriptor, whose number may be another's as soon as it is closed
                    await asyncio.gather(upload, return_exceptions=True)

    async def _upload(self, request: int, source: Source, arrived: asyncio.Queue[Message]) -> None:
        while True:
            await self._has_room()
            try:
                await self._readable(source.descriptor)
                data = os.read(source.descriptor, AUDIO_BYTES)
            except BlockingIOError:
                continue  # somebody else has read it
            except OSError as error:
                sentence = f"{source.label} cannot be read: {error.strerror}."
                self._send({"type": "cancel", "id": request})
                arrived.put_nowait(wire.WireError("not_found", sentence, request=request).to_message())
                return
            if not data:
                self._send({"type": "end", "id": request})
                return
            self._send({"type": "audio", "id": request, "data": data})

    async def _readable(self, descriptor: int) -> None:
        """Wait for bytes in the loop: a thread that reads could not be called off, and holds up the end."""
        ready = asyncio.Event()
        try:
            self._loop.add_reader(descriptor, ready.set)
        except PermissionError:
            await asyncio.sleep(0)  # a device such as /dev/zero, which is always ready
            return
        try:
            await ready.wait()
        finally:
            self._loop.remove_reader(descriptor)

    async def _has_room(self) -> None:
        while self._connection.backlog_bytes >= MAX_BACKLOG_BYTES:
            self._room.clear()
            await self._room.wait()

    @contextlib.contextmanager
    def _request(self, kind: str, descriptor: int = -1, **fields: Any) -> Any:
        """Send a request; gives its id, and the queue of its events for the length of the block."""
        if self._broken is not None:
            raise self._broken
        request = self._connection.request(kind, descriptor, **fields)
        arrived: asyncio.Queue[Message] = asyncio.Queue()
        self._waiting[request] = arrived
        self._watch()
        try:
            yield request, arrived
        finally:
            del self._waiting[request]

    async def _next(self, arrived: asyncio.Queue[Message]) -> Message:
        event = await arrived.get()
        if event["type"] == "error" and event["id"] is None:
            raise self._broken or error_of(event)
        return event

    def _send(self, message: Message) -> None:
        if self._broken is None:
            self._connection.send(message)
            self._watch()

    def _watch(self) -> None:
        """Have the loop tell when the socket takes more, as long as there is more."""
        if self._connection.backlog_bytes:
            self._loop.add_writer(self._connection.descriptor, self._pump)
        else:
            self._loop.remove_writer(self._connection.descriptor)
            self._room.set()

    def _pump(self) -> None:
        try:
            self._connection.pump()
            while (event := self._connection.take()) is not None:
                if event["type"] == "error" and event["id"] is None:
                    self._break(error_of(event))
                elif (arrived := self._waiting.get(event["id"])) is not None:
                    arrived.put_nowait(event)
        except wire.WireError as error:
            self._break(error)
            return
        if self._connection.ended:
            self._break(self._connection.broken())
        else:
            self._watch()

    def _break(self, error: wire.WireError) -> None:
        """Tell everybody who waits that nothing will come any more."""
        self._broken = self._broken or error
        self._forget()
        for arrived in self._waiting.values():
            arrived.put_nowait({**self._broken.to_message(), "id": None})
        self._room.set()

    def _forget(self) -> None:
        self._loop.remove_reader(self._connection.descriptor)
        self._loop.remove_writer(self._connection.descriptor)


@contextlib.asynccontextmanager
async def _limit(seconds: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise overdue() from None
