"""Owns the synthetic sounds that are not speech: applause, laughter, crying, coughs, sneezes, music, noises.

Pure numpy / scipy: every function takes a generator and returns mono float32 at 16 kHz. Never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.fft import next_fast_len
from scipy.signal import fftconvolve, lfilter

from demo.espeak import SAMPLE_RATE, Samples

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Generator = np.random.Generator


def _normal(x: NDArray[np.float64]) -> Samples:
    """Scale to a peak of 0.7."""
    return (0.7 * x / (np.abs(x).max() + 1e-9)).astype(np.float32)


def _resonate(x: NDArray[np.float64], formants: list[tuple[float, float]]) -> NDArray[np.float64]:
    """Add up two-pole resonators of (frequency, bandwidth) in Hz."""
    out = np.zeros_like(x)
    for frequency, bandwidth in formants:
        radius = np.exp(-np.pi * bandwidth / SAMPLE_RATE)
        angle = 2 * np.pi * frequency / SAMPLE_RATE
        out += lfilter([1 - radius], [1, -2 * radius * np.cos(angle), radius**2], x)
    return out


def _voiced(
    f0: NDArray[np.float64], breath: float, formants: list[tuple[float, float]], rng: Generator
) -> NDArray[np.float64]:
    """A pulse train of pitch `f0` (Hz, one value a sample) with some breath, through formants."""
    phase = np.cumsum(f0) / SAMPLE_RATE
    pulses = np.diff(np.floor(phase), prepend=0.0)
    return _resonate(pulses + breath * rng.standard_normal(len(f0)), formants)


def _place(bursts: list[tuple[float, NDArray[np.float64]]]) -> Samples:
    """Lay bursts at their start times (seconds) on one track."""
    end = max(int(start * SAMPLE_RATE) + len(burst) for start, burst in bursts)
    track = np.zeros(end)
    for start, burst in bursts:
        at = int(start * SAMPLE_RATE)
        track[at : at + len(burst)] += burst
    return _normal(track)


def applause(rng: Generator, duration_s: float) -> Samples:
    """Many hands: short bursts of band noise at random moments, swelling and fading."""
    size = int(duration_s * SAMPLE_RATE)
    track = np.zeros(size)
    rate = rng.uniform(25, 140)
    for _ in range(5):
        hits = np.zeros(size)
        count = rng.poisson(rate * duration_s / 5)
        hits[rng.integers(0, size, count)] = rng.uniform(0.2, 1.0, count)
        decay = np.exp(-np.arange(int(0.05 * SAMPLE_RATE)) / (rng.uniform(0.003, 0.012) * SAMPLE_RATE))
        clap = _resonate(
            decay * rng.standard_normal(len(decay)),
            [(rng.uniform(800, 2600), 700.0), (rng.uniform(2500, 5000), 1500.0)],
        )
        track += fftconvolve(hits, clap / np.abs(clap).max())[:size]
    edge = np.minimum(1.0, np.minimum(np.arange(size), np.arange(size)[::-1]) / (0.25 * SAMPLE_RATE))
    return _normal(track * edge)


def laughter(rng: Generator, duration_s: float) -> Samples:
    """A row of "ha": voiced bursts, each with a falling pitch, the row falling too."""
    f0, period = rng.uniform(170, 380), rng.uniform(0.16, 0.24)
    scale = rng.uniform(0.9, 1.25)
    formants = [(720 * scale, 110.0), (1250 * scale, 150.0), (2600 * scale, 250.0)]
    bursts = []
    for i in range(max(3, int(duration_s / period))):
        size = int(rng.uniform(0.5, 0.7) * period * SAMPLE_RATE)
        ramp = np.linspace(0, 1, size)
        pitch = f0 * (1 - 0.02 * i) * (1.12 - 0.3 * ramp) * rng.uniform(0.95, 1.05)
        envelope = np.sin(np.pi * ramp**0.6) * (1 - 0.4 * i * period / max(duration_s, period))
        bursts.append((i * period, envelope * _voiced(pitch, 0.12, formants, rng)))
    return _place(bursts)


def cry(rng: Generator, duration_s: float) -> Samples:
    """Wails: long voiced arcs at a high trembling pitch, with breaths between."""
    f0 = rng.uniform(330, 520)
    formants = [(rng.uniform(800, 1000), 120.0), (rng.uniform(1500, 1900), 200.0), (3000.0, 300.0)]
    bursts, at = [], 0.0
    while at < duration_s:
        length = rng.uniform(0.5, 1.1)
        time = np.arange(int(length * SAMPLE_RATE)) / SAMPLE_RATE
        ramp = time / length
        pitch = (
            f0
            * (0.85 + 0.35 * np.sin(np.pi * ramp**0.7))
            * (1 + 0.03 * np.sin(2 * np.pi * rng.uniform(7, 11) * time))
        )
        bursts.append((at, np.sin(np.pi * ramp**0.5) * _voiced(pitch, 0.05, formants, rng)))
        at += length + rng.uniform(0.08, 0.25)
    return _place(bursts)


def cough(rng: Generator, duration_s: float) -> Samples:
    """One to several explosive noise bursts with two formants."""
    formants = [(rng.uniform(450, 900), 250.0), (rng.uniform(1300, 2200), 500.0)]
    bursts, at = [], 0.0
    while at < duration_s - 0.2 or not bursts:
        size = int(rng.uniform(0.16, 0.32) * SAMPLE_RATE)
        time = np.arange(size) / SAMPLE_RATE
        envelope = (1 - np.exp(-time / 0.004)) * np.exp(-time / rng.uniform(0.04, 0.08))
        bursts.append((at, envelope * _resonate(rng.standard_normal(size), formants)))
        at += rng.uniform(0.3, 0.5)
    return _place(bursts)


def sneeze(rng: Generator, duration_s: float) -> Samples:
    """A rising breath, then a hissing explosion."""
    breath = int(min(0.5, duration_s / 2) * SAMPLE_RATE)
    rising = (
        0.25
        * np.linspace(0, 1, breath) ** 2
        * _resonate(rng.standard_normal(breath), [(rng.uniform(1200, 1800), 700.0)])
    )
    size = int(rng.uniform(0.25, 0.4) * SAMPLE_RATE)
    time = np.arange(size) / SAMPLE_RATE
    burst = np.exp(-time / rng.uniform(0.06, 0.12)) * _resonate(
        rng.standard_normal(size), [(rng.uniform(3500, 5500), 1500.0), (2200.0, 900.0)]
    )
    return _place(
        [
            (0.0, rising / (np.abs(rising).max() + 1e-9) * 0.3),
            (breath / SAMPLE_RATE + 0.05, burst / np.abs(burst).max()),
        ]
    )


def music(rng: Generator, duration_s: float) -> Samples:
    """Chords of decaying harmonics over a beat of drum and hat."""
    size = int(duration_s * SAMPLE_RATE)
    track = np.zeros(size + SAMPLE_RATE)
    beat_s = rng.uniform(0.3, 0.6)
    root = rng.uniform(110, 260)
    third = rng.choice([3, 4])
    drums = rng.random() < 0.7
    for i in range(int(duration_s / beat_s) + 1):
        at = int(i * beat_s * SAMPLE_RATE)
        time = np.arange(int(beat_s * 1.6 * SAMPLE_RATE)) / SAMPLE_RATE
        if i % 4 == 0:
            chord = root * 2 ** (rng.choice([0, 5, 7, -3]) / 12)
        note = np.zeros_like(time)
        for step in (0, third, 7, 12) if i % 2 == 0 else (rng.choice([0, third, 7, 12, 14]) + 12,):
            for harmonic in range(1, 5):
                note += np.sin(2 * np.pi * chord * 2 ** (step / 12) * harmonic * time) / harmonic**1.5
        note *= np.exp(-time / 0.35) * np.minimum(1, time / 0.01)
        if drums:
            note += 2.0 * np.exp(-time / 0.07) * np.sin(2 * np.pi * 70 * time) * (i % 2 == 0)
            note += 0.5 * np.exp(-time / 0.02) * rng.standard_normal(len(time))
        end = min(at + len(time), len(track))
        track[at:end] += note[: end - at]
    return _normal(track[:size])


EVENTS: dict[str, Callable[[Generator, float], Samples]] = {
    "Applause": applause,
    "Laughter": laughter,
    "Cry": cry,
    "Cough": cough,
    "Sneeze": sneeze,
    "BGM": music,
}


def noise(rng: Generator, size: int) -> Samples:
    """Noise of a random colour, or hum, with a peak of about 0.7."""
    kind = rng.choice(["white", "pink", "brown", "band", "hum"])
    if kind == "hum":
        time = np.arange(size) / SAMPLE_RATE
        base = rng.choice([50.0, 60.0])
        tones = sum(np.sin(2 * np.pi * base * k * time + rng.uniform(0, 6)) / k for k in range(1, 8))
        return _normal(tones + 0.1 * rng.standard_normal(size))
    fast = next_fast_len(size, real=True)
    spectrum = np.fft.rfft(rng.standard_normal(fast))
    frequency = np.fft.rfftfreq(fast, 1 / SAMPLE_RATE) + 20.0
    if kind == "pink":
        spectrum /= np.sqrt(frequency)
    elif kind == "brown":
        spectrum /= frequency
    elif kind == "band":
        centre = rng.uniform(200, 6000)
        spectrum *= np.exp(-(((frequency - centre) / (0.5 * centre)) ** 2))
    return _normal(np.fft.irfft(spectrum, fast)[:size])
