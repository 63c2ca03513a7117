"""Turns one stream into messages and the descriptors that came with them, within deadlines.

Does not act on any message.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sensevoiced.descriptors import close_later
from svctl.framing import FrameReader
from svctl.wire import MAX_FRAME_BYTES, ProtocolError, WireError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from sensevoiced.config import ServingConfig
    from sensevoiced.serving.transport import Stream

TURN_S = 0.001
"""Time that one connection's messages take before the others get their turn. By the clock, because a message
costs what its length and its kind make it cost; a single one costs a few ms at most (`framing.decode`)."""

_STRAY = "A descriptor came with a message that takes none."


class Inbox:
    """What one peer sends.

    While nobody asks for the next message nothing is read, which holds the peer back.
    """

    def __init__(
        self, stream: Stream, limits: Callable[[], ServingConfig], working: Callable[[], bool], owner: int
    ) -> None:
        """`working` says whether it is our turn: who waits for us is not idle. `owner` is its user."""
        self._owner = owner
        self._stream = stream
        self._limits = limits
        self._working = working
        self._loop = asyncio.get_running_loop()
        self._hello_by_s = self._loop.time() + limits().hello_timeout_s
        self._reader = FrameReader(requests=True)
        self._greeted = False
        self._frame_began_s: float | None = None
        self._fds: list[int] = []
        self._turn_began_s = self._idle_since_s = self._loop.time()

    def greet(self) -> None:
        """The peer has said hello: larger frames and other deadlines from here on."""
        self._greeted = True
        self._reader.max_frame_bytes = MAX_FRAME_BYTES

    def restart_idle(self) -> None:
        """A request has ended: the peer has the whole idle time for its next one."""
        self._idle_since_s = self._loop.time()

    def take_fd(self) -> int | None:
        """The descriptor of the message at hand, if one came; the caller owns it."""
        return self._fds.pop(0) if self._fds else None

    def close(self) -> None:
        """Give back descriptors that nobody took, and bytes that are no message yet."""
        while (fd := self.take_fd()) is not None:
            close_later(fd, self._owner)
        self._reader = FrameReader(requests=True)

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        """Messages, unchecked, until the peer ends its side.

        Raises ProtocolError, WireError and ConnectionLost.
        """
        while True:
            data, fd = await self._receive()
            if not data:
                return
            carried_over = bool(self._fds)
            if fd is not None:
                self._keep(fd)
            was_partial, completed = self._reader.partial, False
            self._reader.feed(data)
            for message in self._reader.messages():
                held = len(self._fds)
                yield message
                # The kernel never joins bytes past a descriptor: its frame began in the chunk that
                # brought it, and so is complete at the latest with the first one of the next chunk.
                if carried_over and not completed and held == len(self._fds):
                    raise ProtocolError("protocol", _STRAY)
                completed = True
                if self._loop.time() - self._turn_began_s >= TURN_S:
                    # What has arrived in bulk never makes us wait, and so would never let others have a turn.
                    await asyncio.sleep(0)
                    self._turn_began_s = self._loop.time()
            if len(self._fds) > (1 if self._reader.partial else 0):
                raise ProtocolError("protocol", _STRAY)
            if not self._reader.partial:
                self._frame_began_s = None
            elif completed or not was_partial:
                self._frame_began_s = self._loop.time()

    def _keep(self, fd: int) -> None:
        try:
            self._fds.append(fd)
        except MemoryError:
            close_later(fd, self._owner)
            raise

    async def _receive(self) -> tuple[bytes, int | None]:
        """Wait for bytes within the deadline that applies now. Raises WireError `timeout`."""
        self._idle_since_s = self._loop.time()
        while True:
            limits = self._limits()
            if not self._greeted:
                deadline_s, late = self._hello_by_s, f"No hello came within {limits.hello_timeout_s:g} s."
            elif self._frame_began_s is not None:
                deadline_s = self._frame_began_s + limits.frame_timeout_s
                late = f"A message was not complete within {limits.frame_timeout_s:g} s."
            else:
                deadline_s = self._idle_since_s + limits.idle_timeout_s
                late = (
                    f"Nothing was asked for {limits.idle_timeout_s:g} s: connect again; a ping now and then "
                    f"keeps a connection."
                )
            try:
                async with asyncio.timeout_at(deadline_s):
                    return await self._stream.receive()
            except TimeoutError:
                if self._greeted and self._frame_began_s is None:
                    if self._working():
                        self.restart_idle()
                    if self._idle_since_s + self._limits().idle_timeout_s > self._loop.time():
                        continue
                raise WireError("timeout", late) from None
