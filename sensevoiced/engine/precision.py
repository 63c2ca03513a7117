"""Which backend computes the layers at a precision on a device; imports torch only.

What each backend costs stands in benchmarks/README.md. The fastest is compiled code of our own, where it was
built and suits the processor; the next lean on operators that torch does not document. So each is tried on a
small layer before it is chosen, and where all fail, torch's own layer is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from sensevoiced.engine import native
from sensevoiced.engine.encoder import Block
from sensevoiced.engine.int8 import Quantised, QuantisedLinear
from sensevoiced.engine.linear import CastLinear, Linear, PackedLinear
from sensevoiced.engine.packing import Dimensions, Packing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_NEAR = 0.05
"""A working 8-bit layer is off by a fifth of this on inputs of size one; a wrong layout by twenty times."""
_SMALL = Dimensions(
    features=16, width=96, heads=2, hidden=80, blocks=1, tp_blocks=0, kernel=5, shift=0, vocabulary=1
)
"""What whole layers are tried on: it changes the width, and its heads have an odd number of registers."""


_FAILURES = (AttributeError, RuntimeError, TypeError, ValueError)
"""What a backend that is not there, or not any more, ends with."""
_MATRIX = 2


@dataclass(frozen=True, slots=True)
class Backend:
    """How the layers of one precision are made, and what else that precision changes."""

    name: str
    """For a person, in `svctl status`."""
    make: Callable[[Linear, Quantised | None], nn.Module]
    """From a loaded float32 layer, and from its quantised weights where they are known already."""
    make_head: Callable[[Linear, Quantised | None], nn.Module]
    """The same for the CTC head."""
    quantises: bool = False
    make_block: Callable[[Block, Mapping[str, Quantised]], nn.Module] | None = None
    """From a whole layer of the encoder and what is quantised of it, by name; then `make` is for none."""


def _plain(source: Linear, _known: Quantised | None) -> nn.Module:
    return source


def _packed(source: Linear, _known: Quantised | None) -> nn.Module:
    return PackedLinear(source, torch.float32)


def _packed_bfloat16(source: Linear, _known: Quantised | None) -> nn.Module:
    return PackedLinear(source, torch.bfloat16)


def _quantised(source: Linear, known: Quantised | None) -> nn.Module:
    """Make an 8-bit layer of a float32 one."""
    return QuantisedLinear(source, known or Quantised.of(source.weight))


def choose(place: torch.device, precision: str, dimensions: Dimensions) -> Backend:
    """Choose how the layers of a model of such dimensions run at a precision on a device.

    The head is float32 under both 16-bit types: with 8 or 11 bits of mantissa the best two of 25,055 logits
    are often equal. Raises ValueError for int8 where there is nothing to compute it with.
    """
    on_cpu = place.type == "cpu"
    if on_cpu and native.fits(dimensions, precision):
        compiled = _compiled(precision)
        if _block_works(compiled) and works(compiled.make_head):
            return compiled
    prepacked = on_cpu and works(_packed)
    exact = _packed if prepacked else _plain
    if precision == "float32":
        return Backend("oneDNN, prepacked" if prepacked else "torch", exact, exact)
    if precision == "int8":
        if not (on_cpu and works(_quantised)):
            raise ValueError(precision)
        return Backend("oneDNN, 8-bit weights and inputs", _quantised, _quantised, quantises=True)
    if precision == "bfloat16" and on_cpu and works(_packed_bfloat16):
        return Backend("oneDNN, prepacked", _packed_bfloat16, exact)
    dtype: torch.dtype = getattr(torch, precision)
    return Backend("torch", lambda source, _known: CastLinear(source, dtype), exact)


def _compiled(precision: str) -> Backend:
    quantises = precision == "int8"

    def make(source: Linear, known: Quantised | None) -> nn.Module:
        return native.NativeLinear(source, "int8" if quantises else "float32", known)

    def make_block(source: Block, known: Mapping[str, Quantised]) -> nn.Module:
        return native.NativeBlock(source, precision, known)

    return Backend("compiled, AVX-512", make, make, quantises, make_block)


def works(make: Callable[[Linear, Quantised | None], nn.Module]) -> bool:
    """Try a backend on small layers of both kinds: whether they run, and are near what they should be."""
    return _near(make, relu=True, narrow=False) and _near(make, relu=False, narrow=True)


def _near(make: Callable[[Linear, Quantised | None], nn.Module], *, relu: bool, narrow: bool) -> bool:
    random = torch.Generator().manual_seed(0)
    layer = Linear(64, 48, relu=relu, narrow=narrow)
    layer.weight.copy_(torch.randn(48, 64, generator=random) / 8)
    layer.bias.copy_(torch.randn(48, generator=random))
    rows = torch.randn(5, 64, generator=random)
    spans = [(0, 2), (2, 5)]
    with torch.inference_mode():
        try:
            found: torch.Tensor = make(layer, None)(rows, spans)
        except _FAILURES:
            return False
        return torch.allclose(found.float(), layer(rows, spans), atol=_NEAR, rtol=_NEAR)


def _block_works(backend: Backend) -> bool:
    """Try a backend of whole layers in the same way."""
    random = torch.Generator().manual_seed(0)
    block = Block(_SMALL.features, _SMALL).requires_grad_(requires_grad=False)
    for parameter in block.parameters():
        spread = parameter.shape[-1] ** -0.5 if parameter.ndim == _MATRIX else 0.5
        parameter.copy_(torch.randn(parameter.shape, generator=random) * spread)
    packing = Packing([15, 2], _SMALL, torch.device("cpu"))
    rows = torch.randn(packing.total, _SMALL.features, generator=random)
    with torch.inference_mode():
        try:
            found: torch.Tensor = backend.make_block(block, {})(rows, packing) if backend.make_block else rows
        except _FAILURES:
            return False
        right: torch.Tensor = block(rows, packing)
        return found.shape == right.shape and bool((found - right).abs().max() < _NEAR * right.abs().max())
