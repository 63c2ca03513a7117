"""Owns the sample clips of `make demo`: what is said in them, by which test voice, from which seed.

The clips are fixed here, before the model was trained; none was chosen for coming out right.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from demo import sounds
from demo.clips import speak
from demo.espeak import SAMPLE_RATE, Samples
from demo.phrases import Sentence, draw_from

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SEED = 4_000_000
PAUSE_S = 2.0  # between languages: long enough for the VAD to end a segment
EDGE_S = 0.3
NOISE_LEVEL = 10 ** (-80 / 20)  # a little above the last bit: no digital silence, and FLAC stays small


@dataclass(frozen=True, slots=True)
class Part:
    """One stretch of a sample: seconds from its start, tags, and text with ITN."""

    start: float
    language: str
    emotion: str
    event: str
    text: str


def _gap(seconds: float) -> Samples:
    return np.zeros(int(seconds * SAMPLE_RATE), dtype=np.float32)


def _unseen(language: str, seed: int) -> Sentence:
    """Two or three joined sentences that training has not seen together."""
    rng = random.Random(seed)
    while True:
        sentence = draw_from(language, rng, unseen=True)
        if len(sentence.spoken.split(", ")) > 1 and any(c.isdigit() for c in sentence.with_itn):
            return sentence


def _said(language: str, emotion: str, variant: str, seed: int) -> tuple[Samples, Sentence]:
    sentence = _unseen(language, seed)
    return speak(sentence, emotion, variant, np.random.default_rng(seed)), sentence


def _one(language: str, emotion: str, variant: str, seed: int) -> tuple[Samples, list[Part]]:
    samples, sentence = _said(language, emotion, variant, seed)
    return np.concatenate([_gap(EDGE_S), samples]), [
        Part(EDGE_S, language, emotion, "Speech", sentence.with_itn)
    ]


def _mixed(seed: int) -> tuple[Samples, list[Part]]:
    track, parts = [_gap(EDGE_S)], []
    for i, (language, variant) in enumerate(
        (("zh", "f3"), ("en", "m4"), ("ja", "linda"), ("ko", "paul"), ("yue", "Michael"))
    ):
        samples, sentence = _said(language, "NEUTRAL", variant, seed + i)
        parts.append(
            Part(sum(map(len, track)) / SAMPLE_RATE, language, "NEUTRAL", "Speech", sentence.with_itn)
        )
        track += [samples, _gap(PAUSE_S)]
    return np.concatenate(track[:-1]), parts


def _event(seed: int) -> tuple[Samples, list[Part]]:
    """A thanks, and applause after a pause; then laughter."""
    rng = np.random.default_rng(seed)
    samples, sentence = _said("en", "NEUTRAL", "steph2", seed)
    track, parts = (
        [_gap(EDGE_S), samples, _gap(PAUSE_S)],
        [Part(EDGE_S, "en", "NEUTRAL", "Speech", sentence.with_itn)],
    )
    for name in ("Applause", "Laughter"):
        parts.append(Part(sum(map(len, track)) / SAMPLE_RATE, "nospeech", "EMO_UNKNOWN", name, ""))
        track += [sounds.EVENTS[name](rng, 2.5), _gap(PAUSE_S)]
    return np.concatenate(track[:-1]), parts


CLIPS: dict[str, Callable[[], tuple[Samples, list[Part]]]] = {
    "zh": lambda: _one("zh", "NEUTRAL", "f3", SEED),
    "en": lambda: _one("en", "NEUTRAL", "m4", SEED + 10),
    "yue": lambda: _one("yue", "NEUTRAL", "linda", SEED + 20),
    "ja": lambda: _one("ja", "NEUTRAL", "Alex", SEED + 30),
    "ko": lambda: _one("ko", "NEUTRAL", "steph2", SEED + 40),
    "angry": lambda: _one("en", "ANGRY", "Michael", SEED + 50),
    "mixed": lambda: _mixed(SEED + 60),
    "event": lambda: _event(SEED + 70),
}


def write_samples(directory: Path) -> None:
    """Write every clip as FLAC, and expected.tsv with what is in each."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = ["file\tstart_s\tlanguage\temotion\tevent\ttext with ITN"]
    for name, make in CLIPS.items():
        samples, parts = make()
        samples = np.concatenate([samples, _gap(EDGE_S)])
        samples = samples + NOISE_LEVEL * np.random.default_rng(SEED).standard_normal(len(samples))
        soundfile.write(directory / f"{name}.flac", samples, SAMPLE_RATE, subtype="PCM_16")
        lines += [
            f"{name}.flac\t{p.start:.2f}\t{p.language}\t{p.emotion}\t{p.event}\t{p.text}" for p in parts
        ]
    (directory / "expected.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
