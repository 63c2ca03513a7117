"""Jobs that a child gives itself before its first one.

Must never import a decoder: it only makes the jobs.

They load what decoders load late, while files can still be opened; and one in the jail shows that it leaves
decoding what it needs, on this machine with its libraries, before anybody's recording depends on it.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sensevoiced.frontend.channel import HEAD, pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable

RATE_HZ, CHANNELS, SAMPLE_BYTES = 8_000, 2, 2
"""Neither the models' rate nor mono, so that libswresample is rehearsed too."""
FRAMES = 800
"""0.1 s: everything is used once, and as a pipe's content it is small."""
MAX_ANSWER_BYTES = 4 * 2**10


@dataclass(frozen=True, slots=True)
class Scene:
    """A job that waits to be taken, and where its answer will be."""

    control: socket.socket
    """Where the child finds the job."""
    parent: socket.socket
    """The other end of it: held open, for the child says there that it is free."""
    answer: socket.socket


def scene(*, as_file: bool) -> Scene:
    """Prepare a job: silence in a WAV file, which libsndfile decodes, or in a stream, which libav does."""
    if as_file:
        recording = writer = os.memfd_create("rehearsal")
        os.write(recording, wav())
    else:
        recording, writer = os.pipe()
        os.write(writer, wav())
        os.close(writer)
    control, parent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    answer, job = socket.socketpair()
    with job:
        socket.send_fds(parent, [pack({"type": "job", "vad": True, "part": {}})], [recording, job.fileno()])
    os.close(recording)
    return Scene(control, parent, answer)


def play(prepared: Scene, take: Callable[[socket.socket], bool]) -> None:
    """Let `take` do the job, as it does those of the parent. ValueError where it does not come to its end."""
    with prepared.control, prepared.parent, prepared.answer:
        take(prepared.control)
        said = os.read(prepared.answer.fileno(), MAX_ANSWER_BYTES)
    last = {}
    while said:
        header_bytes, payload_bytes = HEAD.unpack_from(said)
        last = unpack(said[HEAD.size : HEAD.size + header_bytes])
        said = said[HEAD.size + header_bytes + payload_bytes :]
    if last.get("type") != "done":
        raise ValueError(f"a rehearsed recording was not decoded ({last.get('message', 'no answer')})")


def wav() -> bytes:
    """Give a short silent recording."""
    frame_bytes = CHANNELS * SAMPLE_BYTES
    samples = bytes(FRAMES * frame_bytes)
    form = struct.pack("<HHIIHH", 1, CHANNELS, RATE_HZ, RATE_HZ * frame_bytes, frame_bytes, 8 * SAMPLE_BYTES)
    chunks = b"WAVE" + _chunk(b"fmt ", form) + _chunk(b"data", samples)
    return _chunk(b"RIFF", chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content
