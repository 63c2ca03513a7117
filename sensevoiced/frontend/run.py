"""One recording's way through a child, seen from the parent: an async iterator of utterances.

Must never import numpy or torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING, Any, Protocol, Self

from sensevoiced.frontend.channel import Closed, read_message
from sensevoiced.jobs import Decoded, JobError, Utterance

if TYPE_CHECKING:
    from sensevoiced.config import FrontendConfig
    from sensevoiced.frontend.child import Child
    from sensevoiced.jobs import Options

REAP_S = 5.0
"""A child that closed its job without a last word is ending; the kernel may need a moment to write off its
memory."""
FLOAT_BYTES = 4
MAX_CHILDREN_TRIED = 5
"""Children that may turn out to have ended when a job is handed to them, before something is called wrong."""


class Children(Protocol):
    """What a run needs of the pool."""

    config: FrontendConfig

    async def acquire(self) -> Child:
        """Wait for a child that can take a job."""

    def crashed(self, child: Child) -> JobError:
        """Count a child that ended in a job, and say what its client is told."""

    def timed_out(self, child: Child) -> None:
        """Count and kill a child from which nothing came."""

    def called_off(self, child: Child) -> None:
        """See to it that a child whose job was called off becomes free, or is replaced."""


class _Gone(JobError):
    """The child ended before it took the job: no fault of the recording."""


class FrontendRun:
    """One recording in work: iterate it once; `decoded` is there after the end.

    Nothing is read ahead of the consumer.
    """

    def __init__(self, pool: Children, source_fd: int, options: Options, label: str) -> None:
        """Own `source_fd` from now on; a child is asked for with the first step."""
        self._pool = pool
        self._source_fd: int | None = source_fd
        self._options = options
        self._label = label
        self._child: Child | None = None
        self._sock: socket.socket | None = None
        self._acquiring: asyncio.Task[Child] | None = None
        self._reading = False
        self._cancelled = False
        self._begun = False
        """The child has taken the job: what ends it now is held against the recording."""
        self._settled = False
        """The child has said its last word on the job."""
        self._ended = False
        self._found = 0
        self.decoded: Decoded | None = None
        """The front end's last word; None until the last utterance has been given."""
        self.decoded_s = 0.0
        """Seconds of audio decoded when the child last spoke: progress."""

    def __repr__(self) -> str:
        """Name the recording and how far it is."""
        return f"<FrontendRun {self._label!r:.80} {self.decoded_s:.1f} s>"

    def __aiter__(self) -> Self:
        """Give itself: a recording goes through once."""
        return self

    async def __anext__(self) -> Utterance:
        """Give the next utterance as soon as its child has found it.

        Raises JobError: bad_input, too_long, timeout (nothing came for decode_timeout_s), internal,
        cancelled, shutting_down.
        """
        if self._ended:
            raise StopAsyncIteration
        self._reading = True
        try:
            utterance = await self._next()
        except BaseException:
            self._end()
            raise
        finally:
            self._reading = False
        if utterance is None:
            self._end()
            raise StopAsyncIteration
        return utterance

    def cancel(self) -> None:
        """Call the job off, also while another task waits in it: that one gets JobError(cancelled)."""
        if self._ended:
            return
        self._cancelled = True
        if not self._reading:
            self._end()
        elif self._acquiring is not None:
            self._acquiring.cancel()
        elif self._sock is not None:
            # The reader wakes up by this and closes it: the event loop must not lose a socket it watches.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    async def aclose(self) -> None:
        """Call the job off if it is not at its end; every descriptor is closed. May be called twice."""
        self.cancel()

    def __del__(self) -> None:
        """Close what an abandoned run still holds."""
        self._close_descriptors()

    async def _next(self) -> Utterance | None:
        if self._child is None:
            await self._begin()
        while True:
            message, payload = await self._message()
            match message["type"]:
                case "utterance":
                    return self._utterance(message, payload)
                case "progress":
                    self.decoded_s = float(message["decoded_s"])
                case "done":
                    self._settled = True
                    del message["type"]
                    self.decoded = Decoded(**message)
                    self.decoded_s = self.decoded.duration_s
                    return None
                case "error":
                    self._settled = True
                    raise JobError(str(message["code"]), str(message["message"]))

    async def _message(self) -> tuple[dict[str, Any], memoryview]:
        """Read the child's next message, or say why none comes."""
        child, sock = self._child, self._sock
        if child is None or sock is None:
            raise JobError("cancelled", "The job was called off.")
        try:
            async with asyncio.timeout(self._pool.config.decode_timeout_s):
                return await read_message(asyncio.get_running_loop(), sock)
        except TimeoutError:
            self._pool.timed_out(child)
            raise self._timeout() from None
        except (Closed, ConnectionError):
            raise await self._broken_off(child) from None
        except ValueError as error:
            child.kill()
            raise JobError("internal", f"The front end answered with {error}.") from error

    async def _begin(self) -> None:
        """Find a child that takes the job: one may end, unnoticed yet, while it is idle."""
        for _ in range(MAX_CHILDREN_TRIED):
            child = await self._acquired()
            if self._source_fd is None:
                raise JobError("cancelled", "The job was called off.")
            self._sock, theirs = socket.socketpair()
            self._sock.setblocking(False)
            self._child = child
            with theirs, contextlib.suppress(OSError):
                child.give({"type": "job", "vad": self._options.vad}, self._source_fd, theirs.fileno())
            try:
                await self._message()
            except _Gone:
                self._sock.close()
                self._child = self._sock = None
                continue
            self._begun = True
            self._close_source()
            return
        raise JobError(
            "internal", "The processes that read audio end before they begin: see the daemon's log."
        )

    async def _acquired(self) -> Child:
        self._acquiring = asyncio.ensure_future(self._pool.acquire())
        try:
            return await self._acquiring
        except asyncio.CancelledError:
            if self._cancelled:
                raise JobError("cancelled", "The job was called off.") from None
            raise
        finally:
            self._acquiring = None

    def _utterance(self, message: dict[str, Any], payload: memoryview) -> Utterance:
        frames, dim = int(message["frames"]), int(message["dim"])
        if len(payload) != frames * dim * FLOAT_BYTES or message["index"] != self._found:
            if self._child is not None:
                self._child.kill()
            raise JobError("internal", "The front end sent features that do not fit their description.")
        self._found += 1
        self.decoded_s = float(message["decoded_s"])
        return Utterance(
            index=self._found - 1,
            start_s=float(message["start_s"]),
            end_s=float(message["end_s"]),
            features=bytes(payload),
            frames=frames,
            dim=dim,
        )

    async def _broken_off(self, child: Child) -> JobError:
        """Say why the job's socket ended without a last word."""
        if self._cancelled:
            return JobError("cancelled", "The job was called off.")
        try:
            await asyncio.wait_for(child.exited.wait(), REAP_S)
        except TimeoutError:
            self._pool.timed_out(child)
            return self._timeout()
        return self._pool.crashed(child) if self._begun else _Gone("internal", "The child had ended.")

    def _timeout(self) -> JobError:
        limit_s = self._pool.config.decode_timeout_s
        return JobError(
            "timeout", f"No audio came from the recording for {limit_s:g} s: its source may be stalled."
        )

    def _end(self) -> None:
        """Let go of everything; the child sees its socket close and drops the job."""
        self._ended = True
        self._close_descriptors()
        child = self._child
        if child is not None:
            child.settling = True
        if child is not None and not self._settled and not child.killed and not child.exited.is_set():
            self._pool.called_off(child)
        self._child = None

    def _close_source(self) -> None:
        if self._source_fd is not None:
            os.close(self._source_fd)
            self._source_fd = None

    def _close_descriptors(self) -> None:
        self._close_source()
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def crash_sentence(returncode: int | None, cpu_s: int) -> str:
    """Say how a decoder ended, in one sentence for the client whose recording it was."""
    if returncode == -signal.SIGXCPU:
        return f"Decoding this recording took more than {cpu_s} s of CPU, which is the limit."
    if returncode is not None and returncode < 0:
        return (
            f"The decoder crashed on this recording ({signal.Signals(-returncode).name}): it may be damaged."
        )
    return f"The decoder crashed on this recording (exit status {returncode}): it may be damaged."
