"""One job of a child: a recording in, messages out on the job's own socket.

Must never open a path, nor import torch.
"""

from __future__ import annotations

import resource
import select
import time
from typing import TYPE_CHECKING, Any

from sensevoiced.frontend.audio import Recording
from sensevoiced.frontend.channel import send_message
from sensevoiced.frontend.part import Part
from sensevoiced.frontend.pipeline import Pass
from sensevoiced.frontend.source import Stopped
from sensevoiced.jobs import JobError

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from sensevoiced.frontend.pipeline import Frontend

PROGRESS_EVERY_S = 0.1
ARRIVALS_EVERY_S = 1.0
"""Bytes may come in thousands of small parts."""


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
            stream(frontend, recording, sock, part=Part(**job["part"]), vad=job["vad"])
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


def stream(frontend: Frontend, recording: int, sock: socket.socket, *, part: Part, vad: bool) -> None:
    """Send the utterances of a recording as they are found, and `done` at its end."""
    arrivals = Arrivals(sock, frontend.limits.decode_timeout_s)
    source = Recording(recording, frontend.limits, part=part, stop_fd=sock.fileno(), on_bytes=arrivals.note)
    hung_up = select.poll()
    hung_up.register(sock, select.POLLIN)

    def look_up() -> None:
        if hung_up.poll(0):
            raise Stopped

    run = Pass(frontend, source, vad=vad, between=look_up)
    index, last_word, paid_for = 0, 0.0, 1
    for stretches in run.stretches():
        if run.tracks > paid_for:
            # Each channel is a recording's work, and sent alone would have a recording's time.
            paid_for = run.tracks
            arm_cpu_limit(frontend.limits.child_cpu_s * paid_for)
        for stretch in stretches:
            frames, dim = stretch.features.shape
            message = {
                "type": "utterance",
                "index": index,
                "start_s": stretch.start_s,
                "end_s": stretch.end_s,
                "frames": frames,
                "dim": dim,
                "channel": stretch.channel,
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
    """Give the job `seconds` of CPU from now on; SIGXCPU ends the process after that."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s()) + 1 + seconds, hard))


def cpu_s() -> float:
    """CPU time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
