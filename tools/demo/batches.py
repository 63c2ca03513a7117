"""Owns the way from corpus to batches: augmentation, joined utterances, padding, targets, guesses.

Runs in a process of its own beside the training loop. Never imports torch.
"""

from __future__ import annotations

import multiprocessing
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from demo.dataset import Item, read
from demo.features import LFR_N, MELS, read_cmvn, stack
from demo.model import INPUT_SIZE, ITN_QUERY, LANGUAGE_QUERY, TAG_FRAMES
from demo.phrases import PUNCTUATION, pieces
from demo.tokenizer import vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STEP_FRAMES = 2400  # padded LFR frames in a step of all workers together
POOL_BATCHES = 24  # batches drawn together and sorted by length, so that padding stays small
AUTO_SHARE = 0.7  # of utterances asked with language "auto"; the rest with their own
JOINED_SHARE = 0.15
JOINED_MAX_FRAMES = 2800  # 28 s, in 10 ms frames
FLAT_MAX_PIECES = 14  # longer texts have pauses inside, where evenly spread labels mislead
AHEAD = 8  # batches the feeder prepares in advance

Mels = NDArray[np.float32]


class Batch(NamedTuple):
    """Padded arrays. `flat` [B, T] guesses a label for each frame (-1: none), for the flat start."""

    x: NDArray[np.float16]
    lengths: NDArray[np.int64]
    language: NDArray[np.int64]
    itn: NDArray[np.int64]
    tags: NDArray[np.int64]
    targets: NDArray[np.int64]
    target_lengths: NDArray[np.int64]
    flat: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the feeder makes: how many batches, until when short ones only, from when joined ones too."""

    steps: int
    first_step: int
    flat_until: int
    joined_from: int
    seed: int
    workers: int  # the batch is shared by so many processes


def augment(mels: Mels, rng: np.random.Generator) -> Mels:
    """Another speaker and line from the same clip: vocal tract, tempo, level, tilt, SpecAugment's masks."""
    mels = mels[rng.integers(0, LFR_N) :] if len(mels) > 60 else mels
    if rng.random() < 0.5:
        at = np.clip(np.arange(MELS) * rng.uniform(0.93, 1.07), 0, MELS - 1)
        low = at.astype(int)
        part = (at - low).astype(np.float32)
        mels = mels[:, low] * (1 - part) + mels[:, np.minimum(low + 1, MELS - 1)] * part
    if rng.random() < 0.4:
        size = int(len(mels) / rng.uniform(0.93, 1.08))
        at = np.linspace(0, len(mels) - 1, size)
        low = at.astype(int)
        part = (at - low).astype(np.float32)[:, None]
        mels = mels[low] * (1 - part) + mels[np.minimum(low + 1, len(mels) - 1)] * part
    tilt = rng.normal(0, 0.5) + rng.normal(0, 0.5) * np.linspace(-1, 1, MELS)
    mels = mels + tilt.astype(np.float32)
    fill = mels.mean()
    for _ in range(2):
        width = rng.integers(0, 12)
        start = rng.integers(0, MELS - width)
        mels[:, start : start + width] = fill
        width = rng.integers(0, max(2, min(14, len(mels) // 12)))
        start = rng.integers(0, len(mels) - width)
        mels[start : start + width] = fill
    return mels


def weight(piece: str) -> float:
    """How long a piece is to say, roughly: in syllables."""
    bare = piece.lstrip("▁")
    if bare in PUNCTUATION:
        return 0.05
    if bare.isascii():
        return 1.0 if bare.isdigit() else max(0.7, len(bare) / 3)
    return 0.8 if "\u3040" <= bare <= "\u30ff" else 1.1


class Feeder:
    """Draws batches from the corpus in memory."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        """Read the whole corpus into memory, about 1.5 GiB."""
        self.plan = plan
        self.items = list(read(directory, "train"))
        self.vocabulary = vocabulary()
        self.shift, self.scale = read_cmvn(directory / "am.mvn")
        self.rng = np.random.default_rng(plan.seed + plan.first_step)
        self.frames = STEP_FRAMES // plan.workers
        self.partners: dict[tuple[str, str], list[int]] = defaultdict(list)
        for i, item in enumerate(self.items):
            if item.event == "Speech":
                self.partners[item.language, item.emotion].append(i)
        self.short = [i for i, item in enumerate(self.items) if self._is_short(item)]

    def _is_short(self, item: Item) -> bool:
        return item.event == "Speech" and len(pieces(item.without_itn, item.language)) <= FLAT_MAX_PIECES

    def _chosen(self, order: list[int], step: int) -> Iterator[list[int]]:
        """Each utterance as the list of the clips joined in it."""
        for i in order:
            item = self.items[i]
            if step < self.plan.joined_from or item.event != "Speech" or self.rng.random() >= JOINED_SHARE:
                yield [i]
                continue
            joined, total = [i], len(item.fbank)
            for j in self.rng.choice(self.partners[item.language, item.emotion], 11):
                total += len(self.items[j].fbank)
                if total > JOINED_MAX_FRAMES or self.rng.random() < 0.1:
                    break
                joined.append(int(j))
            yield joined

    def batches(self) -> Iterator[Batch]:
        """All batches of the plan. One pass over the corpus follows another."""
        step = self.plan.first_step
        order: list[int] = []
        while step < self.plan.steps:
            source = self.short if step < self.plan.flat_until else range(len(self.items))
            if not order:
                order = self.rng.permutation(source).tolist()
            drawn: list[tuple[list[int], int]] = []
            frames = 0
            while order and frames < POOL_BATCHES * self.frames:
                for clips in self._chosen([order.pop()], step):
                    size = sum(len(self.items[i].fbank) for i in clips) // LFR_N + 1
                    drawn.append((clips, size))
                    frames += size
            drawn.sort(key=lambda pair: pair[1])
            groups: list[list[list[int]]] = [[]]
            for clips, size in drawn:
                if size * (len(groups[-1]) + 1) > self.frames and groups[-1]:
                    groups.append([])
                groups[-1].append(clips)
            for k in self.rng.permutation(len(groups)):
                yield self._collate(groups[k])
                step += 1
            if step >= self.plan.flat_until and source is self.short:
                order = []

    def _collate(self, group: list[list[int]]) -> Batch:
        rows = [self._row(clips) for clips in group]
        size, longest = len(rows), max(len(row[0]) for row in rows)
        x = np.zeros((size, longest, INPUT_SIZE), dtype=np.float16)
        flat = np.full((size, longest), -1, dtype=np.int64)
        targets = np.zeros((size, max(1, *(len(row[2]) for row in rows))), dtype=np.int64)
        language, itn, tags = (
            np.zeros(size, np.int64),
            np.zeros(size, np.int64),
            np.zeros((size, TAG_FRAMES), np.int64),
        )
        for i, (features, guess, text, queries, tag_row) in enumerate(rows):
            x[i, : len(features)] = features
            flat[i, : len(guess)] = guess
            targets[i, : len(text)] = text
            (language[i], itn[i]), tags[i] = queries, tag_row
        lengths = np.array([len(row[0]) for row in rows])
        return Batch(x, lengths, language, itn, tags, targets, np.array([len(row[2]) for row in rows]), flat)

    def _row(self, clips: list[int]) -> tuple[Mels, NDArray[np.int64], list[int], tuple[int, int], list[int]]:
        first = self.items[clips[0]]
        with_itn = bool(self.rng.random() < 0.5)
        mels = np.concatenate([self.items[i].fbank for i in clips]).astype(np.float32)
        mels = augment(mels, self.rng)
        features = (stack(mels) + self.shift) * self.scale
        ids = self.vocabulary
        cut = [
            p
            for i in clips
            for p in pieces(self.items[i].with_itn if with_itn else self.items[i].without_itn, first.language)
        ]
        text = [ids[p] for p in cut]
        names = (first.language, first.emotion, first.event, "withitn" if with_itn else "woitn")
        asked = "auto"
        if self.rng.random() >= AUTO_SHARE:
            asked = first.language
            if asked == "nospeech" and self.rng.random() < 0.8:
                asked = str(self.rng.choice(["zh", "en", "yue", "ja", "ko"]))
        tags = [ids[f"<|{name}|>"] for name in names]
        flat = self._flat(first, cut, text, len(features)) if len(clips) == 1 else np.zeros(0, np.int64)
        return features, flat, text, (LANGUAGE_QUERY[asked], ITN_QUERY[with_itn]), tags

    def _flat(self, item: Item, cut: list[str], text: list[int], frames: int) -> NDArray[np.int64]:
        """Spread the labels evenly over the sounding stretch; blank outside."""
        guess = np.zeros(frames, dtype=np.int64)
        on = np.flatnonzero(item.active)
        if not text or not len(on):
            return guess
        stretch = frames / len(item.active)
        start, end = on[0] * stretch, on[-1] * stretch
        edges = start + (end - start) * np.cumsum([weight(p) for p in cut]) / sum(weight(p) for p in cut)
        inside = np.arange(int(start), min(frames, int(end) + 1))
        guess[inside] = np.array(text)[np.searchsorted(edges, inside + 0.5).clip(max=len(text) - 1)]
        return guess


def _feed(directory: Path, plan: Plan, queue: multiprocessing.Queue[Batch | None]) -> None:
    for batch in Feeder(directory, plan).batches():
        queue.put(batch)
    queue.put(None)


def feed(directory: Path, plan: Plan) -> Iterator[Batch]:
    """Yield the plan's batches, prepared by a process beside this one."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[Batch | None] = context.Queue(AHEAD)
    process = context.Process(target=_feed, args=(directory, plan, queue), daemon=True)
    process.start()
    while (batch := queue.get()) is not None:
        yield batch
    process.terminate()
    process.join()
