"""One recording's way through a child, seen from the parent: an async iterator of utterances.

Must never import numpy or torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from typing import TYPE_CHECKING, Protocol, Self

from sensevoiced.descriptors import close_later
from sensevoiced.frontend.answers import Begun, Found, Progress, interpret
from sensevoiced.frontend.channel import Closed, read_message
from sensevoiced.jobs import Decoded, JobError

if TYPE_CHECKING:
    from sensevoiced.config import FrontendConfig
    from sensevoiced.frontend.answers import Answer, Expected
    from sensevoiced.frontend.child import Child
    from sensevoiced.jobs import Options, Utterance

REAP_S = 5.0
"""A child that closed its job without a last word is ending; the kernel may need a moment to write off its
memory."""
MAX_CHILDREN_TRIED = 5
"""Children that may turn out to have ended when a job is handed to them, before something is called wrong."""


class Children(Protocol):
    """What a run needs of the pool."""

    config: FrontendConfig
    expected: Expected

    def ask(self, owner: int) -> asyncio.Future[Child]:
        """Queue for a child that can take a job of this owner's."""

    def lack(self, owner: int) -> str:
        """What keeps this owner's jobs from a child: `share` or `process`."""

    def withdraw(self, asked: asyncio.Future[Child]) -> None:
        """Leave the queue, or give back the child that came of it, which has been handed nothing."""

    def distrusted(self, child: Child, error: ValueError) -> JobError:
        """Kill a child that sent what ours never send, and say what its client is told."""

    def crashed(self, child: Child) -> JobError:
        """Count a child that ended in a job, and say what its client is told."""

    def timed_out(self, child: Child) -> None:
        """Count and kill a child from which nothing came."""

    def called_off(self, child: Child, job: int) -> None:
        """See to it that a child whose job was called off becomes free, or is replaced."""

    def finished(self, child: Child, job: int) -> None:
        """See to it that a child that said its last word becomes free, or is replaced."""


class _Gone(JobError):
    """The child ended before it took the job: no fault of the recording."""


class FrontendRun:
    """One recording in work: iterate it once; `decoded` is there after the end.

    Nothing is read ahead of the consumer.
    """

    def __init__(self, pool: Children, source_fd: int, options: Options, label: str, owner: int) -> None:
        """Own `source_fd` once made; a child is asked for, in `owner`'s name, with the first step."""
        self._source_fd: int | None = None
        self._sock: socket.socket | None = None
        self._pool = pool
        self._options = options
        self._label = label
        self._owner = owner
        self._child: Child | None = None
        self._job = 0
        """Which of the child's jobs this is: it may be at another one while we still read what it said."""
        self._asked: asyncio.Future[Child] | None = None
        self._reading = False
        self._cancelled = False
        self._settled = False
        """The child has said its last word on the job."""
        self._ended = False
        self._found = 0
        self.decoded: Decoded | None = None
        """The front end's last word; None until the last utterance has been given."""
        self.decoded_s = 0.0
        """Seconds of audio decoded when the child last spoke: progress."""
        self.begun_s: float | None = None
        """When a child took the job, on time.monotonic()."""
        self._source_fd = source_fd  # last: where what comes before fails, it is still the caller's

    def __repr__(self) -> str:
        """Name the recording and how far it is."""
        return f"<FrontendRun {self._label!r:.80} {self.decoded_s:.1f} s>"

    @property
    def waits_for(self) -> str:
        """What it waits for before it can begin: `share`, `process`, or "" where it waits for neither."""
        return self._pool.lack(self._owner) if self._asked is not None and not self._asked.done() else ""

    def __aiter__(self) -> Self:
        """Give itself: a recording goes through once."""
        return self

    async def __anext__(self) -> Utterance:
        """Give the next utterance as soon as its child has found it.

        Raises JobError: bad_input, too_long, timeout (nothing came for decode_timeout_s), busy (no
        descriptors left), internal, cancelled, shutting_down.
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
        elif self._asked is not None:
            # Without effect on one that is answered: the reader looks whether it was called off.
            self._asked.cancel()
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
            match await self._answer():
                case Found(utterance=utterance, decoded_s=decoded_s):
                    self._found += 1
                    self.decoded_s = decoded_s
                    return utterance
                case Progress(decoded_s=decoded_s):
                    self.decoded_s = decoded_s
                case Decoded() as decoded:
                    self._settled = True
                    self.decoded = decoded
                    self.decoded_s = decoded.duration_s
                    return None
                case JobError() as error:
                    self._settled = True
                    raise error
                case Begun() if self._child is not None:
                    raise self._pool.distrusted(self._child, ValueError("it began twice"))

    async def _answer(self) -> Answer:
        """Read the child's next message, or say why none comes."""
        child, sock = self._child, self._sock
        if child is None or sock is None:
            raise _called_off()
        try:
            async with asyncio.timeout(self._pool.config.decode_timeout_s):
                message, payload = await read_message(asyncio.get_running_loop(), sock)
            return interpret(message, payload, self._found, self._pool.expected)
        except TimeoutError:
            self._pool.timed_out(child)
            raise self._timeout() from None
        except (Closed, ConnectionError):
            raise await self._broken_off(child) from None
        except ValueError as error:
            raise self._pool.distrusted(child, error) from error

    async def _begin(self) -> None:
        """Find a child that takes the job: one may end, unnoticed yet, while it is idle."""
        for _ in range(MAX_CHILDREN_TRIED):
            child, theirs = await self._acquired()
            with theirs:
                self._hand_over(child, theirs)
            try:
                answer = await self._answer()
            except _Gone:
                self._close_sock()
                self._child = None
                continue
            if not isinstance(answer, Begun):
                raise self._pool.distrusted(child, ValueError("it did not say that it began"))
            self.begun_s = time.monotonic()
            self._close_source()
            return
        raise JobError(
            "internal", "The processes that read audio end before they begin: see the daemon's log."
        )

    async def _acquired(self) -> tuple[Child, socket.socket]:
        """Wait for a child and make the job's socket; from here on both are ours, or neither.

        No step may lie between the child's coming and our taking it: whoever is cancelled there loses it.
        """
        self._asked = asked = self._pool.ask(self._owner)
        try:
            child = await asked
            self._go_on()
            try:
                self._sock, theirs = socket.socketpair()
            except OSError as error:
                raise JobError(
                    "busy", "The daemon has no descriptor left for this recording: try again in a moment."
                ) from error
        except BaseException as error:
            self._pool.withdraw(asked)
            if self._cancelled and isinstance(error, asyncio.CancelledError):
                raise _called_off() from None
            raise
        finally:
            self._asked = None
        self._child = child
        return child, theirs

    def _go_on(self) -> None:
        if self._cancelled or self._source_fd is None:
            raise _called_off()

    def _hand_over(self, child: Child, theirs: socket.socket) -> None:
        if self._sock is None or self._source_fd is None:
            raise _called_off()
        self._sock.setblocking(False)
        try:
            child.give(self._job_message(), self._source_fd, theirs, self._sock)
        except (OSError, MemoryError):
            # It is ending, cannot be reached, or knows nothing of a job it counts as busy with: either way it
            # is replaced, and the next one is asked.
            child.kill()
        self._job = child.jobs

    def _job_message(self) -> dict[str, object]:
        options = self._options
        part = {"channels": options.channels, "start_s": options.start_s, "duration_s": options.duration_s}
        return {"type": "job", "vad": options.vad, "part": part}

    async def _broken_off(self, child: Child) -> JobError:
        """Say why the job's socket ended without a last word."""
        if self._cancelled:
            return _called_off()
        try:
            await asyncio.wait_for(child.exited.wait(), REAP_S)
        except TimeoutError:
            self._pool.timed_out(child)
            return self._timeout()
        if self.begun_s is None:
            return _Gone("internal", "The child had ended.")
        # It has taken the job: what ends it now is held against the recording.
        return self._pool.crashed(child)

    def _timeout(self) -> JobError:
        limit_s = self._pool.config.decode_timeout_s
        return JobError(
            "timeout", f"No audio came from the recording for {limit_s:g} s: its source may be stalled."
        )

    def _end(self) -> None:
        """Let go of everything; the child sees its socket close and drops the job."""
        self._ended = True
        self._close_descriptors()
        child, self._child = self._child, None
        if child is not None and not child.killed and not child.exited.is_set():
            (self._pool.finished if self._settled else self._pool.called_off)(child, self._job)

    def _close_source(self) -> None:
        if self._source_fd is not None:
            close_later(self._source_fd, self._owner)
            self._source_fd = None

    def _close_descriptors(self) -> None:
        self._close_source()
        self._close_sock()

    def _close_sock(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _called_off() -> JobError:
    return JobError("cancelled", "The job was called off.")


def crash_sentence(returncode: int | None, cpu_s: int) -> str:
    """Say how a decoder ended, in one sentence for the client whose recording it was."""
    if returncode == -signal.SIGXCPU:
        return (
            f"Decoding this recording took more than {cpu_s} s of CPU (for each channel with `split`), "
            "which is the limit: cut it into shorter ones."
        )
    if returncode is not None and returncode < 0:
        known = -returncode in set(signal.Signals)
        name = signal.Signals(-returncode).name if known else f"signal {-returncode}"
        return f"The decoder crashed on this recording ({name}): it may be damaged."
    return f"The decoder crashed on this recording (exit status {returncode}): it may be damaged."
