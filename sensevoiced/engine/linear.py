"""How a linear layer is computed: the seam behind which faster backends go; imports torch only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it everywhere

if TYPE_CHECKING:
    from collections.abc import Callable


class CastLinear(nn.Module):
    """A linear layer in a 16-bit type: its input is cast, its output is not.

    Added to the float32 residual, the output becomes float32 by itself.
    """

    def __init__(self, source: nn.Linear, dtype: torch.dtype) -> None:
        """Keep a copy of the weights of `source` in `dtype`."""
        super().__init__()
        self.weight = nn.Parameter(source.weight.to(dtype), requires_grad=False)
        self.bias = nn.Parameter(source.bias.to(dtype), requires_grad=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map (N, in) to (N, out) in this layer's type."""
        return F.linear(rows.to(self.weight.dtype), self.weight, self.bias)


def backend(_device: torch.device, dtype: torch.dtype) -> Callable[[nn.Linear], nn.Module]:
    """Choose how linear layers run in `dtype` on a device.

    The function that comes back takes a loaded float32 layer and gives the module that computes it, which may
    keep or repack the weights.
    """
    # One backend a precision so far; oneDNN's prepacked weights and int8 will depend on the device.
    if dtype == torch.float32:
        return lambda source: source
    return lambda source: CastLinear(source, dtype)


def replace_linears(root: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Put `make(layer)` in the place of every nn.Linear below `root`."""
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, make(child))
