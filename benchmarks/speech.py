"""Where the benchmark leans on the product's front end: samples of a recording, its speech, its features.

The only module that does; clips are made with it, and the engine is compared with itself on its features.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sensevoiced.config import FrontendConfig
from sensevoiced.frontend.audio import Recording
from sensevoiced.frontend.checkpoint import read_tensors
from sensevoiced.frontend.fbank import Cmvn, Fbank
from sensevoiced.frontend.fsmn import Fsmn
from sensevoiced.frontend.pipeline import Frontend, Pass
from sensevoiced.frontend.vad import VadOptions, VoiceDetector
from sensevoiced.jobs import SAMPLE_RATE_HZ, JobError, Utterance
from sensevoiced.models import find_asr, find_vad

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

NOWHERE = Path("/nonexistent")
"""No models folder: models are named by their path."""


class Ear:
    """Both models' front end, loaded once."""

    def __init__(self, model: str, vad: Path) -> None:
        """`model` is a checkpoint folder, or `demo`."""
        asr = find_asr(model, NOWHERE)
        found = find_vad(str(vad), NOWHERE, beside=asr)
        self._frontend = Frontend.load(
            FrontendConfig(),
            asr.frontend,
            vad_spec=found.frontend,
            vad_weights=found.weights,
            vad_config=found.config,
        )
        self._net = Fsmn.from_tensors(found.config["encoder_conf"], read_tensors(found.weights))
        self._cmvn = Cmvn.read(found.frontend.cmvn, found.frontend.dim)
        self._vad = found

    def segments_s(self, samples: Floats) -> list[tuple[float, float]]:
        """What the VAD alone, without merging, takes for speech, in seconds."""
        options = VadOptions.from_config(self._vad.config["model_conf"], {})
        voice = VoiceDetector(self._net, options, self._cmvn, lfr_m=self._vad.frontend.lfr_m)
        found = list(voice.accept(Fbank(self._vad.frontend).accept(samples))[0])
        found += voice.finish(len(samples) * 1000 / SAMPLE_RATE_HZ)[0]
        return [(segment.start * 0.01, segment.end * 0.01) for segment in found]

    def utterances(self, file: Path) -> list[Utterance]:
        """What the daemon's engine would get of a recording; nothing where it cannot be read."""
        found: list[Utterance] = []
        descriptor = os.open(file, os.O_RDONLY)
        try:
            run = Pass(self._frontend, Recording(descriptor, FrontendConfig()), vad=True)
            for stretches in run.stretches():
                for one in stretches:
                    rows, dim = one.features.shape
                    data = np.ascontiguousarray(one.features, np.float32).tobytes()
                    found.append(Utterance(len(found), one.start_s, one.end_s, data, rows, dim))
        except JobError:
            return []
        finally:
            os.close(descriptor)
        return found


def decode(file: Path) -> Floats:
    """16 kHz mono, float32; empty where it cannot be read."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        blocks = list(Recording(descriptor, FrontendConfig()).blocks())
    except JobError:
        return np.zeros(0, np.float32)
    finally:
        os.close(descriptor)
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
