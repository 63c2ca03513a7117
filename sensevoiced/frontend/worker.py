"""The child process that decodes and prepares recordings, one at a time.

Executed, never imported by the daemon; opens no path but those of the models.

It owns nothing but two or three descriptors, is closed in by the kernel before it sees the first recording
(jail.py), and dies with its parent. A recording that kills it costs that recording only. Errors it does not
expect are left to end it: the parent says so, and starts another.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensevoiced.config import FrontendConfig
from sensevoiced.frontend import jail, rehearsal
from sensevoiced.frontend.channel import MAX_CONTROL_BYTES, pack, unpack
from sensevoiced.frontend.job import cpu_s, run_job
from sensevoiced.frontend.pipeline import Frontend
from sensevoiced.frontend.setup import spec_from

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

MAX_DESCRIPTORS = 32
"""Standard streams, control, one recording, one job socket, and what imports open in passing."""
MAX_JOBS = 10_000
"""Then another process takes its place: decoders keep a few KB of some broken files for ever (libsndfile 6 KB
of a damaged Vorbis header), and months of them would end in somebody else's job."""
_PR_SET_PDEATHSIG = 1
"""prctl(2)"""


def main() -> None:
    """Serve the control socket, which is standard input, until the parent closes it."""
    # What was imported until here may have been compiled and kept; from now on no file is written.
    sys.dont_write_bytecode = True
    control = own_descriptors()
    confine(int(sys.argv[1]))
    report_end(control)
    setup = unpack(control.recv(MAX_CONTROL_BYTES))
    limits = FrontendConfig(**setup["limits"])
    resource.setrlimit(resource.RLIMIT_AS, (limits.child_memory_bytes, limits.child_memory_bytes))
    try:
        frontend = load(limits, setup)
        # All that is here stays: what `take` looks through from now on is a job's own few objects.
        gc.freeze()
        closed_in = get_ready(frontend)
    except (ValueError, OSError) as error:
        control.send(pack({"type": "failed", "message": str(error)}))
        return
    # And what the rehearsals left.
    gc.freeze()
    control.send(pack({"type": "ready", "jail": closed_in.layers, "missing": closed_in.missing}))
    serve(frontend, control)


def serve(frontend: Frontend, control: socket.socket) -> None:
    """Do one job after the other until the parent closes the socket, or this process has done its part."""
    budget_s, begun_s = frontend.limits.child_cpu_s, cpu_s()
    soft, _ = resource.getrlimit(resource.RLIMIT_CPU)
    # A process that was taken over may ignore SIGXCPU, and nothing but its own messages tells how it gets on.
    # So this holds for good: the budget that jobs share, and that of one job with as many channels as may be.
    most_s = (1 + frontend.limits.max_channels) * (budget_s + 1)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, int(begun_s) + most_s))
    for _ in range(MAX_JOBS):
        if not take(frontend, control) or cpu_s() - begun_s > budget_s:
            return


def get_ready(frontend: Frontend) -> jail.Jail:
    """Use everything once, so that nothing has to be loaded later, and close the jail.

    Raises ValueError where a rehearsed recording is not decoded, OSError where it cannot even be made.
    """
    # Made before: in the jail there is no way to make one.
    before, inside = ([rehearsal.scene(as_file=as_file) for as_file in (True, False)] for _ in range(2))

    # The settings may allow no recording like these, and theirs is not what is rehearsed.
    limits = replace(
        frontend.limits,
        max_channels=max(rehearsal.CHANNELS, frontend.limits.max_channels),
        min_sample_rate_hz=min(rehearsal.RATE_HZ, frontend.limits.min_sample_rate_hz),
        max_sample_rate_hz=max(rehearsal.RATE_HZ, frontend.limits.max_sample_rate_hz),
    )
    rehearsing = replace(frontend, limits=limits)

    def do(control: socket.socket) -> bool:
        return take(rehearsing, control)

    for scene in before:
        rehearsal.play(scene, do)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    jail.give_up_powers()
    closed_in = jail.lock_in() if frontend.limits.jail else jail.OPEN
    for scene in inside:
        rehearsal.play(scene, do)
    return closed_in


def take(frontend: Frontend, control: socket.socket) -> bool:
    """Wait for a job and do it; False when none will come, or this process should not go on to another."""
    data, descriptors, _flags, _address = socket.recv_fds(control, MAX_CONTROL_BYTES, 2)
    if not data:
        return False
    recording, job = descriptors
    with socket.socket(fileno=job) as sock:
        try:
            fit = run_job(frontend, recording, sock, unpack(data))
        finally:
            os.close(recording)
    # A job's objects hold each other, and with them its arrays and a stream that was kept whole: Python would
    # come to them after hundreds of jobs, which cost 45 MiB, or the next job its memory.
    gc.collect()
    if fit:
        control.send(pack({"type": "idle"}))
    return fit


def own_descriptors() -> socket.socket:
    """Close what was inherited by mistake, and move the control socket away from standard input."""
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return control


def confine(parent: int) -> None:
    """Give up what not even loading needs; limits on memory and CPU follow when they are known."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        # It died before we asked to die with it.
        sys.exit(0)
    # Ctrl-C in a terminal reaches the whole group; the parent decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, MAX_DESCRIPTORS)):
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


if __name__ == "__main__":
    main()
