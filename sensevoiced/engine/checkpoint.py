"""Reads FunASR's model.pt into the network, or says in a sentence why it cannot; never runs what it reads."""

from __future__ import annotations

import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import torch

from sensevoiced.config import ConfigError
from sensevoiced.engine.encoder import QUERY_ROWS, SenseVoice
from sensevoiced.engine.packing import Dimensions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sensevoiced.models import AsrModel

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which trainers put the weights beside their own state; FunASR unwraps the same ones."""

_ENCODER_DEFAULTS = {"output_size": 256, "attention_heads": 4, "linear_units": 2048, "num_blocks": 6}
_TP_BLOCKS, _KERNEL, _SHIFT = 0, 11, 0
"""What FunASR's SenseVoiceEncoderSmall takes where encoder_conf is silent."""


def load_network(model: AsrModel, *, vocabulary: int) -> SenseVoice:
    """Build the network of `model` with its weights, in float32 on the CPU.

    Where the file is in float32, its own pages are the weights, until a backend has made its own of them.
    `vocabulary` is the tokenizer's size, which the head must match. Raises ConfigError for a file that does
    not fit.
    """
    state = _read(model.weights)
    dimensions = _dimensions(model, state, vocabulary)
    # No memory and no random numbers for weights that are about to be replaced.
    with torch.device("meta"):
        network = SenseVoice(dimensions)
    wanted = network.state_dict()
    if missing := sorted(wanted.keys() - state.keys()):
        raise _unfit(model.weights, f"it lacks {_some(missing)}")
    if unexpected := sorted(state.keys() - wanted.keys()):
        raise _unfit(
            model.weights, f"it has {_some(unexpected)}, which the model its config.yaml describes has not"
        )
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            found, needed = (" x ".join(map(str, shape)) for shape in (state[name].shape, tensor.shape))
            raise _unfit(
                model.weights, f"its {name} is {found}, and config.yaml and the tokenizer ask for {needed}"
            )
    network.load_state_dict({name: tensor.to(torch.float32) for name, tensor in state.items()}, assign=True)
    return network.requires_grad_(requires_grad=False).eval()


def _read(file: Path) -> dict[str, torch.Tensor]:
    """Read tensors and nothing else (weights_only): a checkpoint is a pickle, and a pickle could run code."""
    try:
        # Mapped where the format allows it: no reading of 936 MB, and memory that the kernel may take back.
        loaded: Any = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"{file} cannot be read as a PyTorch checkpoint: fetch the model again, or restore the file."
        ) from error
    for key in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in loaded.items()
    ):
        raise _unfit(file, "it holds no table of named tensors")
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}


def _dimensions(model: AsrModel, state: Mapping[str, torch.Tensor], vocabulary: int) -> Dimensions:
    conf = model.config.get("encoder_conf") or {}
    try:
        width, heads, hidden, blocks = (
            int(conf.get(key, default)) for key, default in _ENCODER_DEFAULTS.items()
        )
        tp_blocks = int(conf.get("tp_blocks", _TP_BLOCKS))
        kernel = int(conf.get("kernel_size", _KERNEL))
        shift = max(int(conf.get("sanm_shfit", _SHIFT)), 0)  # FunASR's spelling
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{model.path / 'config.yaml'} is damaged: a value of encoder_conf is not a whole number."
        ) from error
    if min(width, heads, hidden, blocks, kernel) < 1 or tp_blocks < 0 or width % heads or shift > kernel // 2:
        raise ConfigError(
            f"{model.path / 'config.yaml'} is damaged: encoder_conf describes no possible encoder."
        )
    query = state.get("embed.weight")
    if query is None or query.dim() != 2 or len(query) != QUERY_ROWS:  # noqa: PLR2004 - a table
        raise _unfit(model.weights, f"it lacks an embed.weight of {QUERY_ROWS} rows")
    features = query.shape[1]
    if features != model.frontend.dim:
        raise _unfit(
            model.weights,
            f"it takes features of {features} columns, and frontend_conf gives {model.frontend.dim}",
        )
    return Dimensions(
        features=features,
        width=width,
        heads=heads,
        hidden=hidden,
        blocks=blocks,
        tp_blocks=tp_blocks,
        kernel=kernel,
        shift=shift,
        vocabulary=vocabulary,
    )


def _unfit(file: Path, reason: str) -> ConfigError:
    return ConfigError(f"{file} is not the checkpoint of this model: {reason}.")


def _some(names: list[str]) -> str:
    """Name one and count the rest: a wrong file misses hundreds."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
