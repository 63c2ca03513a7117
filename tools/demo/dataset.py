"""Owns the synthesised corpus on disk and in memory: features in float16, activity labels, and truths.

Never imports torch. A shard depends on its number only, so any count of processes makes the same corpus.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from demo.clips import Recipe, draw_clip
from demo.espeak import DEVELOPMENT_VARIANTS, TRAINING_VARIANTS
from demo.features import MELS, fbank

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SHARD = 500  # clips in one file
SEEDS = {"train": 1_000_000, "development": 2_000_000}  # first clip seed of each set; they never meet
RECIPES = {
    "train": Recipe(TRAINING_VARIANTS, unseen=False),
    "development": Recipe(DEVELOPMENT_VARIANTS, unseen=True),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One clip as training sees it: fbank [frames, 80] float16, active [frames], and what is true of it."""

    fbank: NDArray[np.float16]
    active: NDArray[np.bool_]
    language: str
    emotion: str
    event: str
    with_itn: str
    without_itn: str


def _make_shard(job: tuple[str, int, Path]) -> Path:
    name, number, directory = job
    path = directory / f"{name}-{number:03d}.npz"
    if path.exists():
        return path
    blocks, labels, meta = [], [], []
    for i in range(SHARD):
        clip = draw_clip(RECIPES[name], SEEDS[name] + number * SHARD + i)
        features = fbank(clip.samples)
        active = np.zeros(len(features), dtype=np.bool_)
        shared = min(len(features), len(clip.active))
        active[:shared] = clip.active[:shared]
        blocks.append(features.astype(np.float16))
        labels.append(active)
        said = clip.sentence
        texts = (said.with_itn, said.without_itn) if said else ("", "")
        meta.append((len(features), clip.language, clip.emotion, clip.event, *texts))
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, fbank=np.concatenate(blocks), active=np.concatenate(labels), meta=json.dumps(meta))
    partial.replace(path)
    return path


def synthesise(directory: Path, name: str, count: int, processes: int) -> None:
    """Make `count` clips (rounded up to whole shards) of the set `name`; shards already there are kept."""
    directory.mkdir(parents=True, exist_ok=True)
    jobs = [(name, number, directory) for number in range(-(-count // SHARD))]
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for done, path in enumerate(pool.imap_unordered(_make_shard, jobs), 1):
            left = (time.monotonic() - started) / done * (len(jobs) - done)
            sys.stdout.write(f"synthesis {done}/{len(jobs)} {path.name}, {left:.0f} s left\n")
            sys.stdout.flush()


def read(directory: Path, name: str) -> Iterator[Item]:
    """All clips of the set `name`, in order."""
    for path in sorted(directory.glob(f"{name}-[0-9][0-9][0-9].npz")):
        with np.load(path) as shard:
            features, active = shard["fbank"].reshape(-1, MELS), shard["active"]
            at = 0
            for size, *truth in json.loads(str(shard["meta"])):
                yield Item(features[at : at + size], active[at : at + size], *truth)
                at += size
