"""A linear layer in 8 bits: weights quantised once, inputs as they come; imports torch only.

It leans on operators that torch does not document: precision.py tries them before it uses them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from sensevoiced.engine.linear import TYPICAL_ROWS, Linear

if TYPE_CHECKING:
    from collections.abc import Sequence

_TINIEST = 1e-12
"""Scale of a row of zeros: any will do, but zero."""
_HIGHEST = 127
"""Weights are symmetric, -127 to 127: zero stays zero, and -128 has no counterpart."""


def _has(ability: str) -> bool:
    """Ask torch what the processor can do; no where torch does not say."""
    ask = getattr(torch.cpu, f"_is_{ability}_supported", None)
    return bool(ask and ask())


BFLOAT16, VNNI = _has("avx512_bf16"), _has("vnni")
_OFFSETS = torch.arange(256.0) + 1.5 * 2**23
"""What is added to a number so that the low byte of the sum's bits is that number plus 0 to 255, rounded to
even: from 2**23 to 2**24 a float32 counts by ones. One pass instead of two, and torch keeps the low byte of
an int32 several times as fast as it converts a float32 to uint8."""
_STEPS = 254 if VNNI else 126
"""Without VNNI two products are summed in 16 bits, which 8-bit inputs would overflow: they get 7."""
_TILE = 8
"""Rows are padded to a multiple of it: oneDNN compiles a kernel for every shape (2 ms, a third of a MiB), and
with every length its own an utterance would seldom find one ready."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """A layer's weights in 8 bits: int8 (outputs, inputs), and one scale for each output."""

    weight: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor) -> Quantised:
        """Quantise float32 weights, symmetrically."""
        scale = weight.abs().amax(dim=1).div_(_HIGHEST).clamp_min_(_TINIEST)
        return cls(weight.div(scale[:, None]).round_().to(torch.int8), scale)

    @property
    def holds_tensors(self) -> bool:
        """Say whether it is what it should be; read from a file, it may be anything."""
        return isinstance(self.weight, torch.Tensor) and isinstance(self.scale, torch.Tensor)

    def fits(self, weight: torch.Tensor) -> bool:
        """Say whether this could be `weight` quantised."""
        shapes = (self.weight.shape, self.scale.shape) == (weight.shape, weight.shape[:1])
        return shapes and (self.weight.dtype, self.scale.dtype) == (torch.int8, torch.float32)


class QuantisedLinear(nn.Module):
    """A linear layer of 8-bit weights on inputs quantised as they come.

    Inputs get one scale an utterance (in the head, a block of rows), not one a batch: so a result does not
    depend on the company.
    """

    def __init__(self, source: Linear, quantised: Quantised) -> None:
        """Lay out the quantised weights of `source` for oneDNN."""
        super().__init__()
        self._weight = torch.ops.onednn.qlinear_prepack(
            quantised.weight, [TYPICAL_ROWS, source.weight.shape[1]]
        )
        self._scale = quantised.scale.clone()
        self._zero = torch.zeros(len(source.bias), dtype=torch.int64)
        self._bias = source.bias.clone()
        self._after = "relu" if source.relu else "none"
        self._dtype = torch.bfloat16 if source.narrow and BFLOAT16 else torch.float32

    def forward(self, rows: torch.Tensor, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Map (N, inputs) to (N, outputs), utterance by utterance."""
        rows = rows.float()
        if len(spans) == 1:
            return self._one(rows)
        return torch.cat([self._one(rows[start:end]) for start, end in spans])

    def _one(self, rows: torch.Tensor) -> torch.Tensor:
        least, most = (float(bound) for bound in rows.aminmax())
        if not math.isfinite(most - least):
            # An utterance of bad numbers gets a bad answer, as in float32, and not an error.
            rows = rows.nan_to_num(0.0, 0.0, 0.0)
            least, most = (float(bound) for bound in rows.aminmax())
        # Zero is always among the numbers, and becomes exactly one of the steps.
        least, most = min(least, 0.0), max(most, 0.0)
        scale = max((most - least) / _STEPS, _TINIEST)
        # Rounded up: so the least number is at 0 or above it and, with 254 steps, the most at 255 or below.
        zero = math.ceil(-least / scale)
        rounded = torch.add(_OFFSETS[zero], rows, alpha=1 / scale, out=_scratch(rows))
        steps = torch.empty(-(-len(rows) // _TILE) * _TILE, rows.shape[1], dtype=torch.uint8)
        steps[: len(rows)].copy_(rounded.view(torch.int32))
        result: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            *(steps, scale, zero, self._weight, self._scale, self._zero, self._bias),
            *(1.0, 0, self._dtype, self._after, [], ""),
        )
        # A row's result is the same whatever the rows below it are.
        return result[: len(rows)]


_scratches = [torch.empty(0)]


def _scratch(like: torch.Tensor) -> torch.Tensor:
    """Give memory in the shape of `like`, the same at each call: so it lies in the processor's cache.

    New memory would take 7 % longer over a 15 s clip. There is one engine thread, so one is enough.
    """
    if _scratches[0].numel() < like.numel():
        _scratches[0] = torch.empty(like.numel())
    return _scratches[0][: like.numel()].view(like.shape)
