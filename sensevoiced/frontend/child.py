"""One front-end child seen from the parent: starting it, handing it a job, noticing its end.

Must never import numpy or torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensevoiced import threads
from sensevoiced.frontend.channel import MAX_CONTROL_BYTES, pack, unpack
from sensevoiced.metrics import resident_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_ENVIRONMENT = {
    # One core each: the pool scales by children, and threads of one would only take turns with the others'.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # Two arenas instead of eight per core: freed blocks go back, and RLIMIT_AS is not spent on reservations.
    "MALLOC_ARENA_MAX": "2",
    # Blocks of audio and their features come from the heap and stay in it: fresh pages from the kernel for
    # every array of a few hundred KB cost as much as the features themselves.
    "MALLOC_MMAP_THRESHOLD_": str(16 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**20),
    "LC_ALL": "C.UTF-8",
    "PYTHONPATH": str(_PACKAGE_ROOT),
}
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "TZ", "PYTHONDONTWRITEBYTECODE")
"""Nothing else of the daemon's environment goes to a process that reads strangers' bytes."""


class Child:
    """A front-end process and the two descriptors that tell of it (control socket and pidfd)."""

    def __init__(
        self,
        setup: Mapping[str, Any],
        *,
        on_idle: Callable[[Child], None],
        on_exit: Callable[[Child], None],
    ) -> None:
        """Start the process; `on_idle` is called when it can take a job, `on_exit` once when it has ended.

        Raises OSError and MemoryError, and nothing is left then.
        """
        self._loop = asyncio.get_running_loop()
        self._on_idle = on_idle
        self._on_exit = on_exit
        self.failure: str | None = None
        """Why it could not start, or ended, in its own words."""
        self.ready = False
        self.jail: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        """What it says it is closed in by, and by what not and why; told with its readiness."""
        self.jobs = 0
        """Jobs handed to it so far."""
        self.busy = False
        self._answers: socket.socket | None = None
        """Our end of its last job's socket."""
        self.owner: int | None = None
        """In whose name it was lent; None while nobody has it. The pool's own note."""
        self.killed = False
        """It was told to end at once; what it still says does not count."""
        self.settling = False
        """Its job is over, and it will say that it is free in a moment."""
        self.idle_since_s = time.monotonic()
        self.exited = asyncio.Event()
        self._pidfd = -1
        process: subprocess.Popen[bytes] | None = None
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._control.setblocking(False)
                self._loop.add_reader(self._control, self._read_control)
                told = pack(setup)
                self._process = process = _start(theirs)
            self._pidfd = os.pidfd_open(process.pid)
            self._loop.add_reader(self._pidfd, self._reap)
            self._tell(told)
        except BaseException:
            self._undo(process)
            raise

    def _tell(self, setup: bytes) -> None:
        try:
            self._control.send(setup)
        except OSError:
            # It has ended already, or would wait for ever: its end is told as any other.
            self.kill()

    def _undo(self, process: subprocess.Popen[bytes] | None) -> None:
        """Leave nothing of a start that failed on its way."""
        self._loop.remove_reader(self._control)
        self._control.close()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        if process is not None:
            process.kill()
            # Off the loop: one that a file system holds up in exec ends when that answers. Where there is no
            # thread, `subprocess` sees to it at the next start.
            with contextlib.suppress(RuntimeError, MemoryError):
                threads.start(process.wait)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    def give(
        self, message: Mapping[str, Any], recording: int, job: socket.socket, answers: socket.socket
    ) -> None:
        """Hand a job and copies of two descriptors to this idle child; `answers` is the other end of `job`.

        Raises OSError when the child is gone.
        """
        self.busy = True
        self.jobs += 1
        self._answers = answers
        socket.send_fds(self._control, [pack(message)], [recording, job.fileno()])

    def end(self) -> None:
        """Ask an idle child to end: it reads an end of file."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """End the process now; `on_exit` follows."""
        self.killed = True
        if self._process.returncode is None:
            # The pidfd cannot mean another process, as a reused number could.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def rss_bytes(self) -> int:
        """Resident memory; 0 when the process has ended."""
        return resident_bytes(self.pid)

    def _read_control(self) -> None:
        try:
            data = self._control.recv(MAX_CONTROL_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # The end itself is told by the pidfd.
            self._loop.remove_reader(self._control)
            return
        try:
            message = unpack(data)
        except (ValueError, MemoryError):
            # What it said is lost, and it will not say again that it is free.
            self.kill()
            return
        if message["type"] == "failed":
            self.failure = str(message.get("message"))
            return
        if self.killed:
            return
        in_turn = message["type"] == ("idle" if self.ready else "ready") and self.ready == self.busy
        if not in_turn or self._has_a_job_open():
            # Out of turn: one that was taken over could ask for several jobs at once.
            self.kill()
            return
        if not self.ready:
            self.jail = (_strings(message.get("jail")), _strings(message.get("missing")))
        self.ready = True
        self.busy = self.settling = False
        self.idle_since_s = time.monotonic()
        self._on_idle(self)

    def _has_a_job_open(self) -> bool:
        """Say whether both it and we still hold the socket of its last job; what it sent may be unread."""
        answers = self._answers
        if answers is None or answers.fileno() < 0:
            return False
        look = select.poll()
        look.register(answers, 0)  # a hang-up is told unasked
        return not look.poll(0)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._loop.remove_reader(self._control)
        self._drain()
        self._process.wait()
        os.close(self._pidfd)
        self._control.close()
        self.busy = False
        try:
            self.exited.set()
        finally:
            # Also where there is no memory to wake up who waits: its place has to be given back.
            self._on_exit(self)

    def _drain(self) -> None:
        # Its last words (`failed`) may come together with its end.
        with contextlib.suppress(OSError, ValueError, MemoryError):
            while data := self._control.recv(MAX_CONTROL_BYTES):
                message = unpack(data)
                if message["type"] == "failed":
                    self.failure = str(message.get("message"))


def _start(control: socket.socket) -> subprocess.Popen[bytes]:
    """Start a process whose standard input is `control`. Raises OSError."""
    command = [sys.executable, "-P", "-m", "sensevoiced.frontend.worker", str(os.getpid())]
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ} | _ENVIRONMENT
    # Nothing is closed before exec, where we would wait for it: a client's file system may let the close of
    # its descriptor hang. What can be inherited is closed by the child itself.
    return subprocess.Popen(
        command, env=environment, stdin=control.fileno(), stdout=subprocess.DEVNULL, close_fds=False
    )


def _strings(value: object) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list) else ()
