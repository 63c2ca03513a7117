"""Makes the checkpoint that is measured on, full-size with seeded random weights.

It is made once, in a cache folder, and kept. A random network costs what the real one costs; it has nothing
to say.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.audio import shared_data
from sensevoiced.engine.tokenizer import EMOTION_TAGS, EVENT_TAGS, ITN_TAGS, LANGUAGE_TAGS
from sensevoiced.models import DEMO_DIR
from tests.harness.random_checkpoint import TINY, train_tokenizer, write_full, write_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[1]
SEED = 1
PIECES = 25_055
"""SenseVoiceSmall's vocabulary: its CTC head is a twentieth of the weights."""
FULL: dict[str, Any] = {
    **TINY,
    "output_size": 512,
    "linear_units": 2_048,
    "num_blocks": 50,
    "tp_blocks": 20,
}
MELS = 80
TAGS = tuple(f"<|{tag}|>" for tag in (*LANGUAGE_TAGS, *EMOTION_TAGS, *EVENT_TAGS, *ITN_TAGS))


def checkpoint(cache: Path) -> Path:
    """Give the folder of the full-size checkpoint: real tokenizer and config where they are there."""
    data = shared_data(ROOT)

    def write(folder: Path) -> None:
        if data:
            write_full(folder, data / "sensevoice_small", seed=SEED)
        else:
            write_stand_in(folder)

    return made_once(cache / ("random" if data else "random-stand-in"), write)


def vad(_cache: Path) -> Path:
    """Give the folder of FSMN-VAD: the real one where it is there, else the demo's."""
    data = shared_data(ROOT)
    return data / "fsmn_vad" if data else DEMO_DIR / "vad"


def write_stand_in(folder: Path, *, conf: dict[str, Any] = FULL) -> Path:
    """Write a checkpoint of SenseVoiceSmall's dimensions with a tokenizer made on the spot."""
    tokenizer = train_tokenizer(_sentences(), pieces=PIECES, tags=TAGS)
    return write_model(folder, seed=SEED, conf=conf, n_mels=MELS, tokenizer=tokenizer)


def made_once(folder: Path, write: Callable[[Path], object]) -> Path:
    """Give `folder`, written under another name first if need be, so that half of one is never found."""
    if not folder.is_dir():
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        try:
            write(unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _sentences() -> Iterator[str]:
    """Invent text with as many characters and words as a vocabulary of five languages needs."""
    for first, count in ((0x4E00, 9_000), (0x3041, 190), (0xAC00, 2_000)):  # Han, kana, Hangul
        yield "".join(chr(first + i) for i in range(count))
    chance = random.Random(SEED)
    rimes = ("a", "e", "i", "o", "u", "ai", "ee", "oo", "ar", "er", "in", "on", "an", "al", "ent", "ing")
    syllables = [onset + rime for onset in "bcdfghjklmnprstvwz" for rime in rimes]
    words = ["".join(chance.choices(syllables, k=chance.randint(1, 3))) for _ in range(20_000)]
    for _ in range(30_000):
        yield " ".join(chance.choices(words, k=12))
