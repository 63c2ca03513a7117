"""Between utterances and tensors, the same for every engine: features in, recognitions out; never a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sensevoiced.engine.richtext import Path, TagPick, recognition
from sensevoiced.engine.tokenizer import Tokenizer
from sensevoiced.jobs import Options, Recognition, Utterance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sensevoiced.engine.api import Work
    from sensevoiced.models import AsrModel

TagPicks = tuple[TagPick, TagPick, TagPick, TagPick]

_WARM_UP_FRAMES = {"cpu": (17, 33), "cuda": (17, 50, 167, 500)}
"""1 and 2 s on a CPU, where every length runs at its full speed at once; up to 30 s on a GPU, whose libraries
choose and load their kernels by size."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How one model's output is read: its vocabulary, its blank, and the time of a frame."""

    tokenizer: Tokenizer
    blank: int
    frame_s: float

    @classmethod
    def of(cls, model: AsrModel) -> Reading:
        """Read the tokenizer and the settings of `model`; raises ConfigError where they are unusable."""
        return cls(
            tokenizer=Tokenizer(model.tokenizer),
            # FunASR's SenseVoiceSmall takes 0 unless model_conf says otherwise.
            blank=int((model.config.get("model_conf") or {}).get("blank_id", 0)),
            frame_s=model.frontend.lfr_n * model.frontend.frame_shift_ms / 1_000,
        )

    def tag_picks(self, logits: torch.Tensor) -> list[TagPicks]:
        """Pick each tag frame's best label of its slot from float32 logits (utterances, 4, vocabulary).

        Scores are probabilities over the whole vocabulary.
        """
        probabilities = logits.softmax(dim=-1)
        picked: list[list[TagPick]] = []
        for frame, slot in enumerate(self.tokenizer.slots):
            ids = torch.tensor(slot.ids, device=logits.device)
            scores, places = probabilities[:, frame].index_select(1, ids).max(dim=-1)
            pairs = zip(places.tolist(), scores.tolist(), strict=True)
            picked.append([TagPick(slot.names[place], score) for place, score in pairs])
        language, emotion, event, itn = picked
        return list(zip(language, emotion, event, itn, strict=True))

    def recognitions(self, batch: Sequence[Work], paths: Sequence[Path]) -> list[Recognition]:
        """Turn each utterance's path into what its client is told."""
        return [
            recognition(
                path,
                self.tokenizer,
                blank=self.blank,
                frame_s=self.frame_s,
                length_s=utterance.end_s - utterance.start_s,
            )
            for path, (utterance, _) in zip(paths, batch, strict=True)
        ]


def rows_of(utterance: Utterance, dim: int) -> torch.Tensor:
    """Give an utterance's features as (frames, dim) float32; ValueError where the model cannot take them."""
    found = (utterance.dim, len(utterance.features))
    if utterance.frames < 1 or found != (dim, 4 * dim * utterance.frames):
        raise ValueError(f"{found[1]} bytes are not {utterance.frames} frames of {dim} float32")
    # bytearray: torch wants memory it may write to, although nothing here does.
    return torch.frombuffer(bytearray(utterance.features), dtype=torch.float32).view(utterance.frames, dim)


def warm_up_batches(device: str, frame_s: float, dim: int) -> Iterator[list[Work]]:
    """Give what to run before the first request on a device (`cpu`, `cuda:0`): lengths alone, then all."""
    works = [
        (Utterance(0, 0.0, frames * frame_s, bytes(4 * dim * frames), frames, dim), Options())
        for frames in _WARM_UP_FRAMES[device.partition(":")[0]]
    ]
    if device != "cpu":
        yield from ([work] for work in works)
    yield works
