"""Log-mel filter banks once for VAD and recognition, LFR stacking and CMVN.

Numpy only, must never import torch.

The arithmetic is Kaldi's compute-fbank-feats as FunASR's WavFrontend calls it
(funasr/frontends/wav_frontend.py: hamming, dither 0, snip_edges, power spectrum, log floored at float32's
epsilon). It is done on whole blocks in numpy: five times as fast as kaldi-native-fbank, and nearer to the
same arithmetic in float64 (mean difference 1e-6 instead of 5e-6 in the logarithm).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from sensevoiced.features import FrontendSpec

    Floats = NDArray[np.float32]

INT16_SCALE = 32768.0
"""Kaldi, and so the models, work on 16-bit sample values; decoders give -1..1."""
PREEMPHASIS = 0.97
LOW_FREQUENCY_HZ = 20.0
LEVEL_FLOOR = 1e-6
"""Added to a frame's energy before the logarithm, as FSMN-VAD does: digital silence is -60 dB."""
_BLOCK_FRAMES = 256
"""Frames per pass: 400 KB of windowed samples stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class Frames:
    """Consecutive 10 ms frames.

    `mel` is n x bins (natural log), `level_db` the energy of each frame's raw samples.
    """

    mel: Floats
    level_db: Floats

    def __len__(self) -> int:
        """Count the frames."""
        return len(self.mel)


@dataclass(frozen=True, slots=True)
class Cmvn:
    """Mean and variance normalisation: x -> (x + shift) * scale, one value of each per column."""

    shift: Floats
    scale: Floats

    @classmethod
    def read(cls, path: Path, dim: int) -> Cmvn:
        """Read Kaldi's nnet1 text format (am.mvn); ValueError when it does not hold `dim` columns."""
        text = path.read_text(encoding="utf-8")
        vectors = []
        for name in ("AddShift", "Rescale"):
            found = re.search(rf"<{name}>.*?<LearnRateCoef>\s+\S+\s+\[([^\]]*)\]", text, re.DOTALL)
            vector = np.array(found.group(1).split() if found else [], dtype=np.float32)
            if vector.size != dim:
                raise ValueError(
                    f"{path} holds {vector.size} values under <{name}>, and the model has {dim} columns"
                )
            vectors.append(vector)
        return cls(*vectors)

    def __call__(self, features: Floats) -> Floats:
        """Normalise features (frames x columns) into a new array."""
        normal = features + self.shift
        normal *= self.scale
        return normal


class Fbank:
    """Samples in, frames out, in blocks of any size: the frames do not depend on where blocks are cut."""

    def __init__(self, spec: FrontendSpec) -> None:
        """Prepare window and mel filters for one kind of features; LFR and CMVN come later."""
        self.length = round(spec.sample_rate_hz * spec.frame_length_ms / 1000)
        self.shift = round(spec.sample_rate_hz * spec.frame_shift_ms / 1000)
        # A power of two: to scale afterwards rounds as scaling the samples would.
        self._window = window(spec.window, self.length) * np.float32(INT16_SCALE)
        self._ones = np.ones((self.length, 1), np.float32)
        fft_size = 1 << (self.length - 1).bit_length()
        self._mel = mel_filters(spec.n_mels, fft_size, spec.sample_rate_hz)
        self._padded = np.zeros((_BLOCK_FRAMES, fft_size), np.float32)
        self._rest: Floats = np.zeros(0, np.float32)

    def accept(self, samples: Floats) -> Frames:
        """Take mono samples (-1..1) and give the frames that lie wholly inside what has been taken so far."""
        samples = np.concatenate((self._rest, samples)) if self._rest.size else samples
        count = max(0, (samples.size - self.length) // self.shift + 1)
        self._rest = samples[count * self.shift :].copy()
        mel = np.empty((count, self._mel.shape[1]), np.float32)
        energy = np.empty(count, np.float32)
        if count:
            view = np.lib.stride_tricks.sliding_window_view(samples, self.length)[:: self.shift]
            for start in range(0, count, _BLOCK_FRAMES):
                part = view[start : start + _BLOCK_FRAMES]
                energy[start : start + len(part)] = np.einsum("ij,ij->i", part, part)
                mel[start : start + len(part)] = self._log_mel(part)
        return Frames(mel, 10 * np.log10(energy + np.float32(LEVEL_FLOOR)))

    def _log_mel(self, part: Floats) -> Floats:
        frames = part.copy()
        # The sum of 16-bit samples is exact, so constant ones leave nothing behind.
        frames -= frames @ self._ones / np.float32(self.length)
        padded = self._padded[: len(part)]
        shaped = padded[:, : self.length]
        np.multiply(frames[:, :-1], np.float32(-PREEMPHASIS), out=shaped[:, 1:])
        shaped[:, 1:] += frames[:, 1:]
        # Kaldi takes the sample before the first as equal to the first.
        np.multiply(frames[:, 0], np.float32(1 - PREEMPHASIS), out=shaped[:, 0])
        shaped *= self._window
        spectrum = np.fft.rfft(padded)
        # numpy 1 gives float64.
        parts = spectrum.view(spectrum.real.dtype)
        np.square(parts, out=parts)
        power = (parts[:, 0::2] + parts[:, 1::2]).astype(np.float32, copy=False)
        mel: Floats = power @ self._mel
        np.maximum(mel, np.finfo(np.float32).eps, out=mel)
        return np.log(mel, out=mel)


def window(name: str, length: int) -> Floats:
    """Give one of Kaldi's analysis windows by its name; ValueError for an unknown one."""
    phase = 2 * np.pi * np.arange(length) / (length - 1)
    hanning = 0.5 - 0.5 * np.cos(phase)
    shapes = {
        "hamming": 0.54 - 0.46 * np.cos(phase),
        "hanning": hanning,
        "povey": hanning**0.85,
        "rectangular": np.ones(length),
    }
    if name not in shapes:
        raise ValueError(f"the analysis window {name!r} is unknown: it may be {', '.join(sorted(shapes))}")
    return shapes[name].astype(np.float32)


@functools.cache
def mel_filters(bins: int, fft_size: int, sample_rate_hz: int) -> Floats:
    """Give Kaldi's triangular mel filters, (fft_size / 2 + 1) x bins, from 20 Hz to half the sample rate."""

    def mel(frequency_hz: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        return np.asarray(1127.0 * np.log1p(frequency_hz / 700.0), np.float64)

    low, high = mel(np.array([LOW_FREQUENCY_HZ, sample_rate_hz / 2]))
    edges = low + (high - low) / (bins + 1) * np.arange(bins + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    # Kaldi leaves the Nyquist bin out.
    at = mel(np.arange(fft_size // 2) * (sample_rate_hz / fft_size))[:, None]
    triangles = np.minimum((at - left) / (centre - left), (right - at) / (right - centre))
    filters = np.vstack((np.maximum(triangles, 0), np.zeros((1, bins)))).astype(np.float32)
    # Every job of a process gets the same ones.
    filters.flags.writeable = False
    return filters


def stack_frames(mel: Floats, lfr_m: int, lfr_n: int) -> Floats:
    """Stack `lfr_m` frames into each row and move on by `lfr_n` (LFR).

    Ceil(frames / lfr_n) x (bins * lfr_m), a read-only view.

    The first frame is repeated (lfr_m - 1) // 2 times in front and the last as often as the last row needs,
    as FunASR's apply_lfr does.
    """
    count, bins = mel.shape
    if count == 0:
        return np.zeros((0, bins * lfr_m), np.float32)
    rows = -(-count // lfr_n)
    front = (lfr_m - 1) // 2
    back = max(0, (rows - 1) * lfr_n + lfr_m - count - front)
    padded = np.concatenate((np.repeat(mel[:1], front, 0), mel, np.repeat(mel[-1:], back, 0)))
    return stacked(padded, lfr_m, rows, step=lfr_n)


def stacked(mel: Floats, lfr_m: int, rows: int, *, step: int = 1) -> Floats:
    """Give `rows` rows of `lfr_m` frames each, `step` frames apart, as a read-only view of `mel`."""
    if (rows - 1) * step + lfr_m > len(mel):
        raise ValueError(f"{rows} rows of {lfr_m} frames do not fit into {len(mel)} frames")
    mel = np.ascontiguousarray(mel)
    bins, item = mel.shape[1], mel.itemsize
    return np.lib.stride_tricks.as_strided(
        mel, (rows, bins * lfr_m), (step * bins * item, item), writeable=False
    )
