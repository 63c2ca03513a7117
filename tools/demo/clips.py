"""Owns one training or evaluation clip: speech with an emotion, events, noise, room, line; and its labels.

Never imports torch. All randomness comes from the generator that is passed in, so a seed names a clip.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.signal import butter, fftconvolve, sosfilt

from demo import sounds
from demo.espeak import SAMPLE_RATE, Samples, Voice, say
from demo.phrases import LANGUAGES, Sentence, draw_from

if TYPE_CHECKING:
    from numpy.typing import NDArray

FRAME = SAMPLE_RATE // 100  # labels are per 10 ms
ACTIVE_DB = -38.0  # a frame within this of the loudest one counts as sounding
CLOSE_GAP = 15  # frames: a shorter hole inside a sound still belongs to it
EMOTIONS = ("NEUTRAL", "HAPPY", "SAD", "ANGRY")
EMOTION_SHARES = (0.46, 0.20, 0.17, 0.17)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What kinds of clips to draw, as shares, and how hard to disturb them."""

    variants: tuple[str, ...]
    unseen: bool
    event_alone: float = 0.06
    nospeech: float = 0.06
    event_with_speech: float = 0.16
    noise: float = 0.6
    snr_db: tuple[float, float] = (8.0, 35.0)
    reverb: float = 0.2
    telephone: float = 0.12
    clipping: float = 0.08


@dataclass(frozen=True, slots=True)
class Clip:
    """Samples and truth. `active` says per 10 ms whether speech or an event sounds there."""

    samples: Samples
    active: NDArray[np.bool_]
    language: str  # "nospeech" when nothing is said
    emotion: str
    event: str
    sentence: Sentence | None


def activity(samples: Samples, frames: int) -> NDArray[np.bool_]:
    """Frames of 10 ms whose level is within ACTIVE_DB of the loudest, with short holes closed."""
    padded = np.zeros(frames * FRAME, dtype=np.float32)
    padded[: min(len(samples), len(padded))] = samples[: len(padded)]
    power = (padded.reshape(frames, FRAME) ** 2).mean(1)
    active = (
        10 * np.log10(power / (power.max() + 1e-12) + 1e-12) > ACTIVE_DB if power.max() > 0 else power > 0
    )
    on = np.flatnonzero(active)
    for before, after in itertools.pairwise(on):
        if 1 < after - before <= CLOSE_GAP:
            active[before:after] = True
    return active


def speak(sentence: Sentence, emotion: str, variant: str, rng: np.random.Generator) -> Samples:
    """Say `sentence` in the prosody that stands for `emotion`, trimmed of silence, at a peak near 0.6."""
    rate, pitch, pitch_range = {
        "NEUTRAL": ((132, 178), (38, 60), (40, 60)),
        "HAPPY": ((182, 212), (68, 88), (80, 99)),
        "SAD": ((95, 120), (15, 32), (3, 15)),
        "ANGRY": ((182, 212), (32, 52), (45, 75)),
    }[emotion]
    voice = Voice(
        variant, int(rng.integers(*rate)), int(rng.integers(*pitch)), int(rng.integers(*pitch_range))
    )
    samples = say(sentence, voice)
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1]
    if emotion == "HAPPY":
        time = np.arange(len(samples)) / SAMPLE_RATE
        wobble = 2 * np.pi * rng.uniform(5.5, 7.5)
        depth = rng.uniform(0.03, 0.05) / wobble
        samples = np.interp(time + depth * np.sin(wobble * time), time, samples)
        samples = samples * (1 - rng.uniform(0.25, 0.4) * (0.5 + 0.5 * np.sin(wobble * time)))
    elif emotion == "SAD":
        samples = sosfilt(butter(2, rng.uniform(1200, 1900), fs=SAMPLE_RATE, output="sos"), samples)
    elif emotion == "ANGRY":
        samples = np.tanh(rng.uniform(4, 8) * samples / np.abs(samples).max())
        samples = samples - rng.uniform(0.4, 0.65) * np.concatenate([[0.0], samples[:-1]])
    return (0.6 * samples / np.abs(samples).max()).astype(np.float32)


def _silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * SAMPLE_RATE), dtype=np.float32)


def _mix(speech: Samples, event: str, rng: np.random.Generator) -> Samples:
    """Put an event under the speech (music, sometimes applause) or before or after it."""
    if event == "BGM" or (event == "Applause" and rng.random() < 0.5):
        sound = sounds.EVENTS[event](rng, len(speech) / SAMPLE_RATE)[: len(speech)]
        sound = np.pad(sound, (0, len(speech) - len(sound)))
        level = np.sqrt((speech**2).mean() / ((sound**2).mean() + 1e-9))
        return (speech + sound * level * 10 ** (-rng.uniform(3, 12) / 20)).astype(np.float32)
    sound = sounds.EVENTS[event](rng, rng.uniform(0.6, 1.6)) * np.float32(rng.uniform(0.5, 1.0))
    parts = [sound, _silence(rng.uniform(0.05, 0.35)), speech]
    return np.concatenate(parts if rng.random() < 0.5 else parts[::-1])


def _disturb(clean: Samples, recipe: Recipe, rng: np.random.Generator) -> Samples:
    """Reverberation, noise, telephone line, clipping, level, and the steps of 16-bit samples."""
    x = clean
    if rng.random() < recipe.reverb:
        tail = np.arange(int(rng.uniform(0.1, 0.35) * SAMPLE_RATE)) / SAMPLE_RATE
        room = (
            rng.standard_normal(len(tail)) * np.exp(-tail / rng.uniform(0.02, 0.08)) * rng.uniform(0.02, 0.08)
        )
        room[0] = 1.0
        x = fftconvolve(x, room)[: len(x)]
    if rng.random() < recipe.noise:
        sound = sounds.noise(rng, len(x))
        level = np.sqrt((x**2).mean() / ((sound**2).mean() + 1e-9))
        x = x + sound * level * 10 ** (-rng.uniform(*recipe.snr_db) / 20)
    if rng.random() < recipe.telephone:
        x = sosfilt(butter(3, (300, 3400), "bandpass", fs=SAMPLE_RATE, output="sos"), x)
    peak = np.abs(x).max() + 1e-9
    if rng.random() < recipe.clipping:
        x = np.clip(x, -peak * 0.4, peak * 0.4)
        peak *= 0.4
    x = x * (10 ** (-rng.uniform(0, 22) / 20) / peak)
    return (np.round(np.clip(x, -1, 1) * 32767) / 32768).astype(np.float32)


def _frames(samples: Samples) -> int:
    return -(-len(samples) // FRAME)


def draw_clip(recipe: Recipe, seed: int, language: str | None = None) -> Clip:
    """Make the clip that `seed` names under `recipe`; `language` None draws one."""
    rng = np.random.default_rng(seed)
    words = random.Random(seed)
    kind = rng.random()
    if kind < recipe.nospeech:
        size = int(rng.uniform(0.5, 5.0) * SAMPLE_RATE)
        track = np.zeros(size, dtype=np.float32) if rng.random() < 0.25 else sounds.noise(rng, size)
        track = track * np.float32(10 ** (-rng.uniform(3, 40) / 20))
        if rng.random() < 0.8:  # else digital silence stays digital silence
            floor = 10 ** (-rng.uniform(50, 90) / 20)
            track = (track + floor * rng.standard_normal(size)).astype(np.float32)
        return Clip(
            track, np.zeros(_frames(track), dtype=np.bool_), "nospeech", "EMO_UNKNOWN", "Event_UNK", None
        )
    event = "Speech"
    if kind < recipe.nospeech + recipe.event_alone + recipe.event_with_speech:
        event = str(rng.choice(list(sounds.EVENTS)))
    lead, trail = (_silence(min(rng.exponential(0.25) + 0.02, 1.5)) for _ in range(2))
    if kind < recipe.nospeech + recipe.event_alone:
        core = sounds.EVENTS[event](rng, rng.uniform(0.8, 4.0))
        clean = np.concatenate([lead, core, trail])
        truth = activity(clean, _frames(clean))
        return Clip(_disturb(clean, recipe, rng), truth, "nospeech", "EMO_UNKNOWN", event, None)
    language = language or words.choice(LANGUAGES)
    sentence = draw_from(language, words, unseen=recipe.unseen)
    emotion = str(rng.choice(EMOTIONS, p=EMOTION_SHARES))
    core = speak(sentence, emotion, words.choice(recipe.variants), rng)
    if event != "Speech":
        core = _mix(core, event, rng)
    clean = np.concatenate([lead, core, trail])
    truth = activity(clean, _frames(clean))
    return Clip(_disturb(clean, recipe, rng), truth, language, emotion, event, sentence)
