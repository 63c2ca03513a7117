"""Owns the recordings of a soak: the demo model's samples, cut, coded and damaged, the same for a seed.

Knows no daemon.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import soundfile

from sensevoiced.jobs import SAMPLE_RATE_HZ
from sensevoiced.models import DEMO_DIR

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

LENGTHS_S = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 15.0)
"""Of the cuts; beside them come one sample of 40 s whole, and everything in a row."""
LONG_S = 90.0
CUTS_OF_EACH = 3
DAMAGED_OF_EACH = 2
"""Broken versions of each format: one cut off, one with bits flipped."""
FLIPPED_BITS = 200


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording."""

    path: Path
    seconds: float
    intact: bool

    @property
    def name(self) -> str:
        """What a report calls it."""
        return self.path.name


@dataclass(frozen=True, slots=True)
class Ask:
    """One way to ask for a clip: equal ones must get equal answers."""

    clip: Clip
    stream: bool = False
    language: str = "auto"
    itn: bool = True
    vad: bool = True

    @property
    def fields(self) -> dict[str, Any]:
        """The options of the `transcribe` message."""
        return {"language": self.language, "itn": self.itn, "vad": self.vad}

    @property
    def plain(self) -> bool:
        """Whether all options are what a client gets unasked."""
        return self.language == "auto" and self.itn and self.vad

    def __str__(self) -> str:
        """Name it in a sentence."""
        return (
            f"{self.clip.name}{' streamed' if self.stream else ''} {self.language} {self.itn:d}{self.vad:d}"
        )


def make(folder: Path, seed: int) -> list[Clip]:
    """Write the clips of a seed into `folder`."""
    rng = random.Random(f"material {seed}")
    samples = {path.stem: _read(path) for path in sorted((DEMO_DIR / "samples").glob("*.flac"))}
    everything = np.concatenate(list(samples.values()))
    cuts: list[tuple[str, Floats]] = []
    for length_s in LENGTHS_S:
        for number in range(CUTS_OF_EACH):
            wanted = round(length_s * SAMPLE_RATE_HZ)
            start = rng.randrange(len(everything) - wanted)
            cuts.append((f"{length_s:g}s-{number}", everything[start : start + wanted]))
    cuts += [("mixed", samples["mixed"]), ("long", everything[: round(LONG_S * SAMPLE_RATE_HZ)])]
    forms = list(_FORMS)
    clips = []
    for number, (name, audio) in enumerate(cuts):
        form = forms[number % len(forms)]
        path = folder / f"{name}-{form}"
        _FORMS[form](path, audio)
        clips.append(Clip(path, len(audio) / SAMPLE_RATE_HZ, intact=True))
    return clips + _damaged(folder, clips[: DAMAGED_OF_EACH * len(forms)], rng)


def asks(clips: list[Clip], seed: int) -> list[Ask]:
    """Every way in which the clips will be asked for."""
    rng = random.Random(f"asks {seed}")
    found = []
    for clip in clips:
        found += [Ask(clip), Ask(clip, stream=True)]
        if clip.intact:
            language = rng.choice(("zh", "en", "yue", "ja", "ko"))
            found.append(Ask(clip, language=language, itn=False, vad=clip.seconds > 20 or rng.random() < 0.5))
    return found


def _damaged(folder: Path, clips: list[Clip], rng: random.Random) -> list[Clip]:
    found = []
    for number, clip in enumerate(clips):
        content = bytearray(clip.path.read_bytes())
        # Both kinds of damage to each format, as its second clip comes a whole round later.
        if (number + number // len(_FORMS)) % DAMAGED_OF_EACH:
            del content[round(len(content) * rng.uniform(0, 0.99)) :]
        else:
            for _ in range(FLIPPED_BITS):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path = folder / f"damaged-{clip.name}"
        path.write_bytes(content)
        found.append(Clip(path, clip.seconds, intact=False))
    return found


def _read(path: Path) -> Floats:
    audio, rate = soundfile.read(path, dtype="float32")
    if rate != SAMPLE_RATE_HZ:
        raise ValueError(f"{path} has {rate} Hz")
    return audio


def _sndfile(rate_hz: int = SAMPLE_RATE_HZ, channels: int = 1, **how: str) -> Callable[[Path, Floats], None]:
    def write(path: Path, audio: Floats) -> None:
        # Another rate by repeating or dropping samples: what it sounds like matters to nobody here.
        places = np.arange(len(audio) * rate_hz // SAMPLE_RATE_HZ) * SAMPLE_RATE_HZ // rate_hz
        sound = np.repeat(audio[places][:, None], channels, axis=1)
        # In pieces: libsndfile's Vorbis coder overflows its stack on a long one.
        with soundfile.SoundFile(path, "w", rate_hz, channels, **how) as file:
            for start in range(0, len(sound), rate_hz):
                file.write(sound[start : start + rate_hz])

    return write


def _m4a(path: Path, audio: Floats) -> None:
    """AAC in MP4, whose index stands at the end: streamed, all of it has to be kept."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray(audio[None], format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


_FORMS: dict[str, Callable[[Path, Floats], None]] = {
    "16k.wav": _sndfile(format="WAV", subtype="PCM_16"),
    "16k.flac": _sndfile(format="FLAC", subtype="PCM_16"),
    "16k.mp3": _sndfile(format="MP3", subtype="MPEG_LAYER_III"),
    "8k.wav": _sndfile(8_000, format="WAV", subtype="ULAW"),
    "44k-stereo.wav": _sndfile(44_100, 2, format="WAV", subtype="FLOAT"),
    "16k.m4a": _m4a,
    "48k.opus": _sndfile(48_000, format="OGG", subtype="OPUS"),
    "44k.ogg": _sndfile(44_100, format="OGG", subtype="VORBIS"),
}
"""File name's end to its writer."""
