"""A linear layer as it is loaded, and the ways to compute it in floating point; imports torch only.

PackedLinear leans on operators that torch does not document: precision.py tries them before it uses them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it everywhere

if TYPE_CHECKING:
    from collections.abc import Sequence

TYPICAL_ROWS = 256
"""Rows for which oneDNN lays out the weights; other numbers run on the same layout."""


class Linear(nn.Module):
    """A linear layer, with a ReLU where asked; the plain backend, float32 on any device.

    `narrow` allows a backend that computes in 8 bits to give its result in 16.
    """

    def __init__(self, inputs: int, outputs: int, *, relu: bool = False, narrow: bool = False) -> None:
        """Make room for the weights."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False)
        self.relu = relu
        self.narrow = narrow

    def forward(self, rows: torch.Tensor, _spans: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Map (N, inputs) to (N, outputs), of the utterances at `spans`."""
        result = F.linear(rows, self.weight, self.bias)
        return result.relu_() if self.relu else result


class CastLinear(nn.Module):
    """A linear layer in a 16-bit type: its input is cast, its output is not.

    Added to the float32 residual, the output becomes float32 by itself.
    """

    def __init__(self, source: Linear, dtype: torch.dtype) -> None:
        """Keep a copy of the weights of `source` in `dtype`."""
        super().__init__()
        self.weight = nn.Parameter(source.weight.to(dtype), requires_grad=False)
        self.bias = nn.Parameter(source.bias.to(dtype), requires_grad=False)
        self._relu = source.relu

    def forward(self, rows: torch.Tensor, _spans: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Map (N, inputs) to (N, outputs) in this layer's type."""
        result = F.linear(rows.to(self.weight.dtype), self.weight, self.bias)
        return result.relu_() if self._relu else result


class PackedLinear(nn.Module):
    """oneDNN's linear layer, in float32 or bfloat16, on weights laid out once; the ReLU in the same pass."""

    def __init__(self, source: Linear, dtype: torch.dtype) -> None:
        """Lay out a copy of the weights of `source` in `dtype`."""
        super().__init__()
        self._dtype = dtype
        self._weight = torch.ops.mkldnn._reorder_linear_weight(  # noqa: SLF001 - see the module's docstring
            source.weight.to(dtype), TYPICAL_ROWS
        )
        self._bias = source.bias.to(dtype, copy=True)
        self._after = "relu" if source.relu else "none"

    def forward(self, rows: torch.Tensor, _spans: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Map (N, inputs) to (N, outputs) in this layer's type."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
            rows.to(self._dtype), self._weight, self._bias, self._after, [], ""
        )
        return result
