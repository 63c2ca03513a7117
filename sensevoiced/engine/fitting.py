"""Puts a backend's layers in the place of a network's loaded ones; imports torch only.

It reads and writes the file of 8-bit weights (cache.py).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch

from sensevoiced.engine import cache
from sensevoiced.engine.encoder import Block
from sensevoiced.engine.int8 import Quantised
from sensevoiced.engine.linear import Linear

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from sensevoiced.engine.encoder import SenseVoice
    from sensevoiced.engine.precision import Backend

_HELPERS = 4
_Kind = TypeVar("_Kind", bound="nn.Module")


def fit(network: SenseVoice, backend: Backend, kept: Path | None) -> None:
    """Replace the layers that the backend computes, 8-bit weights from the file `kept` if there.

    Afterwards nothing of the checkpoint's file is held, unless its pages themselves are the weights.
    """
    known = cache.read(kept) if kept and backend.quantises else {}
    fitting = _Fitting(network, backend, known)
    whole = _of_kind(network, Block) if backend.make_block else {}
    inside = tuple(f"{name}." for name in whole)
    single = {name: layer for name, layer in _of_kind(network, Linear).items() if not name.startswith(inside)}
    if backend.quantises or backend.make_block:
        # Laid out on one thread, by native.c as by oneDNN: a second for the whole model. Only a few at once,
        # because each of these may have a team of OpenMP's threads of its own.
        with ThreadPoolExecutor(min(_HELPERS, torch.get_num_threads())) as pool:
            list(pool.map(fitting.put_block, whole.keys(), whole.values()))
            list(pool.map(fitting.put_linear, single.keys(), single.values()))
    else:
        # oneDNN's other types use every thread.
        for name, layer in single.items():
            fitting.put_linear(name, layer)
    if kept and fitting.made:
        cache.write(kept, {**known, **fitting.made})
    if not _of_kind(network, Linear):
        # What is left is small, and would keep the whole file mapped.
        for parameter in network.parameters():
            parameter.data = parameter.data.clone()


class _Fitting:
    """Replaces one layer at a time; layers may be put from several threads."""

    def __init__(self, network: SenseVoice, backend: Backend, known: dict[str, Quantised]) -> None:
        self._network = network
        self._backend = backend
        self._known = known
        self.made: dict[str, Quantised] = {}
        """What had to be quantised, by name."""

    def put_block(self, name: str, block: Block) -> None:
        quantised = {
            inner: weights
            for inner, layer in _of_kind(block, Linear).items()
            if (weights := self._quantised(f"{name}.{inner}", layer))
        }
        if self._backend.make_block:
            self._put(name, self._backend.make_block(block, quantised))

    def put_linear(self, name: str, layer: Linear) -> None:
        of_head = name.startswith("ctc.")
        make = self._backend.make_head if of_head else self._backend.make
        self._put(name, make(layer, self._quantised(name, layer)))

    def _put(self, name: str, layer: nn.Module) -> None:
        parent, _, attribute = name.rpartition(".")
        setattr(self._network.get_submodule(parent), attribute, layer)

    def _quantised(self, name: str, layer: Linear) -> Quantised | None:
        if not self._backend.quantises:
            return None
        weights = self._known.get(name)
        if weights is None or not weights.fits(layer.weight):
            weights = self.made[name] = Quantised.of(layer.weight)
        return weights


def _of_kind(module: nn.Module, kind: type[_Kind]) -> dict[str, _Kind]:
    return {name: inner for name, inner in module.named_modules() if isinstance(inner, kind)}
