"""Descriptors as readable objects: a file read at its own offset, a stream that can be called off.

Must never open a path.

libsndfile and libav both read through these objects, so neither ever sees a name it could open something else
with.
"""

from __future__ import annotations

import io
import os
import select
import stat
import sys
from typing import TYPE_CHECKING, Protocol

from sensevoiced.frontend.wav import WAV_HEAD_BYTES, is_wav, promised_bytes
from sensevoiced.jobs import JobError

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

STREAM_READ_BYTES = 64 * 2**10
"""What one read of a pipe asks for: a pipe's own capacity."""


OGG_PAGE, OGG_PAGE_BYTES = b"OggS", 65_307
"""How a page of an Ogg begins, and how long one can be (RFC 3533)."""


class Stopped(Exception):
    """The job was called off while its child was waiting or working."""


class Source(Protocol):
    """What a decoder reads from."""

    name: str
    """What libav is told instead of a path: without an extension, so that only the content decides."""

    @property
    def failure(self) -> Exception | None:
        """Why reading ended early, if it did.

        Decoders only see an end: exceptions do not pass through them safely.
        """

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes; empty at the end."""


class _Seekable(io.RawIOBase):
    """What decoders ask of everything they may go back in."""

    def __init__(self) -> None:
        super().__init__()
        self._position = 0
        self.failure: Exception | None = None

    def readable(self) -> bool:
        """Say yes: reading is all there is."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def tell(self) -> int:
        """Give the position of this object."""
        return self._position

    def _seek(self, offset: int, whence: int, size: int) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: size}[whence]
        self._position = max(0, base + offset)
        return self._position


class FileSource(_Seekable):
    """A regular file or memfd, read with pread.

    The descriptor's offset, which its sender shares, is not touched.
    """

    name = "recording"

    def __init__(self, fd: int) -> None:
        """Borrow `fd` (the owner closes it).

        The size is what it is now: a file that shrinks later just ends early, and what it grows by does not
        belong to the recording, which otherwise might never end.
        """
        super().__init__()
        self._fd = fd
        self.size = os.fstat(fd).st_size

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill `buffer` from the current position; 0 at the end or when the file cannot be read."""
        left = max(0, self.size - self._position)
        try:
            count = os.preadv(self._fd, [memoryview(buffer)[:left]], self._position)
        except OSError as error:
            self.failure = error
            return 0
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position of this object only."""
        return self._seek(offset, whence, self.size)

    def tail(self, size: int) -> bytes:
        """Give the last `size` bytes."""
        self.seek(max(0, self.size - size))
        return self.read(size) or b""


class StreamSource:
    """A pipe or socket, read as it comes; called off when `stop_fd` becomes readable or hangs up."""

    name = "stream"

    def __init__(self, fd: int, stop_fd: int | None, on_bytes: Callable[[], None] = lambda: None) -> None:
        """Borrow both descriptors; `on_bytes` is called for whatever comes, and calls off by an OSError."""
        self._fd = fd
        self._stop_fd = stop_fd
        self._on_bytes = on_bytes
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        if stop_fd is not None:
            self._poll.register(stop_fd, select.POLLIN)
        self.failure: Exception | None = None

    def read(self, size: int = -1, /) -> bytes:
        """Wait for bytes and read what is there, at most `size`; empty at the end, and after a failure."""
        size = STREAM_READ_BYTES if size < 0 else size
        while self.failure is None:
            ready = [fd for fd, _ in self._poll.poll()]
            if self._stop_fd in ready:
                self.failure = Stopped()
                break
            try:
                part = os.read(self._fd, size)
            except BlockingIOError:
                continue
            except OSError as error:
                self.failure = error
                break
            if part:
                self._tell()
            return part if self.failure is None else b""
        return b""

    def _tell(self) -> None:
        try:
            self._on_bytes()
        except OSError:
            # Nobody listens any more; the decoder above us must see an end, not an exception.
            self.failure = Stopped()


class SpooledSource(_Seekable):
    """A stream kept in memory so that a decoder may go back: MP4 often has its index at the end. Bounded."""

    name = "stream"

    def __init__(self, head: bytes, stream: StreamSource, max_bytes: int) -> None:
        """Begin with what has been read already."""
        super().__init__()
        self._held = bytearray(head)
        self._stream = stream
        self._max_bytes = max_bytes

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill `buffer`, waiting for the stream where needed."""
        view = memoryview(buffer)
        self._hold(self._position + len(view))
        part = self._held[self._position : self._position + len(view)]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move within the recording; from its end only after all of it has come."""
        if whence == os.SEEK_END:
            self._hold(sys.maxsize)
        return self._seek(offset, whence, len(self._held))

    def _hold(self, size: int) -> None:
        while len(self._held) < size and self.failure is None:
            part = self._stream.read()
            if not part:
                self.failure = self._stream.failure
                return
            self._held += part
            if len(self._held) > self._max_bytes:
                self._held.clear()
                self.failure = JobError(
                    "too_long",
                    "A container of this kind has to be held in memory when it is streamed, and more than "
                    f"{self._max_bytes // 2**20} MiB came: send it as a file, or stream WAV or FLAC.",
                )


class HeadedStream:
    """A stream whose first bytes have been looked at already; it remembers what tells its end."""

    name = "stream"

    def __init__(self, head: bytes, stream: StreamSource, *, keeps_bytes: int = 0) -> None:
        """Give `head` first, then what the stream brings; remember the last `keeps_bytes` of both."""
        self.is_wav = is_wav(head)
        self._head = head
        self._stream = stream
        self._keeps_bytes = keeps_bytes
        self._tail = bytearray()
        self._begin = bytearray()
        self._count = 0

    @property
    def failure(self) -> Exception | None:
        """Why the stream ended early, if it did."""
        return self._stream.failure

    def read(self, size: int = -1, /) -> bytes:
        """Read as StreamSource does."""
        if self._head:
            part = self._head if size < 0 else self._head[:size]
            self._head = self._head[len(part) :]
        else:
            part = self._stream.read(size)
        self._count += len(part)
        if self.is_wav and len(self._begin) < WAV_HEAD_BYTES:
            self._begin += part
        if self._keeps_bytes:
            self._tail += part
            del self._tail[: -self._keeps_bytes]
        return part

    def tail(self, size: int) -> bytes:
        """Give the last `size` bytes that were read, or as many as were kept."""
        return bytes(self._tail[-size:])

    @property
    def breaks_off(self) -> bool:
        """Whether a WAV has given less than its header promises, once its end has come."""
        return self.is_wav and self._count < (promised_bytes(bytes(self._begin)) or 0)

    @property
    def has_header(self) -> bool:
        """Whether it is a WAV whose header is there whole."""
        return self.is_wav and promised_bytes(bytes(self._begin)) is not None


def open_source(
    fd: int, *, stop_fd: int | None, max_spool_bytes: int, on_bytes: Callable[[], None] = lambda: None
) -> FileSource | SpooledSource | HeadedStream:
    """Make a source of a descriptor.

    Regular files and memfds by pread, pipes and stream sockets as they come; `on_bytes` hears of what a
    stream brings (see StreamSource).

    Raises JobError(bad_input) for anything else (directories, devices, ...), for a descriptor that cannot be
    read, and for nothing at all.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        try:
            head = os.pread(fd, 1, 0)
        except OSError as error:
            raise JobError(
                "bad_input", f"The recording cannot be read: {os.strerror(error.errno or 0)}."
            ) from error
        if not head:
            raise JobError("bad_input", "The recording is empty (0 bytes).")
        return FileSource(fd)
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        raise JobError(
            "bad_input", "The recording is neither a file nor a stream: give a regular file or a pipe."
        )
    stream = StreamSource(fd, stop_fd, on_bytes)
    head = stream.read()
    while head and len(head) < _HEAD_BYTES and (more := stream.read()):
        head += more
    if isinstance(stream.failure, OSError):
        raise JobError(
            "bad_input", f"The stream cannot be read: {os.strerror(stream.failure.errno or 0)}."
        ) from stream.failure
    if stream.failure is not None:
        raise stream.failure
    if not head:
        raise JobError("bad_input", "The stream is empty: no byte of audio came.")
    if head[4:8] == b"ftyp":
        return SpooledSource(head, stream, max_spool_bytes)
    # The end of an Ogg is told by its last page alone, which has gone by when it is asked for.
    return HeadedStream(head, stream, keeps_bytes=OGG_PAGE_BYTES if head.startswith(OGG_PAGE) else 0)


_HEAD_BYTES = 12
"""What tells an MP4 from the rest."""
