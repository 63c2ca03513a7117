"""A streamed WAV that breaks off before the length in its header is marked; some headers promise nothing."""

from __future__ import annotations

import io
import os
import re
import struct
import threading

import numpy as np
import pytest
import soundfile

from sensevoiced.config import FrontendConfig
from sensevoiced.frontend.audio import NO_AUDIO, UNREADABLE, Recording
from sensevoiced.frontend.part import Part
from sensevoiced.jobs import JobError

RATE_HZ = 16_000
SECONDS = 4


def wav(form="WAV", subtype="PCM_16", endian="FILE"):
    """Four seconds of noise."""
    held = io.BytesIO()
    noise = np.random.default_rng(3).normal(0, 0.1, SECONDS * RATE_HZ)
    soundfile.write(held, noise, RATE_HZ, format=form, subtype=subtype, endian=endian)
    return held.getvalue()


def streamed(data, **settings):
    """Decode it from a pipe: seconds of audio, and whether it says that it broke off."""
    reader, writer = os.pipe()

    def write():
        try:
            with os.fdopen(writer, "wb", buffering=0) as pipe:
                pipe.write(data)
        except BrokenPipeError:
            pass  # only a part was wanted

    thread = threading.Thread(target=write)
    thread.start()
    try:
        recording = Recording(reader, FrontendConfig(), **settings)
        seconds = sum(block.size for block in recording.blocks()) / RATE_HZ
        return round(seconds, 2), recording.truncated
    finally:
        os.close(reader)
        thread.join()


KINDS = [
    ("WAV", "PCM_16", "FILE"),
    ("WAV", "PCM_16", "BIG"),
    ("WAV", "FLOAT", "FILE"),
    ("WAV", "ULAW", "FILE"),
    ("WAVEX", "PCM_24", "FILE"),
    ("RF64", "PCM_16", "FILE"),
]


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_cut_stream_is_marked_and_a_whole_one_is_not(kind):
    """Half of the bytes give half of the audio and the mark, whatever kind of WAV it is."""
    data = wav(*kind)
    assert streamed(data) == (SECONDS, False)
    seconds, truncated = streamed(data[: len(data) // 2])
    assert seconds == pytest.approx(SECONDS / 2, abs=0.1)
    assert truncated


def test_a_few_missing_bytes_are_missing_and_what_follows_the_audio_is_not():
    """The end of the audio decides, to the byte: a tag behind it may be cut or be there."""
    data = wav()
    assert streamed(data[:-2])[1]
    assert streamed(data + b"LIST" + struct.pack("<I", 100)) == (SECONDS, False)


@pytest.mark.parametrize("size", [0, 0x7FFF_FFFF, 0x7FFF_F000, 0x8000_0000, 0xFFFF_FFFF])
def test_a_header_that_does_not_know_the_length_promises_nothing(size):
    """What ffmpeg, sox and arecord write into a pipe stands for no length."""
    data = bytearray(wav())
    assert data[36:40] == b"data"
    data[4:8] = data[40:44] = struct.pack("<I", size)
    assert streamed(bytes(data)) == (SECONDS, False)
    assert streamed(bytes(data[: len(data) // 2]))[1] is False


def test_chunks_before_the_audio_belong_to_the_header():
    """A long description, of an odd length, moves the end of the audio."""
    data = wav()
    note = b"junk" + struct.pack("<I", 30_001) + bytes(30_002)
    noted = data[:12] + note + data[12:]
    assert streamed(noted) == (SECONDS, False)
    assert streamed(noted[:-1000])[1]


def test_a_header_without_audio_is_told_from_what_is_no_audio():
    """As of a file: a recorder that was stopped at once has written no more."""
    with pytest.raises(JobError, match=re.escape(NO_AUDIO)):
        streamed(wav()[:44])
    with pytest.raises(JobError, match=re.escape(UNREADABLE)):
        streamed(wav()[:30])


def test_a_part_that_ends_before_the_stream_is_not_cut():
    """Whoever takes one second leaves the rest unread: nothing broke off."""
    data = wav()
    assert streamed(data[: len(data) // 2], part=Part(duration_s=1.0)) == (1.0, False)
