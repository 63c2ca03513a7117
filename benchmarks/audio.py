"""Makes the audio that is measured on, from real recordings where they are there, once, and keeps it.

Everything is drawn with fixed seeds, so that every run and every contender hears the same.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import soundfile

from benchmarks.speech import Ear, decode
from sensevoiced.jobs import SAMPLE_RATE_HZ
from sensevoiced.models import DEMO_DIR

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

TESTED_BYTES = 32_000_000
LEVEL = 0.08
"""RMS that pieces of speech are brought to: without it the VAD takes a quiet one for a pause."""
FADE = SAMPLE_RATE_HZ // 200
"""5 ms at each end of a piece, against clicks."""
MIN_PIECE_S = 0.6
DRAWS = 60
"""Orders of pieces that are tried until the VAD hears one segment."""
ENCODINGS = {
    "mp3": ("libmp3lame", 44_100),
    "m4a": ("aac", 44_100),
    "opus": ("libopus", 48_000),
}
"""File suffix to encoder and sample rate."""


def shared_data(root: Path) -> Path | None:
    """The folder of real recordings and side files, or None where there is none.

    Named by SENSEVOICE_TEST_DATA; otherwise beside the checkout `root`.
    """
    named = os.environ.get("SENSEVOICE_TEST_DATA")
    folder = type(root)(named) if named else root.parent / "shared" / "data"
    return folder if (folder / "PROVENANCE.tsv").is_file() else None


@dataclass
class Audio:
    """Clips by length and kind, made when they are first asked for."""

    folder: Path
    data: Path | None
    vad: Path
    notes: list[str] = field(default_factory=list)
    """What a reader of the tables has to know of the clips."""

    def __post_init__(self) -> None:
        """Clips of other recordings lie in another folder."""
        self.folder = self.folder / ("recordings" if self.data else "samples")
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.data is None:
            self.notes.append(
                "No real recordings here (SENSEVOICE_TEST_DATA): clips are made of the demo model's samples, "
                "which are synthetic speech."
            )

    @property
    def sources(self) -> list[Path]:
        """Recordings that clips are made of."""
        if self.data is None:
            return sorted((DEMO_DIR / "samples").glob("*.flac"))
        return sorted(p for p in (self.data / "audio" / "speech").rglob("*.*") if p.suffix != ".raw")

    @property
    def recordings(self) -> list[Path]:
        """Up to 100 recordings as they are, on which precisions are compared."""
        if self.data is None:
            return self.sources
        kinds = ("speech", "events", "formats", "nospeech")
        files = [p for kind in kinds for p in sorted((self.data / "audio" / kind).rglob("*.*"))]
        return [p for p in files if p.stat().st_size < TESTED_BYTES and p.suffix not in (".raw", ".pcm")][
            :100
        ]

    def dense(self, length_s: float, number: int = 0) -> Path:
        """Speech without a pause that the VAD takes as one segment, as near to `length_s` as that goes."""

        def make() -> Floats:
            for length in (length_s, length_s - 0.2, length_s - 0.5, length_s - 1.0):
                for draw in range(DRAWS):
                    samples = self._joined(length, seed=f"dense {length_s} {number} {draw}")
                    found = self._ear.segments_s(samples)
                    if len(found) == 1 and found[0][1] - found[0][0] > 0.95 * length:
                        return samples
            self.notes.append(f"No {length_s:g} s clip was found that is one segment to the VAD.")
            return self._joined(length_s, seed=f"dense {length_s} {number} 0")

        return self._kept(f"dense-{length_s:g}s-{number}.wav", make)

    def short_clips(self, count: int = 200) -> list[Path]:
        """Clips of 1.5 to 6 s, pauses included."""
        lengths = random.Random(20).choices((1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0), k=count)

        def clip(number: int, length: float) -> Path:
            name = f"short/{number:03}.wav"
            return self._kept(name, lambda: self._joined(length, seed=f"short {number}", pauses=True))

        return [clip(number, length) for number, length in enumerate(lengths)]

    def mixed(self, count: int = 500) -> list[Path]:
        """Requests of mixed length, from 1 to 30 s, most of them short."""
        lengths = random.Random(21).choices((1, 2, 3, 5, 8, 15, 30), (10, 20, 25, 20, 15, 7, 3), k=count)
        return [self.dense(length, i % 4) for i, length in enumerate(lengths)]

    def ten_minutes(self) -> Path:
        """Speech with pauses of up to a second."""
        return self._kept("ten-minutes.wav", lambda: self._joined(600, seed="ten minutes", pauses=True))

    def hour(self) -> Path:
        """The same ten minutes six times, so that a minute of it costs what a minute of them does."""
        return self._kept("hour.wav", lambda: np.tile(decode(self.ten_minutes()), 6))

    def encoded(self) -> dict[str, Path]:
        """The same ten minutes in each format."""
        wav = self.ten_minutes()
        files = {"wav 16 kHz": wav}
        flac = wav.with_suffix(".flac")
        if not flac.exists():
            soundfile.write(flac, decode(wav), SAMPLE_RATE_HZ, subtype="PCM_16")
        files["flac 16 kHz"] = flac
        for suffix, (codec, rate) in ENCODINGS.items():
            file = wav.with_suffix(f".{suffix}")
            if not file.exists():
                _encode(decode(wav), file, codec, rate)
            files[f"{suffix} {rate / 1000:g} kHz"] = file
        return files

    @cached_property
    def _ear(self) -> Ear:
        return Ear("demo", self.vad)

    @cached_property
    def _pieces(self) -> list[Floats]:
        """Every stretch of speech of the sources, brought to one level."""
        pieces = []
        for file in self.sources:
            samples = decode(file)
            for start, end in self._ear.segments_s(samples):
                piece = samples[int(start * SAMPLE_RATE_HZ) : int(end * SAMPLE_RATE_HZ)]
                pieces += [
                    part for part in _without_pauses(piece) if len(part) > MIN_PIECE_S * SAMPLE_RATE_HZ
                ]
        return [_level(piece) for piece in pieces]

    def _joined(self, length_s: float, *, seed: str, pauses: bool = False) -> Floats:
        draw = random.Random(seed)
        wanted, have = round(length_s * SAMPLE_RATE_HZ), 0
        parts: list[Floats] = []
        while have < wanted:
            for piece in draw.sample(self._pieces, len(self._pieces)):
                parts.append(piece)
                if pauses:
                    parts.append(np.zeros(round(draw.uniform(0.2, 1.0) * SAMPLE_RATE_HZ), np.float32))
                have += sum(map(len, parts[-2:] if pauses else parts[-1:]))
                if have >= wanted:
                    break
        return np.concatenate(parts)[:wanted]

    def _kept(self, name: str, make: Callable[[], Floats]) -> Path:
        file = self.folder / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            soundfile.write(part, make(), SAMPLE_RATE_HZ, subtype="PCM_16", format="WAV")
            part.rename(file)
        return file


def length_s(file: Path) -> float:
    """Seconds of a clip of ours."""
    return float(soundfile.info(file).duration)


def _level(samples: Floats) -> Floats:
    rms = float(np.sqrt(np.mean(samples**2))) or 1.0
    levelled: Floats = np.clip(samples * (LEVEL / rms), -0.99, 0.99).astype(np.float32)
    ramp = np.linspace(0, 1, min(FADE, len(levelled) // 2), dtype=np.float32)
    levelled[: len(ramp)] *= ramp
    levelled[len(levelled) - len(ramp) :] *= ramp[::-1]
    return levelled


def _without_pauses(samples: Floats) -> list[Floats]:
    """The stretches of a segment between pauses of 0.25 s and more: below a tenth of its level."""
    hop = SAMPLE_RATE_HZ // 40
    blocks = samples[: len(samples) // hop * hop].reshape(-1, hop)
    loud: Floats = np.sqrt(np.mean(blocks**2, axis=1))
    silent = loud < 0.1 * (np.quantile(loud, 0.9) if len(loud) else 1.0)
    parts, start, quiet = [], 0, 0
    for i, is_silent in enumerate(silent):
        quiet = quiet + 1 if is_silent else 0
        if quiet == 10:
            parts.append(samples[start * hop : (i - 9) * hop])
        if quiet >= 10:
            start = i + 1
    parts.append(samples[start * hop :])
    return parts


def _encode(samples: Floats, file: Path, codec: str, rate: int) -> None:
    part = file.with_name("part-" + file.name)
    with av.open(str(part), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate)
        pcm = (samples * 32767).astype(np.int16)
        for start in range(0, len(pcm), SAMPLE_RATE_HZ):
            frame = av.AudioFrame.from_ndarray(pcm[None, start : start + SAMPLE_RATE_HZ], "s16", "mono")
            frame.sample_rate = SAMPLE_RATE_HZ
            frame.pts = start
            for resampled in resampler.resample(frame):
                container.mux(stream.encode(resampled))
        for resampled in resampler.resample(None):
            container.mux(stream.encode(resampled))
        container.mux(stream.encode(None))
    part.rename(file)
