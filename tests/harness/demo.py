"""The daemon with the real front end and the demo model, its canary, and recordings made of its samples."""

from __future__ import annotations

import functools
import io
import os
import sys
from pathlib import Path

import numpy as np
import soundfile
from harness.daemon import Canary, DaemonProcess
from harness.wire_client import memfd, texts

from sensevoiced.models import DEMO_DIR

HELD = Path(__file__).with_name("held_daemon.py")
DEMO = ("serve", "--model", "demo", "--device", "cpu")
RATE_HZ = 16_000
SONG, SONG_ENDS_S, SONG_S = "angry", 1.87, 3.0
SONG_TEXT = "I want to make a complaint."
"""The first sentence of the sample, and then silence."""


class DemoDaemon(DaemonProcess):
    """A real daemon with the demo model.

    With `held`, its engine can be made to wait, and writes down what it does.
    """

    def __init__(self, folder, *, held=False, **options):
        program = [str(HELD), str(Path(folder) / "control")] if held else ["-m", "sensevoiced"]
        super().__init__(folder, command=[sys.executable, *program, *DEMO], **options)

    def hold(self):
        """Let no batch begin."""
        self.open_gate("hold")

    def release(self):
        """Let batches run again."""
        (self.control / "hold").unlink()

    def batches(self):
        """Sizes of the batches so far."""
        return [int(line.split()[1]) for line in self.engine_log().splitlines() if line.startswith("batch")]

    def child_pids(self):
        """Process ids of the front end."""
        return [child["pid"] for child in self.status()["memory"]["children"]]


class DemoCanary(Canary):
    """The canary, with real speech: a 3 s WAV gives its known text."""

    def _sing(self):
        with self.daemon.client(timeout_s=self.ANSWER_S) as client:
            fd = memfd(song())
            events = client.ask(1, fd)
            os.close(fd)
        assert texts(events) == [SONG_TEXT]
        assert events[-1]["duration"] == SONG_S


@functools.cache
def sample(name):
    """The samples of one of the demo model's clips: 16 kHz, float32."""
    samples, rate = soundfile.read(DEMO_DIR / "samples" / f"{name}.flac", dtype="float32")
    assert rate == RATE_HZ
    return samples


def wav(samples, rate=RATE_HZ, *, subtype="PCM_16", form="WAV"):
    """The bytes of a recording."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


@functools.cache
def song():
    """A 3 s WAV whose text is known."""
    samples = np.zeros(int(SONG_S * RATE_HZ), np.float32)
    sung = int(SONG_ENDS_S * RATE_HZ)
    samples[:sung] = sample(SONG)[:sung]
    return wav(samples)


def minute(rate=RATE_HZ):
    """One minute, 39 s of speech in five languages and then silence: int16, meant to be repeated."""
    speech = sample("mixed")
    whole = np.zeros(60 * RATE_HZ, np.float32)
    whole[: len(speech)] = speech
    if rate != RATE_HZ:
        at = np.arange(60 * rate) * (RATE_HZ / rate)
        whole = np.interp(at, np.arange(len(whole)), whole)
    return np.round(whole * 32767).astype("<i2").tobytes()


def pcm_header(rate=RATE_HZ, data_bytes=0xFFFFFFFF):
    """A WAV header of 16-bit mono; by default of unknown length, as programs write to a pipe."""
    riff_bytes = min(0xFFFFFFFF, data_bytes + 36)
    return b"".join(
        (
            b"RIFF" + riff_bytes.to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little"),
            (1).to_bytes(2, "little") + (1).to_bytes(2, "little") + rate.to_bytes(4, "little"),
            (2 * rate).to_bytes(4, "little") + (2).to_bytes(2, "little") + (16).to_bytes(2, "little"),
            b"data" + data_bytes.to_bytes(4, "little"),
        )
    )
