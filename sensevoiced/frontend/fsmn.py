"""The FSMN of FSMN-VAD in numpy, streaming: features in, probability of silence out; must never import torch.

Zhang et al., "Deep-FSMN for Large Vocabulary Continuous Speech Recognition", arXiv:1803.05030; layer names
and order are those of funasr/models/fsmn_vad_streaming/encoder.py, so FunASR's model.pt is read as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_BLOCK_FRAMES = 512
"""Frames per pass: with 250 columns a layer's values are 512 KB and stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class Affine:
    """One linear layer, y = x @ weight + bias; `weight` is in x out."""

    weight: Floats
    bias: Floats

    def __call__(self, x: Floats) -> Floats:
        """Apply the layer to rows x in."""
        y: Floats = x @ self.weight
        y += self.bias
        return y


@dataclass(frozen=True, slots=True)
class Memory:
    """One FSMN layer: projection, a causal depthwise filter over time (`taps`.

    Lorder x proj), expansion, ReLU.
    """

    project: Floats
    taps: Floats
    stride: int
    expand: Affine

    @property
    def history(self) -> int:
        """Frames of the past that the filter looks at."""
        return (len(self.taps) - 1) * self.stride

    def __call__(self, x: Floats, past: Floats) -> tuple[Floats, Floats]:
        """Apply the layer to frames x linear_dim after `past` (history x proj).

        Also gives the past of the next call.
        """
        frames: Floats = x @ self.project
        count = len(frames)
        padded = np.concatenate((past, frames))
        term = np.empty_like(frames)
        for tap, weights in enumerate(self.taps):
            at = tap * self.stride
            np.multiply(padded[at : at + count], weights, out=term)
            frames += term
        y = self.expand(frames)
        np.maximum(y, 0, out=y)
        return y, padded[count:].copy()


@dataclass(frozen=True, slots=True)
class Fsmn:
    """The whole network: two linear layers, ReLU, memory layers, two linear layers, softmax over senones."""

    first: tuple[Affine, Affine]
    memories: tuple[Memory, ...]
    last: tuple[Affine, Affine]

    @classmethod
    def from_tensors(cls, conf: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Fsmn:
        """Build the network of `encoder_conf` from a state dict; ValueError when the two do not fit."""
        if int(conf.get("rorder", 0)) > 0:
            raise ValueError("this FSMN looks ahead (rorder > 0), which streaming does not allow")

        def tensor(name: str, *shape: int) -> Floats:
            found = tensors.get(f"encoder.{name}")
            if found is None or found.shape != shape:
                raise ValueError(
                    f"the weights do not fit config.yaml: encoder.{name} should be {shape}, "
                    f"and is {'missing' if found is None else found.shape}"
                )
            return np.ascontiguousarray(found, dtype=np.float32)

        def affine(name: str, out: int, dim: int) -> Affine:
            weight = np.ascontiguousarray(tensor(f"{name}.linear.weight", out, dim).T)
            return Affine(weight, tensor(f"{name}.linear.bias", out))

        linear, proj, lorder = int(conf["linear_dim"]), int(conf["proj_dim"]), int(conf["lorder"])
        memories = tuple(
            Memory(
                project=np.ascontiguousarray(tensor(f"fsmn.{layer}.linear.linear.weight", proj, linear).T),
                taps=np.ascontiguousarray(
                    tensor(f"fsmn.{layer}.fsmn_block.conv_left.weight", proj, 1, lorder, 1)[:, 0, :, 0].T
                ),
                stride=int(conf.get("lstride", 1)),
                expand=affine(f"fsmn.{layer}.affine", linear, proj),
            )
            for layer in range(int(conf["fsmn_layers"]))
        )
        first, last = int(conf["input_affine_dim"]), int(conf["output_affine_dim"])
        return cls(
            first=(affine("in_linear1", first, int(conf["input_dim"])), affine("in_linear2", linear, first)),
            memories=memories,
            last=(affine("out_linear1", last, linear), affine("out_linear2", int(conf["output_dim"]), last)),
        )

    def start(self) -> list[Floats]:
        """Give the state before the first frame: silence (zeros) in every memory."""
        return [np.zeros((memory.history, memory.taps.shape[1]), np.float32) for memory in self.memories]

    def probability(
        self, features: Floats, senones: Sequence[int], state: list[Floats]
    ) -> NDArray[np.float64]:
        """Give the summed posterior of some senones for each row of `features` (frames x input_dim).

        Advances `state`.
        """
        total = np.empty(len(features), np.float64)
        for start in range(0, len(features), _BLOCK_FRAMES):
            x = self.first[1](self.first[0](features[start : start + _BLOCK_FRAMES]))
            np.maximum(x, 0, out=x)
            for layer, memory in enumerate(self.memories):
                x, state[layer] = memory(x, state[layer])
            logits = self.last[1](self.last[0](x))
            logits -= logits.max(axis=1, keepdims=True)
            np.exp(logits, out=logits)
            posterior = logits[:, list(senones)] / logits.sum(axis=1, keepdims=True)
            total[start : start + len(x)] = posterior.astype(np.float64).sum(axis=1)
        return total
