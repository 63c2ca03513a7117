"""The child process that decodes and prepares recordings, one at a time.

Executed, never imported by the daemon; never opens a path.

It owns nothing but two or three descriptors, may not write a file, and dies with its parent. A recording that
kills it costs that recording only. Errors it does not expect are left to end it: the parent says so, and
starts another.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensevoiced.config import FrontendConfig
from sensevoiced.features import FrontendSpec
from sensevoiced.frontend.audio import Recording
from sensevoiced.frontend.channel import MAX_CONTROL_BYTES, pack, send_message, unpack
from sensevoiced.frontend.pipeline import Frontend, Pass
from sensevoiced.frontend.source import Stopped
from sensevoiced.jobs import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

MAX_DESCRIPTORS = 32
"""Standard streams, control, one recording, one job socket, and what imports open in passing."""
PROGRESS_EVERY_S = 0.1
ARRIVALS_EVERY_S = 1.0
"""Bytes may come in thousands of small parts."""
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
"""prctl(2)"""


def main() -> None:
    """Serve the control socket whose descriptor is the first argument, until the parent closes it."""
    # What was imported until here may have been compiled and kept; from now on no file is written.
    sys.dont_write_bytecode = True
    control = socket.socket(fileno=int(sys.argv[1]))
    confine(int(sys.argv[2]))
    report_end(control)
    setup = unpack(control.recv(MAX_CONTROL_BYTES))
    limits = FrontendConfig(**setup["limits"])
    resource.setrlimit(resource.RLIMIT_AS, (limits.child_memory_bytes, limits.child_memory_bytes))
    try:
        frontend = load(limits, setup)
    except (ValueError, OSError) as error:
        control.send(pack({"type": "failed", "message": str(error)}))
        return
    control.send(pack({"type": "ready"}))
    while True:
        data, descriptors, _flags, _address = socket.recv_fds(control, MAX_CONTROL_BYTES, 2)
        if not data:
            return
        recording, job = descriptors
        with socket.socket(fileno=job) as sock:
            try:
                fit = run_job(frontend, recording, sock, unpack(data))
            finally:
                os.close(recording)
        if not fit:
            return
        control.send(pack({"type": "idle"}))


def confine(parent: int) -> None:
    """Give up what a decoder never needs; limits on memory and CPU follow when they are known."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:
        # It died before we asked to die with it.
        sys.exit(0)
    # Ctrl-C in a terminal reaches the whole group; the parent decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for limit, value in (
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, MAX_DESCRIPTORS),
    ):
        resource.setrlimit(limit, (value, value))


def report_end(control: socket.socket) -> None:
    """Let the parent log what ends this process.

    Standard error is left to nobody, as decoders write to it what a recording says.
    """

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        places = "".join(
            f" < {frame.name}:{frame.lineno}" for frame in reversed(traceback.extract_tb(trace)[-3:])
        )
        # Places first: the log shows no more of it than fits a line.
        with contextlib.suppress(OSError):
            control.send(pack({"type": "failed", "message": f"{kind.__name__}{places}: {error!s:.500}"}))

    sys.excepthook = tell
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stderr.fileno() if sys.stderr is not None else 2)
    os.close(null)


def load(limits: FrontendConfig, setup: Mapping[str, Any]) -> Frontend:
    """Load what the parent named, and run it once, so that the first job finds everything warm."""
    frontend = Frontend.load(
        limits,
        spec_from(setup["spec"]),
        vad_spec=spec_from(setup["vad_spec"]),
        vad_weights=Path(setup["vad_weights"]),
        vad_config=setup["vad_config"],
        vad_asked=setup["vad_asked"],
    )
    frontend.warm_up()
    return frontend


def spec_from(fields: Mapping[str, Any]) -> FrontendSpec:
    """Rebuild a FrontendSpec from its message."""
    return FrontendSpec(**{**fields, "cmvn": Path(fields["cmvn"])})


class Arrivals:
    """Tells the parent that a stream's bytes come: an MP4 may have to be here whole before it is decoded."""

    def __init__(self, sock: socket.socket, deadline_s: float) -> None:
        """Speak on `sock`, several times within the `deadline_s` of silence after which a child is killed."""
        self._sock = sock
        self._every_s = min(ARRIVALS_EVERY_S, deadline_s / 4)
        self._last_s = time.monotonic()

    def note(self, decoded_s: float) -> None:
        """Say so if it was not said just now; OSError when the parent has closed the socket."""
        now_s = time.monotonic()
        if now_s - self._last_s >= self._every_s:
            self._last_s = now_s
            send_message(self._sock, {"type": "progress", "decoded_s": decoded_s})


def run_job(frontend: Frontend, recording: int, sock: socket.socket, job: Mapping[str, Any]) -> bool:
    """Do one job and report on `sock`; False when this process should not go on to another."""
    arm_cpu_limit(frontend.limits.child_cpu_s)
    sock.setblocking(True)
    try:
        # From here on the parent holds this job against us if we end.
        send_message(sock, {"type": "begun"})
        try:
            stream(frontend, recording, sock, vad=job["vad"])
        except JobError as error:
            send_message(sock, {"type": "error", "code": error.code, "message": error.message})
        except MemoryError:
            mib = frontend.limits.child_memory_bytes // 2**20
            message = f"Decoding this recording needs more memory than a decoder may have ({mib} MiB)."
            send_message(sock, {"type": "error", "code": "bad_input", "message": message})
            return False
    except (Stopped, BrokenPipeError, ConnectionResetError):
        # Nobody waits for this job any more.
        pass
    return True


def stream(frontend: Frontend, recording: int, sock: socket.socket, *, vad: bool) -> None:
    """Send the utterances of a recording as they are found, and `done` at its end."""
    arrivals = Arrivals(sock, frontend.limits.decode_timeout_s)
    source = Recording(recording, frontend.limits, stop_fd=sock.fileno(), on_bytes=arrivals.note)
    run = Pass(frontend, source, vad=vad)
    hung_up = select.poll()
    hung_up.register(sock, select.POLLIN)
    index, last_word = 0, 0.0
    for stretches in run.stretches():
        if hung_up.poll(0):
            raise Stopped
        for stretch in stretches:
            frames, dim = stretch.features.shape
            message = {
                "type": "utterance",
                "index": index,
                "start_s": stretch.start_s,
                "end_s": stretch.end_s,
                "frames": frames,
                "dim": dim,
                "decoded_s": run.decoded_s,
            }
            send_message(sock, message, stretch.features.data)
            index += 1
        now = time.monotonic()
        if stretches or now - last_word >= PROGRESS_EVERY_S:
            if not stretches:
                send_message(sock, {"type": "progress", "decoded_s": run.decoded_s})
            last_word = now
    decoded = run.decoded()
    send_message(
        sock,
        {
            "type": "done",
            "duration_s": decoded.duration_s,
            "truncated": decoded.truncated,
            "decode_s": decoded.decode_s,
            "features_s": decoded.features_s,
            "vad_s": decoded.vad_s,
        },
    )


def arm_cpu_limit(seconds: int) -> None:
    """Give the job now beginning `seconds` of CPU; SIGXCPU ends the process after that."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + 1 + seconds
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


if __name__ == "__main__":
    main()
