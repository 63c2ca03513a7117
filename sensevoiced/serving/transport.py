"""One non-blocking Unix stream on the event loop: bytes and at most one descriptor in, bounded bytes out.

Knows nothing of messages.

asyncio's streams cannot receive descriptors, and socket.recv_fds drops its flags, so that descriptors would
leak into children.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import select
import socket
import struct
import termios
from typing import TYPE_CHECKING

from sensevoiced.descriptors import close_later
from sensevoiced.shortage import RETRY_MS
from svctl.wire import ProtocolError, WireError

if TYPE_CHECKING:
    from collections.abc import Callable

RECEIVE_BYTES = 64 * 2**10
"""Per recvmsg: what a Unix socket holds by default is about 200 KiB, and one connection's turn on the loop
should be short."""

HANG_UP_POLL_S = 0.5
"""How often a hang-up is looked for where there is no descriptor left to be told of it."""

_NONE_LEFT = "The daemon has no descriptor left to receive the file's."
_NONE_TAKEN = "Too many files are on file systems that do not answer when they are closed."
_MAX_FDS = 253
"""With one message (SCM_MAX_FD). There is room for all of them although one is taken: what does not fit the
kernel drops in the thread that asked, and dropping the last reference to a socket that lingers may block."""
_ROOM = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)


class ConnectionLost(Exception):
    """The peer is gone, or does not read; there is nobody to answer."""


class Stream:
    """A connected socket.

    Reading happens only when asked for, so whoever stops asking holds the peer back.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        owner: int,
        max_write_buffer_bytes: int,
        write_timeout_s: float,
        takes_descriptors: Callable[[], bool] = lambda: True,
    ) -> None:
        """Take the socket of the user `owner` over; `takes_descriptors` is asked before each receive."""
        sock.setblocking(False)
        # An urgent byte may carry descriptors too: passed over, it would be dropped with them right here.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self._sock = sock
        self._fd = sock.fileno()
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._takes_descriptors = takes_descriptors
        self._max_out = max_write_buffer_bytes
        self._write_timeout_s = write_timeout_s
        self._out = bytearray()
        self._writing = False
        """The loop tells us when the peer takes more: not where there was no memory to ask it to."""
        self._room = asyncio.Event()
        self._lost = False

    async def receive(self) -> tuple[bytes, int | None]:
        """Wait for bytes, and the descriptor that came with them; `b""` at the end of the stream.

        The caller owns the descriptor. Raises ProtocolError for more than one, WireError `busy` where we had
        none free to receive it or take none, and ConnectionLost where the peer has gone.
        """
        while True:
            size = RECEIVE_BYTES
            try:
                if not self._takes_descriptors():
                    # A look without room tells whether one came. It stays where it is until the connection
                    # goes, and nothing is received that was not looked at.
                    seen, _, flags, _ = self._sock.recvmsg(size, 0, socket.MSG_PEEK)
                    if flags & socket.MSG_CTRUNC:
                        raise WireError("busy", _NONE_TAKEN, retry_after_ms=RETRY_MS)
                    size = len(seen)
                data, ancillary, flags, _ = self._sock.recvmsg(size, _ROOM, socket.MSG_CMSG_CLOEXEC)
            except (BlockingIOError, InterruptedError):
                await self._readable()
                continue
            except OSError:
                raise ConnectionLost from None
            descriptors = _descriptors(ancillary)
            truncated = bool(flags & socket.MSG_CTRUNC)
            if len(descriptors) + truncated > 1:
                for fd in descriptors:
                    close_later(fd, self._owner)
                raise ProtocolError("protocol", "More than one descriptor came with one message.")
            if truncated:
                raise WireError("busy", _NONE_LEFT, retry_after_ms=RETRY_MS)
            return data, descriptors[0] if descriptors else None

    async def _readable(self) -> None:
        ready = self._loop.create_future()
        self._loop.add_reader(self._fd, _settle, ready)
        try:
            await ready
        finally:
            self._loop.remove_reader(self._fd)

    async def send(self, frame: bytes) -> None:
        """Queue a frame, waiting while the buffer is full.

        Raises ConnectionLost where the peer has gone, or has left the buffer full for the write timeout.
        """
        while len(self._out) + len(frame) > self._max_out and not self._lost:
            self._room.clear()
            try:
                async with asyncio.timeout(self._write_timeout_s):
                    await self._room.wait()
            except TimeoutError:
                self._lose()
        self._push(frame)
        if self._lost:
            raise ConnectionLost

    def offer(self, frame: bytes) -> None:
        """Queue a frame that may as well be dropped, as the next one tells the same and more.

        Never takes the last half of the buffer.
        """
        if len(self._out) + len(frame) <= self._max_out // 2:
            self._push(frame)

    def _push(self, frame: bytes) -> None:
        if self._lost:
            return
        self._out += frame
        if not self._writing:
            self._flush()
            if self._out:
                self._loop.add_writer(self._fd, self._flush)
                self._writing = True

    def _flush(self) -> None:
        try:
            while self._out:
                with memoryview(self._out) as view:
                    sent = self._sock.send(view)
                del self._out[:sent]
        except (BlockingIOError, InterruptedError):
            pass
        except (OSError, MemoryError):
            # Bytes that went and cannot be taken off the buffer would go twice.
            self._lose()
            return
        if not self._out:
            self._stop_writing()
        self._room.set()

    def _stop_writing(self) -> None:
        if self._writing:
            self._loop.remove_writer(self._fd)
            self._writing = False

    def _lose(self) -> None:
        self._lost = True
        self._out.clear()
        self._room.set()
        self._stop_writing()
        # Whoever waits in `receive` learns of it as an end of stream.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    async def hung_up(self) -> None:
        """Wait until the peer has closed both directions, without reading and without minding a half-close.

        An epoll that asks for nothing still reports EPOLLHUP, and is itself readable then: no polling, no
        byte consumed.
        """
        try:
            watch = select.epoll()
        except OSError:
            # The shortage is ours, and says nothing of the peer; poll() needs no descriptor.
            look = select.poll()
            look.register(self._fd, 0)
            while not look.poll(0):  # noqa: ASYNC110 - see HANG_UP_POLL_S
                await asyncio.sleep(HANG_UP_POLL_S)
            return
        with watch:
            watch.register(self._fd, 0)
            gone = self._loop.create_future()
            self._loop.add_reader(watch.fileno(), _settle, gone)
            try:
                await gone
            finally:
                self._loop.remove_reader(watch.fileno())

    def stop_reading(self) -> None:
        """Let `receive` return what has arrived and then the end of the stream.

        The peer can still be answered.
        """
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    async def finish(self, timeout_s: float) -> None:
        """Give the peer up to `timeout_s` to take what is queued for it, then close."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._out and not self._lost:
                    self._room.clear()
                    await self._room.wait()
        self.close()

    def close(self) -> None:
        """Close at once; what is queued is lost."""
        self._lost = True
        self._out.clear()
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._fd)
            self._stop_writing()
            # Nothing is added to what is unread from here on, and the peer knows, however long closing takes.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            if _unread(self._sock):
                # With descriptors perhaps, of which this may be the last close.
                close_later(self._sock.detach(), self._owner)
            else:
                self._sock.close()


def _unread(sock: socket.socket) -> bool:
    """Say whether anything waits to be received, or may: where memory is lacking nobody knows."""
    try:
        return any(fcntl.ioctl(sock, termios.FIONREAD, bytes(struct.calcsize("i"))))
    except MemoryError:
        return True


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()
