"""An Ogg that breaks off is marked so, whether it came as a file or as a stream: its last page tells."""

from __future__ import annotations

import io
import os
import threading

import numpy as np
import pytest
import soundfile

from sensevoiced.config import FrontendConfig
from sensevoiced.frontend.audio import Recording
from sensevoiced.frontend.source import OGG_PAGE, HeadedStream
from sensevoiced.jobs import JobError

RATE_HZ = 48_000


def ogg(subtype):
    """Four seconds of noise, in several pages."""
    held = io.BytesIO()
    noise = np.random.default_rng(3).normal(0, 0.1, 4 * RATE_HZ)
    soundfile.write(held, noise, RATE_HZ, format="OGG", subtype=subtype)
    return held.getvalue()


def whole(fd):
    """Seconds of a recording, and whether it says that it broke off."""
    try:
        recording = Recording(fd, FrontendConfig())
        seconds = sum(block.size for block in recording.blocks()) / 16_000
        return round(seconds, 3), recording.truncated
    except JobError as error:
        return error.code
    finally:
        os.close(fd)


def as_file(data):
    """Decode it from a memfd."""
    fd = os.memfd_create("recording")
    os.write(fd, data)
    return whole(fd)


def as_stream(data, piece_bytes=1_000_000):
    """Decode it from a pipe into which it is written in pieces."""
    reader, writer = os.pipe()

    def write():
        with os.fdopen(writer, "wb", buffering=0) as pipe:
            for at in range(0, len(data), piece_bytes):
                pipe.write(data[at : at + piece_bytes])

    thread = threading.Thread(target=write)
    thread.start()
    try:
        return whole(reader)
    finally:
        thread.join()


@pytest.mark.parametrize("subtype", ["OPUS", "VORBIS"])
def test_a_whole_ogg_is_not_truncated(subtype):
    """However the stream is cut into pieces, the last page among them."""
    data = ogg(subtype)
    assert as_file(data) == as_stream(data) == as_stream(data, 1) == (4.0, False)


@pytest.mark.parametrize("subtype", ["OPUS", "VORBIS"])
def test_a_cut_ogg_says_so(subtype):
    """Cut in the middle of a page, between two pages, or by one byte: what is there is given and marked."""
    data = ogg(subtype)
    last_page = data.rfind(OGG_PAGE)
    for end in (len(data) // 2, len(data) * 9 // 10, last_page, last_page + 20, len(data) - 1):
        seconds, truncated = as_stream(data[:end])
        assert 0 < seconds <= 4.0
        assert truncated, end
        assert as_file(data[:end]) == (seconds, truncated)


def test_a_stream_remembers_its_last_bytes_only():
    """Across what was looked at before and what comes, and no more than was asked for."""

    class Bytes:
        failure = None

        def __init__(self):
            self._parts = [b"cd", b"efgh", b""]

        def read(self, size):
            return self._parts.pop(0)

    stream = HeadedStream(b"ab", Bytes(), keeps_bytes=5)
    read = [stream.read(1), stream.read(100), *(stream.read(100) for _ in range(3))]
    assert read == [b"a", b"b", b"cd", b"efgh", b""]
    assert (stream.tail(5), stream.tail(3)) == (b"defgh", b"fgh")
    assert HeadedStream(b"ab", Bytes()).tail(5) == b""
