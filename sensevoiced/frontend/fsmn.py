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

_TILE_FRAMES = 16
"""Frames per row of einsum's, which multiplies and adds a long row faster than many short ones."""


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
class Filter:
    """A causal depthwise filter over time: every frame's weighted sum of itself and frames before it."""

    taps: Floats
    """Lorder x proj, the oldest frame's weights first."""
    stride: int
    tiled: Floats
    """`taps` once for each of _TILE_FRAMES frames."""

    @classmethod
    def of(cls, taps: Floats, stride: int) -> Filter:
        """Prepare a filter."""
        return cls(taps, stride, np.tile(taps, _TILE_FRAMES))

    @property
    def history(self) -> int:
        """Frames of the past that the filter looks at."""
        return (len(self.taps) - 1) * self.stride

    def __call__(self, padded: Floats) -> Floats:
        """Give the sums of all frames of `padded` (contiguous) but the first `history`."""
        (rows, proj), item = padded.shape, padded.itemsize
        count = rows - self.history
        out = np.empty((count, proj), np.float32)
        whole = count - count % _TILE_FRAMES
        for first, tiles, size in ((0, whole // _TILE_FRAMES, _TILE_FRAMES), (whole, 1, count - whole)):
            windows = np.lib.stride_tricks.as_strided(
                padded[first:],
                (tiles, len(self.taps), size * proj),
                (size * proj * item, self.stride * proj * item, item),
                writeable=False,
            )
            target = out[first : first + tiles * size].reshape(tiles, size * proj)
            np.einsum("tkx,kx->tx", windows, self.tiled[:, : size * proj], out=target)
        return out


@dataclass(frozen=True, slots=True)
class Memory:
    """One FSMN layer: projection, a causal depthwise filter over time, expansion, ReLU."""

    project: Floats
    filter: Filter
    expand: Affine

    def __call__(self, x: Floats, past: Floats) -> tuple[Floats, Floats]:
        """Apply the layer to frames x linear_dim after `past` (history x proj).

        Also gives the past of the next call.
        """
        padded = np.empty((len(past) + len(x), past.shape[1]), np.float32)
        padded[: len(past)] = past
        frames = np.matmul(x, self.project, out=padded[len(past) :])
        y = rectified(self.expand(self.filter(padded) + frames))
        return y, padded[len(x) :].copy()


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
                filter=Filter.of(
                    tensor(f"fsmn.{layer}.fsmn_block.conv_left.weight", proj, 1, lorder, 1)[:, 0, :, 0].T,
                    int(conf.get("lstride", 1)),
                ),
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
        filters = [memory.filter for memory in self.memories]
        return [np.zeros((each.history, each.taps.shape[1]), np.float32) for each in filters]

    def probability(
        self, features: Floats, senones: Sequence[int], state: list[Floats]
    ) -> NDArray[np.float64]:
        """Give the summed posterior of some senones for each row of `features` (frames x input_dim).

        Advances `state`.
        """
        total = np.empty(len(features), np.float64)
        for start in range(0, len(features), _BLOCK_FRAMES):
            x = rectified(self.first[1](self.first[0](features[start : start + _BLOCK_FRAMES])))
            for layer, memory in enumerate(self.memories):
                x, state[layer] = memory(x, state[layer])
            logits = self.last[1](self.last[0](x))
            logits -= logits.max(axis=1, keepdims=True)
            np.exp(logits, out=logits)
            posterior = logits[:, list(senones)] / logits.sum(axis=1, keepdims=True)
            total[start : start + len(x)] = posterior.astype(np.float64).sum(axis=1)
        return total


def rectified(x: Floats) -> Floats:
    """Apply ReLU in place."""
    # With a row of zeros numpy takes the vector instructions that it leaves out with a single one.
    return np.maximum(x, np.zeros(x.shape[1], np.float32), out=x)
