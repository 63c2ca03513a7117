"""The size of a model, and how a batch of utterances lies in memory; imports torch only, no network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The size of one model.

    `encoder_conf` of config.yaml, and what only the checkpoint knows (features, vocabulary).
    """

    features: int
    width: int
    heads: int
    hidden: int
    blocks: int
    tp_blocks: int
    kernel: int
    shift: int
    vocabulary: int

    @property
    def left(self) -> int:
        """Frames before its own that the memory block sees."""
        return (self.kernel - 1) // 2 + self.shift

    @property
    def right(self) -> int:
        """Frames after its own that the memory block sees."""
        return self.kernel - 1 - self.left


class Packing:
    """Where each utterance of a batch lies: end to end, or, for the memory block, with gaps of zeros.

    A gap is as wide as the convolution reaches, so that no output sees a neighbour and no mask is needed.
    """

    def __init__(self, lengths: Sequence[int], dimensions: Dimensions, device: torch.device) -> None:
        """Lay out utterances of `lengths` rows (tag frames included)."""
        self.lengths = tuple(lengths)
        gap = max(dimensions.left, dimensions.right)
        starts: list[int] = []
        rows: list[torch.Tensor] = []
        at, spaced = 0, dimensions.left
        for length in self.lengths:
            starts.append(at)
            rows.append(torch.arange(spaced, spaced + length))
            at += length
            spaced += length + gap
        self.total = at
        self.spans = [(start, start + length) for start, length in zip(starts, self.lengths, strict=True)]
        self.starts = torch.tensor(starts, device=device)
        self.spaced_rows = torch.cat(rows).to(device)
        """Row of every frame in the spaced layout, shape (total,)."""
        self.spaced_total = spaced - gap + dimensions.right
