"""How audio becomes a model's features; standard library only.

Apart from models.py, which finds and reads a model's folder: the front end's children need no more than this,
and start without what reads YAML.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class FrontendSpec:
    """How audio becomes this model's features: `frontend_conf` of config.yaml under plainer names.

    `window` is kaldi's name of the analysis window. LFR stacks `lfr_m` frames and moves on by `lfr_n`.
    `cmvn` is kaldi's nnet1 text file (am.mvn): a shift and a scale for each of `dim` columns.
    """

    sample_rate_hz: int
    window: str
    n_mels: int
    frame_length_ms: float
    frame_shift_ms: float
    lfr_m: int
    lfr_n: int
    cmvn: Path

    @property
    def dim(self) -> int:
        """Columns of a feature row: 560 for SenseVoiceSmall (80 x 7), 400 for FSMN-VAD (80 x 5)."""
        return self.n_mels * self.lfr_m
