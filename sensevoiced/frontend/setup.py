"""What a child is told at its start: written by the pool, read by the worker.

Must never import numpy or torch.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensevoiced.features import FrontendSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sensevoiced.config import FrontendConfig
    from sensevoiced.models import AsrModel, VadModel


def setup_message(
    config: FrontendConfig, asr: AsrModel, vad: VadModel, vad_options: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe limits and models; `vad_options` go over those of the VAD model's config.yaml."""
    return {
        "type": "setup",
        "limits": asdict(config),
        "spec": _fields(asr.frontend),
        "vad_spec": _fields(vad.frontend),
        "vad_weights": str(vad.weights),
        "vad_config": {name: vad.config[name] for name in ("model_conf", "encoder_conf")},
        "vad_asked": dict(vad_options),
    }


def spec_from(fields: Mapping[str, Any]) -> FrontendSpec:
    """Rebuild a FrontendSpec from the message."""
    return FrontendSpec(**{**fields, "cmvn": Path(fields["cmvn"])})


def _fields(spec: FrontendSpec) -> dict[str, Any]:
    return {**asdict(spec), "cmvn": str(spec.cmvn)}
