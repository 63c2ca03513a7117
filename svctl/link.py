"""One connection in an event loop: its bytes move when they can, its events go to whom they answer.

Only the library imports it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from svctl import wire
from svctl.connect import connecting
from svctl.connection import error_of
from svctl.pipeline import MAX_BACKLOG_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svctl.connection import Connection
    from svctl.wire import Message

    Arriving = asyncio.Queue[Message]


_NOBODY = 0
"""An id that no request has: Connection counts from 1 on."""


class Link:
    """A connection that the running event loop watches until it ends."""

    def __init__(self, connection: Connection) -> None:
        """`connection` has exchanged hellos; it is owned."""
        self.connection = connection
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, Arriving] = {}
        self._room = asyncio.Event()
        self._broken: wire.WireError | None = None
        """Why nothing comes any more."""
        self._loop.add_reader(connection.descriptor, self._pump)

    @property
    def ended(self) -> bool:
        """Whether the connection is over."""
        return self._broken is not None

    @property
    def usable(self) -> bool:
        """Whether another request may go this way."""
        return self._broken is None and not self.connection.closing

    @contextlib.contextmanager
    def request(self, kind: str, descriptor: int = -1, **fields: Any) -> Iterator[tuple[int, Arriving]]:
        """Send a request; gives its id, and the queue of its events for the length of the block."""
        if self._broken is not None:
            raise self._broken
        request = self.connection.request(kind, descriptor, **fields)
        arriving: Arriving = asyncio.Queue()
        self._waiting[request] = arriving
        self._watch()
        try:
            yield request, arriving
        finally:
            del self._waiting[request]

    async def next(self, arriving: Arriving) -> Message:
        """The next event of a request; raises WireError when the connection is over."""
        event = await arriving.get()
        if event["type"] == "error" and event["id"] is None:
            raise self._broken or error_of(event)
        return event

    def send(self, message: Message) -> None:
        """Send what belongs to a request; nothing where the connection is over."""
        if self._broken is None:
            self.connection.send(message)
            self._watch()

    def keep_alive(self) -> None:
        """Give a sign of life; its answer is nobody's."""
        self.send({"type": "ping", "id": _NOBODY})

    async def room(self) -> None:
        """Wait while too much is to be sent, so that back-pressure reaches who writes a stream."""
        while self._broken is None and self.connection.backlog_bytes >= MAX_BACKLOG_BYTES:
            self._room.clear()
            await self._room.wait()

    def end(self, error: wire.WireError) -> None:
        """Close, and tell everybody who waits that nothing will come any more."""
        if self._broken is not None:
            return
        self._broken = error
        self._loop.remove_reader(self.connection.descriptor)
        self._loop.remove_writer(self.connection.descriptor)
        self.connection.close()
        for arriving in self._waiting.values():
            arriving.put_nowait({**error.to_message(), "id": None})
        self._room.set()

    def _watch(self) -> None:
        """Have the loop tell when the socket takes more, as long as there is more."""
        if self.connection.backlog_bytes:
            self._loop.add_writer(self.connection.descriptor, self._pump)
        else:
            self._loop.remove_writer(self.connection.descriptor)
            self._room.set()

    def _pump(self) -> None:
        try:
            self.connection.pump()
            while (event := self.connection.take()) is not None:
                if event["type"] == "error" and event["id"] is None:
                    self.end(error_of(event))
                    return
                if (arriving := self._waiting.get(event["id"])) is not None:
                    arriving.put_nowait(event)
        except wire.WireError as error:
            self.end(error)
            return
        if self.connection.ended:
            self.end(self.connection.broken())
        else:
            self._watch()


async def linked(socket: str, patience_s: float) -> Link:
    """Connect as svctl.connect does, but in the loop: a thread that waits could not be called off."""
    steps = connecting(socket, patience_s=patience_s, answer_s=patience_s)
    try:
        while True:
            connection, wait_s = next(steps)
            if connection is None:
                await asyncio.sleep(wait_s)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await readable(connection.descriptor)
            connection.pump()
    except StopIteration as end:
        return Link(end.value)
    finally:
        steps.close()


async def readable(descriptor: int) -> None:
    """Wait for bytes in the loop: a thread that reads could not be called off, and holds up the end."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:
        await asyncio.sleep(0)  # a device such as /dev/zero, which is always ready
        return
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
