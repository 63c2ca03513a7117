"""Which backend computes the linear layers at a precision on a device, and putting it there; imports torch.

What each backend costs stands in benchmarks/README.md. The fast ones lean on operators that torch does not
document, so each is tried on a small layer before it is chosen; where it fails, torch's own layer is taken.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from sensevoiced.engine import cache
from sensevoiced.engine.int8 import Quantised, QuantisedLinear
from sensevoiced.engine.linear import CastLinear, Linear, PackedLinear

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sensevoiced.engine.encoder import SenseVoice

_HELPERS = 4
_NEAR = 0.05
"""A working 8-bit layer is off by a fifth of this on inputs of size one; a wrong layout by twenty times."""


@dataclass(frozen=True, slots=True)
class Backend:
    """How the linear layers of one precision are made, and what else that precision changes."""

    name: str
    """For a person, in `svctl status`."""
    make: Callable[[Linear, Quantised | None], nn.Module]
    """From a loaded float32 layer, and from its quantised weights where they are known already."""
    make_head: Callable[[Linear, Quantised | None], nn.Module]
    """The same for the CTC head."""
    quantises: bool = False


def _plain(source: Linear, _known: Quantised | None) -> nn.Module:
    return source


def _packed(source: Linear, _known: Quantised | None) -> nn.Module:
    return PackedLinear(source, torch.float32)


def _packed_bfloat16(source: Linear, _known: Quantised | None) -> nn.Module:
    return PackedLinear(source, torch.bfloat16)


def _quantised(source: Linear, known: Quantised | None) -> nn.Module:
    """Make an 8-bit layer of a float32 one."""
    return QuantisedLinear(source, known or Quantised.of(source.weight))


def choose(place: torch.device, precision: str) -> Backend:
    """Choose how linear layers run at a precision on a device.

    The head is float32 under both 16-bit types: with 8 or 11 bits of mantissa the best two of 25,055 logits
    are often equal. Raises ValueError for int8 where there is nothing to compute it with.
    """
    on_cpu = place.type == "cpu"
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
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return False
        return torch.allclose(found.float(), layer(rows, spans), atol=_NEAR, rtol=_NEAR)


def fit(network: SenseVoice, backend: Backend, kept: Path | None) -> None:
    """Put the backend's layers in the place of all linear ones, 8-bit weights from the file `kept` if there.

    Afterwards nothing of the checkpoint's file is held, unless its pages themselves are the weights.
    """
    known = cache.read(kept) if kept and backend.quantises else {}
    made: dict[str, Quantised] = {}

    def put(name: str, layer: Linear) -> None:
        weights = known.get(name)
        if backend.quantises and (weights is None or not weights.fits(layer.weight)):
            weights = made[name] = Quantised.of(layer.weight)
        parent, _, attribute = name.rpartition(".")
        owner = network.get_submodule(parent)
        make = backend.make_head if owner is network.ctc else backend.make
        setattr(owner, attribute, make(layer, weights))

    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, Linear)]
    # oneDNN lays out 8-bit weights on one thread, a second for all of them; the other types on every thread.
    # Only a few at once, because each of these may have a team of OpenMP's threads of its own.
    if backend.quantises:
        with ThreadPoolExecutor(min(_HELPERS, torch.get_num_threads())) as pool:
            list(pool.map(put, *zip(*layers, strict=True)))
    else:
        for name, layer in layers:
            put(name, layer)
    if kept and made:
        cache.write(kept, {**known, **made})
    if not any(isinstance(layer, Linear) for layer in network.modules()):
        # What is left is small, and would keep the whole file mapped.
        for parameter in network.parameters():
            parameter.data = parameter.data.clone()
