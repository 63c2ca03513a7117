"""Where a request's audio comes from.

A descriptor that was passed, a path of our own user's, or streamed bytes; never reads audio itself.

Every system call that a hostile file system could hang (open, fstat, close) runs on a thread of its own,
never on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import stat
import threading
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sensevoiced import threads
from sensevoiced.descriptors import close_later
from sensevoiced.jobs import JobError
from sensevoiced.shortage import RETRY_MS
from svctl.wire import WireError

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

MAX_HANGING, MAX_HANGING_PER_USER = 512, 32
"""Calls that were given up and have not returned: each holds a thread for as long as its file system hangs.
One user's file systems hold a sixteenth of them at most."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class _Call(Generic[_T]):
    """One call on a thread of its own, for a user, and where its result goes.

    Made on the event loop, run on the thread.
    """

    def __init__(self, owner: int, descriptor: Callable[[_T], int]) -> None:
        self.owner = owner
        self.over = False
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[_T] = self._loop.create_future()

    def run(self, work: Callable[[], _T]) -> None:
        """Do the work, and bring what came of it to the loop."""
        result: _T | None = None
        failure: Exception | None = None
        try:
            result = work()
        except (OSError, ValueError, JobError, MemoryError) as error:
            failure = error
        finally:
            hanging.over(self)
        # Where the loop is closed the process ends; without memory nobody hears of it, and who waits is told
        # `timeout`.
        with contextlib.suppress(RuntimeError):
            try:
                self._loop.call_soon_threadsafe(self._settle, result, failure)
            except MemoryError:
                self._unwanted(result)

    async def result(self) -> _T:
        """Wait for it; cancelled, what comes is closed."""
        try:
            return await self._future
        except asyncio.CancelledError:
            # The result may have come in the very turn in which we are cancelled.
            if self._future.done() and not self._future.cancelled() and self._future.exception() is None:
                self._unwanted(self._future.result())
            raise

    def _settle(self, result: _T | None, failure: Exception | None) -> None:
        if self._future.done():
            self._unwanted(result)
        elif result is not None:
            self._future.set_result(result)
        elif failure is not None:
            self._future.set_exception(failure)

    def _unwanted(self, result: _T | None) -> None:
        if result is not None:
            close_later(self._descriptor(result), self.owner)


class Hanging:
    """Calls that still run though nobody waits for them any more; safe from any thread.

    Those that are waited for need no limit of their own: admission limits their jobs.
    """

    def __init__(self) -> None:
        """None so far."""
        self._lock = threading.Lock()
        self._calls: set[_Call[Any]] = set()

    def __len__(self) -> int:
        """Count them."""
        with self._lock:
            return len(self._calls)

    def check(self, owner: int) -> None:
        """Raise WireError `busy` where there are too many for one more to be risked."""
        with self._lock:
            owners = [call.owner for call in self._calls]
        own = owners.count(owner)
        if len(owners) >= MAX_HANGING or own >= MAX_HANGING_PER_USER:
            sentence = (
                f"{len(owners)} files are on file systems that do not answer, {own} of them user {owner}'s."
            )
            raise WireError("busy", sentence, retry_after_ms=RETRY_MS)

    def given_up(self, call: _Call[Any]) -> None:
        """Count a call from here on, unless it is over."""
        with self._lock:
            if not call.over:
                self._calls.add(call)

    def over(self, call: _Call[Any]) -> None:
        """A call has returned."""
        with self._lock:
            call.over = True
            self._calls.discard(call)


hanging = Hanging()
"""Of the process, as threads are."""


async def on_thread(
    work: Callable[[], _T],
    timeout_s: float,
    descriptor: Callable[[_T], int],
    *,
    owner: int,
) -> _T:
    """Run `work` for the user `owner` on a new thread, for at most `timeout_s`.

    Raises JobError `timeout`, and WireError `busy` where too many hang already: `work` is not tried then.

    A thread of its own, not a pool's: calls that hang must neither take the turns of others nor hold up the
    exit of the process. Where nobody waits for the result any more, its `descriptor` is closed.
    """
    hanging.check(owner)
    call = _Call(owner, descriptor)
    try:
        async with asyncio.timeout(timeout_s):
            _start(call, work)
            return await call.result()
    except TimeoutError:
        raise JobError("timeout", f"The file's file system did not answer within {timeout_s:g} s.") from None
    finally:
        hanging.given_up(call)


def _start(call: _Call[_T], work: Callable[[], _T]) -> None:
    try:
        threads.start(call.run, work)
    except (RuntimeError, MemoryError):
        hanging.over(call)
        sentence = "The daemon can start no further thread."
        raise WireError("busy", sentence, retry_after_ms=RETRY_MS) from None


def examine(fd: int, owner: int) -> int:
    """Size in bytes of a readable regular file or memfd of the user `owner`.

    Anything else is closed, and JobError `bad_input` raised.
    """
    try:
        flags, found = fcntl.fcntl(fd, fcntl.F_GETFL), os.fstat(fd)
    except OSError as error:
        refusal = f"The descriptor cannot be used: {error.strerror}."
    else:
        if flags & os.O_PATH or flags & os.O_ACCMODE == os.O_WRONLY:
            refusal = "The descriptor is not open for reading."
        elif stat.S_ISREG(found.st_mode):
            return found.st_size
        else:
            kind = next((name for test, name in _KINDS if test(found.st_mode)), "of no kind that holds audio")
            refusal = f"Only regular files can be transcribed, and this is {kind}."
    told = JobError("bad_input", refusal)
    close_later(fd, owner)  # last: what else may fail here leaves the descriptor with the caller
    raise told


def open_path(path: str, owner: int) -> tuple[int, int]:
    """Open a file by name, for our own user `owner` only: (descriptor, size). Raises JobError.

    O_NONBLOCK, because opening a FIFO would wait for a writer; O_NOCTTY, because a terminal would become
    ours.
    """
    if not PurePath(path).is_absolute():
        raise JobError(
            "invalid_request", "path has to be absolute: the daemon's working directory is not yours."
        )
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        # Which of the two it was decides whether the same request can succeed later.
        code = "busy" if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM) else "not_found"
        raise JobError(code, f"The file cannot be opened: {error.strerror}.") from None
    except ValueError:
        raise JobError("not_found", "The file cannot be opened: its name holds a zero byte.") from None
    try:
        return fd, examine(fd, owner)
    except MemoryError:
        close_later(fd, owner)
        raise


class Upload:
    """Streamed audio on its way to the front end: bounded bytes here, then a pipe.

    The pipe's read end is the job's source. A reader that went away is no error here: the job's own end says
    why.
    """

    def __init__(self, max_bytes: int) -> None:
        """Make the pipe; `max_bytes` may wait on our side of it."""
        self._loop = asyncio.get_running_loop()
        self._max_bytes = max_bytes
        self._waiting = bytearray()
        self._finishing = False
        self._room = asyncio.Event()
        # The child's end blocks as children expect; ours does not: they are two open file descriptions.
        self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._write_fd, False)

    @property
    def complete(self) -> bool:
        """Whether the client has sent all of it."""
        return self._finishing

    @property
    def full(self) -> bool:
        """Whether the client should be held back."""
        return len(self._waiting) >= self._max_bytes

    def take_source(self) -> int:
        """The pipe's read end; the caller owns it from here on."""
        fd, self._read_fd = self._read_fd, -1
        return fd

    def feed(self, data: bytes) -> None:
        """Add audio; always taken, so ask `full` first."""
        if self._write_fd < 0:
            return
        idle = not self._waiting
        self._waiting += data
        if idle:
            self._flush()
            if self._waiting:
                self._loop.add_writer(self._write_fd, self._flush)

    def finish(self) -> None:
        """No audio will follow."""
        self._finishing = True
        if not self._waiting:
            self._end()

    async def room(self) -> None:
        """Wait until the upload is no longer full."""
        while self.full:
            self._room.clear()
            await self._room.wait()

    def close(self) -> None:
        """Drop what has not been handed on."""
        self._end()
        if self._read_fd >= 0:
            os.close(self._read_fd)
            self._read_fd = -1

    def _flush(self) -> None:
        try:
            while self._waiting:
                with memoryview(self._waiting) as view:
                    written = os.write(self._write_fd, view)
                del self._waiting[:written]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._end()
            return
        if not self._waiting:
            self._loop.remove_writer(self._write_fd)
            if self._finishing:
                self._end()
        if not self.full:
            self._room.set()

    def _end(self) -> None:
        self._waiting.clear()
        self._room.set()
        if self._write_fd >= 0:
            self._loop.remove_writer(self._write_fd)
            os.close(self._write_fd)
            self._write_fd = -1
