"""Libav's second lines: were a demuxer of playlists let in, nothing opens; other streams are skipped."""

import io
import os
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from sensevoiced.config import FrontendConfig
from sensevoiced.frontend import libav
from sensevoiced.frontend.audio import Recording
from sensevoiced.frontend.source import FileSource
from sensevoiced.jobs import JobError

RATE_HZ = 16_000


class Counting(FileSource):
    """Counts what is read of the file."""

    def __init__(self, fd):
        super().__init__(fd)
        self.bytes_read = 0

    def readinto(self, buffer, /):
        count = super().readinto(buffer)
        self.bytes_read += count
        return count


def memfd(data):
    """Give a descriptor of an in-memory file."""
    fd = os.memfd_create("test")
    os.write(fd, data)
    return fd


def film(form, codec):
    """A second of a tone beside 25 pictures that do not compress, all in one container."""
    rng = np.random.default_rng(0)
    samples = (8000 * np.sin(np.arange(RATE_HZ) * 0.17)).astype(np.int16)
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=form) as container:
            pictures = container.add_stream(codec, rate=25)
            pictures.width, pictures.height, pictures.pix_fmt = 480, 320, "yuv420p"
            sound = container.add_stream("aac", rate=RATE_HZ, layout="mono")
            for number in range(25):
                picture = av.VideoFrame.from_ndarray(
                    rng.integers(0, 255, (480, 480), np.uint8), format="yuv420p"
                )
                container.mux(pictures.encode(picture))
                piece = samples[number * 640 : (number + 1) * 640].reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
                frame.sample_rate, frame.time_base, frame.pts = RATE_HZ, Fraction(1, RATE_HZ), number * 640
                container.mux(sound.encode(frame))
            container.mux(pictures.encode(None))
            container.mux(sound.encode(None))
        return Path(file.name).read_bytes()


def heard(data):
    """Give the samples of a recording."""
    fd = memfd(data)
    try:
        return np.concatenate(list(Recording(fd, FrontendConfig()).blocks()))
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("form", "codec"), [("mov", "rawvideo"), ("matroska", "mpeg4"), ("mpegts", "mpeg2video")]
)
def test_of_a_film_only_the_sound_is_read(form, codec):
    """The tone is heard, and the pictures' streams are skipped; where an index tells, not even read."""
    data = film(form, codec)
    samples = heard(data)
    assert 0.9 < len(samples) / RATE_HZ < 1.2
    assert np.abs(samples[4000:12000]).max() == pytest.approx(8000 / 32768, rel=0.1)
    fd = memfd(data)
    source = Counting(fd)
    decoder = libav.LibavDecoder(source, lambda *_: None)
    skipped = [stream.discard.name for stream in decoder._container.streams if stream.type != "audio"]
    opened_bytes = source.bytes_read
    given = sum(len(block) for block, _ in decoder.blocks(1.0, 2**20))
    decoder.close()
    os.close(fd)
    assert skipped == ["all"]
    assert given >= RATE_HZ * 0.9
    if form == "mov":
        assert source.bytes_read - opened_bytes < len(data) / 2


def test_a_pyav_that_cannot_skip_streams_is_good_enough(monkeypatch):
    """Before PyAV 18 there is no such switch; the same sound is heard."""
    data = film("matroska", "mpeg4")
    skipping = heard(data)
    monkeypatch.delattr(av.stream, "Discard")
    assert np.array_equal(heard(data), skipping)


@pytest.mark.parametrize(
    ("demuxer", "text"),
    [
        ("concat", "ffconcat version 1.0\nfile '{secret}'\n"),
        ("hls", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n"),
        ("hls", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n"),
    ],
)
def test_a_playlist_that_got_past_the_list_of_formats_opens_nothing(tmp_path, monkeypatch, demuxer, text):
    """With its demuxer let in, a playlist is refused still: no protocol may be used, nothing be opened."""
    secret = tmp_path / "secret.wav"
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(RATE_HZ, np.int16), RATE_HZ, format="WAV")
    secret.write_bytes(buffer.getvalue())
    os.utime(secret, (1, 1))
    monkeypatch.setattr(libav, "FORMATS", f"{libav.FORMATS},{demuxer}")
    with pytest.raises(JobError) as caught:
        heard(text.format(secret=secret).encode())
    assert caught.value.code == "bad_input"
    assert secret.stat().st_atime == 1
