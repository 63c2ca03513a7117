"""Owns libespeak-ng through ctypes: text and voice in, 16 kHz samples out. One instance a process.

Never imports torch. The library is GPL; it is called to train and to measure, and nothing of it is shipped.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soxr
from numpy.typing import NDArray

if TYPE_CHECKING:
    from demo.phrases import Sentence

SAMPLE_RATE = 16_000
SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: the callback gets the samples before espeak_Synth returns
UTF8 = 1
RATE, PITCH, RANGE = 1, 3, 4  # espeak_PARAMETER
VOICES = {"zh": "cmn-latn-pinyin", "en": "en-us", "yue": "yue", "ja": "ja", "ko": "ko"}
FULL_SCALE = 32768.0

Samples = NDArray[np.float32]

_VARIANTS: dict[str, list[str]] = tomllib.loads(
    (Path(__file__).parent / "voices.toml").read_text(encoding="utf-8")
)
TRAINING_VARIANTS = tuple(_VARIANTS["training"])
DEVELOPMENT_VARIANTS = tuple(_VARIANTS["development"])
TEST_VARIANTS = tuple(_VARIANTS["test"])


class EspeakMissingError(RuntimeError):
    """libespeak-ng cannot be loaded."""


@dataclass(frozen=True, slots=True)
class Voice:
    """How a sentence is spoken: variant name, words a minute, pitch and pitch range (0-99)."""

    variant: str
    rate: int
    pitch: int
    pitch_range: int


class _Library:
    """The loaded library and the buffer its callback fills."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1"
        try:
            self.lib = ctypes.CDLL(name)
        except OSError as error:
            message = "libespeak-ng is missing: install the package espeak-ng (apt-get install espeak-ng)."
            raise EspeakMissingError(message) from error
        self.rate = self.lib.espeak_Initialize(SYNCHRONOUS, 0, None, 0)
        if self.rate <= 0:
            message = "libespeak-ng does not start: install its voice data (package espeak-ng-data)."
            raise EspeakMissingError(message)
        self.blocks: list[NDArray[np.int16]] = []
        prototype = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        self.callback = prototype(self._take)  # kept: the library holds only a raw pointer to it
        self.lib.espeak_SetSynthCallback(self.callback)

    def _take(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int) -> int:
        if samples and count > 0:
            self.blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0


@cache
def _library() -> _Library:
    return _Library()


def reading(sentence: Sentence) -> str:
    """What espeak-ng is given: pinyin with tone numbers for Mandarin, the reading for the rest."""
    if sentence.language != "zh":
        return sentence.spoken
    from pypinyin import Style, lazy_pinyin  # noqa: PLC0415 - a dependency of training only, and slow to import

    return " ".join(lazy_pinyin(sentence.spoken, style=Style.TONE3, neutral_tone_with_five=True))


def say(sentence: Sentence, voice: Voice) -> Samples:
    """Speak `sentence`.

    Returns:
        Mono float32 samples in [-1, 1] at 16 kHz.

    Raises:
        EspeakMissingError: libespeak-ng or its data is not installed.
        ValueError: the voice is unknown or nothing was said.
    """
    espeak = _library()
    name = f"{VOICES[sentence.language]}+{voice.variant}"
    if espeak.lib.espeak_SetVoiceByName(name.encode()) != 0:
        message = f"espeak-ng has no voice {name}"
        raise ValueError(message)
    for parameter, value in ((RATE, voice.rate), (PITCH, voice.pitch), (RANGE, voice.pitch_range)):
        espeak.lib.espeak_SetParameter(parameter, value, 0)
    text = reading(sentence).encode() + b"\0"
    espeak.blocks.clear()
    espeak.lib.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, UTF8, None, None)
    if not espeak.blocks:
        message = f"espeak-ng said nothing for {sentence.spoken!r} with {name}"
        raise ValueError(message)
    samples = np.concatenate(espeak.blocks).astype(np.float32) / FULL_SCALE
    return soxr.resample(samples, espeak.rate, SAMPLE_RATE).astype(np.float32)
