"""Owns greedy recognition with the training model's own forward pass, for scores while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sentencepiece import SentencePieceProcessor

from demo.metrics import Recognised
from demo.model import ITN_QUERY, LANGUAGE_QUERY, TAG_FRAMES, DemoSenseVoice
from demo.tokenizer import build

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

BATCH = 32


class TrainedModel:
    """The model under training as a recogniser."""

    def __init__(self, model: DemoSenseVoice, _directory: Path | None = None) -> None:
        """Make the parts."""
        self.model = model
        self.pieces = SentencePieceProcessor(model_proto=build())

    def recognise(self, features: list[NDArray[np.float32]], language: str, *, itn: bool) -> list[Recognised]:
        """Recognise feature arrays [frames, 560] after CMVN, answers in their order."""
        self.model.eval()
        order = sorted(range(len(features)), key=lambda i: len(features[i]))
        answers: dict[int, Recognised] = {}
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            lengths = torch.tensor([len(features[i]) for i in chosen])
            x = torch.zeros(len(chosen), int(lengths.max()), features[0].shape[1])
            for row, i in enumerate(chosen):
                x[row, : len(features[i])] = torch.from_numpy(features[i])
            queries = (torch.full((len(chosen),), q) for q in (LANGUAGE_QUERY[language], ITN_QUERY[itn]))
            with torch.inference_mode():
                best = self.model(x, lengths, *queries)[0].argmax(-1)
            for row, i in enumerate(chosen):
                answers[i] = self._read(best[row, : lengths[row] + TAG_FRAMES])
        return [answers[i] for i in range(len(features))]

    def _read(self, best: torch.Tensor) -> Recognised:
        tag_ids, text_ids = best[:TAG_FRAMES].tolist(), torch.unique_consecutive(best[TAG_FRAMES:]).tolist()
        language, emotion, event, itn = (self.pieces.id_to_piece(i).strip("<|>") for i in tag_ids)
        return Recognised(
            language, emotion, event, itn, self.pieces.decode([i for i in text_ids if i]).strip()
        )
