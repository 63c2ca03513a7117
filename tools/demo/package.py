"""Owns the shipped form of the demo model: the files that FunASR's AutoModel reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
import yaml

from demo.tokenizer import FILE_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from demo.model import DemoSenseVoice, Shape

RECOGNITION_FRONTEND = {
    "fs": 16000,
    "window": "hamming",
    "n_mels": 80,
    "frame_length": 25,
    "frame_shift": 10,
    "dither": 0.0,
}


def write_configuration(directory: Path, task: str, side_files: dict[str, object]) -> None:
    """Write configuration.json, which tells AutoModel where the files of a local model folder are."""
    content = {
        "framework": "pytorch",
        "task": task,
        "model": {"type": "funasr"},
        "pipeline": {"type": "funasr-pipeline"},
        "file_path_metas": {"init_param": "model.pt", "config": "config.yaml"} | side_files,
    }
    (directory / "configuration.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_yaml(path: Path, heading: str, content: dict[str, object]) -> None:
    """Write config.yaml with a comment on top."""
    path.write_text(f"# {heading}\n" + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def save(model: DemoSenseVoice, directory: Path, shape: Shape) -> None:
    """Write everything but the tokenizer and am.mvn. Weights are stored as float16, which halves the file."""
    content = {
        "encoder": "SenseVoiceEncoderSmall",
        "encoder_conf": shape.encoder_conf(),
        "model": "SenseVoiceSmall",
        "model_conf": {"length_normalized_loss": True, "sos": 1, "eos": 2, "ignore_id": -1},
        "tokenizer": "SentencepiecesTokenizer",
        "tokenizer_conf": {"bpemodel": None, "unk_symbol": "<unk>", "split_with_space": True},
        "frontend": "WavFrontend",
        "frontend_conf": RECOGNITION_FRONTEND | {"lfr_m": 7, "lfr_n": 6, "cmvn_file": None},
    }
    write_yaml(
        directory / "config.yaml", "The demo model: SenseVoiceSmall's architecture at toy size.", content
    )
    side_files = {"tokenizer_conf": {"bpemodel": FILE_NAME}, "frontend_conf": {"cmvn_file": "am.mvn"}}
    write_configuration(directory, "auto-speech-recognition", side_files)
    partial = directory / "model.pt.partial"
    torch.save({name: value.detach().half() for name, value in model.state_dict().items()}, partial)
    partial.replace(directory / "model.pt")
