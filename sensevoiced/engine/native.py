"""Layers of the encoder and the head in compiled code: native.c, where it was built and can run.

It is built with the package where there is a compiler (tools/build_native.py), for the processors that it
names; everywhere else the layers of linear.py and int8.py compute the same. Imports torch only.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it everywhere

from sensevoiced.engine.int8 import BFLOAT16, VNNI, Quantised

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sensevoiced.engine.encoder import Block
    from sensevoiced.engine.linear import Linear
    from sensevoiced.engine.packing import Dimensions, Packing

log = logging.getLogger(__name__)

LIBRARY = Path(__file__).with_name("libsensevoice.so")
_SOURCE = Path(__file__).with_name("native.c")
_TYPES = {"float32": 0, "bfloat16": 1, "int8": 2}
"""Of a product's operands, as native.c numbers them; so the next three."""
_WIDE = 32
_TALL = 12
_VECTOR = 16
_UNIT_BYTES = 4
_LAYOUTS = 8
"""Batches whose layout is kept: each layer asks for the same one, and the head for those of its blocks."""

_Pointer = ctypes.c_void_p


class _LinearFields(ctypes.Structure):
    _fields_ = (
        *((name, _Pointer) for name in ("panels", "bias", "scale", "sums")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs")),
        *((name, ctypes.c_int32) for name in ("type", "relu")),
    )


class _NormFields(ctypes.Structure):
    _fields_ = (("gain", _Pointer), ("bias", _Pointer), ("epsilon", ctypes.c_double))


class _BlockFields(ctypes.Structure):
    _fields_ = (
        *((name, _LinearFields) for name in ("qkv", "out", "first", "second")),
        *((name, _NormFields) for name in ("before", "between")),
        ("taps", _Pointer),
        *((name, ctypes.c_int64) for name in ("heads", "kernel", "left")),
    )


class _BatchFields(ctypes.Structure):
    _fields_ = (
        *((name, _Pointer) for name in ("starts", "pieces")),
        *((name, ctypes.c_int64) for name in ("utterances", "count", "longest")),
    )


class _Batch:
    """Where utterances lie, as native.c reads it."""

    def __init__(self, lengths: Sequence[int]) -> None:
        starts = list(accumulate(lengths, initial=0))
        pieces = [
            (first, min(first + _TALL, end), number)
            for number, (start, end) in enumerate(pairwise(starts))
            for first in range(start, end, _TALL)
        ]
        self._held = torch.tensor(starts), torch.tensor(pieces)
        self.rows = starts[-1]
        pointers = (held.data_ptr() for held in self._held)
        self.fields = _BatchFields(*pointers, len(lengths), len(pieces), max(lengths))


@functools.lru_cache(_LAYOUTS)
def _batch_of(lengths: tuple[int, ...]) -> _Batch:
    return _Batch(lengths)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Load the compiled code; None where it was not built, or fits neither this processor nor this torch."""
    try:
        # It has no threads of its own: where torch's OpenMP is not loaded for all to see, this fails.
        loaded = ctypes.CDLL(str(LIBRARY))
        loaded.sensevoice_source.restype = ctypes.c_char_p
        if loaded.sensevoice_source().decode() != hashlib.sha256(_SOURCE.read_bytes()).hexdigest():
            log.warning("%s was built from another %s: install again to use it", LIBRARY, _SOURCE.name)
            return None
        if not loaded.sensevoice_supported():
            return None
    except (OSError, AttributeError) as error:
        if BFLOAT16 and VNNI:
            log.warning(
                "the compiled layers, which are faster on this processor, cannot be loaded (%s): with a C"
                " compiler there, install again",
                error,
            )
        return None
    loaded.sensevoice_lay_out.argtypes = [_Pointer, ctypes.c_int64, ctypes.c_int64, _Pointer]
    loaded.sensevoice_lay_out.restype = None
    for what in ("block", "linear"):
        run, room = (getattr(loaded, f"sensevoice_{what}{which}") for which in ("", "_room"))
        room.argtypes = [_Pointer, _Pointer, ctypes.c_int]
        room.restype = ctypes.c_int64
        run.argtypes = [*room.argtypes, _Pointer, _Pointer, _Pointer]
        run.restype = None
    return loaded


def fits(dimensions: Dimensions, precision: str) -> bool:
    """Say whether native.c can run a model of this size: it takes numbers by the register, without a rest."""
    sizes = (dimensions.features, dimensions.width, dimensions.hidden, dimensions.width // dimensions.heads)
    return precision in _TYPES and not any(size % _VECTOR for size in sizes)


def _loaded() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise RuntimeError("the compiled layers are not there")
    return found


def _filled_up(vector: torch.Tensor, count: int) -> torch.Tensor:
    """Copy a vector, with zeros behind it."""
    return F.pad(vector, (0, count - len(vector))).clone()


class _Weights:
    """A linear layer's weights as native.c reads them."""

    def __init__(self, source: Linear, precision: str, known: Quantised | None) -> None:
        outputs, inputs = source.weight.shape
        filled = -(-outputs // _WIDE) * _WIDE
        weight, scale, sums = source.weight.detach(), torch.empty(0), torch.empty(0)
        if precision == "int8":
            quantised = known or Quantised.of(weight)
            weight = quantised.weight
            scale = _filled_up(quantised.scale, filled)
            sums = _filled_up(weight.sum(1, dtype=torch.int32), filled)
        weight = weight.to(getattr(torch, precision))
        weight = weight.contiguous()
        units = inputs * weight.element_size() // _UNIT_BYTES
        panels = torch.empty(filled, inputs, dtype=weight.dtype)
        _loaded().sensevoice_lay_out(weight.data_ptr(), outputs, units, panels.data_ptr())
        self._held = (panels, _filled_up(source.bias.detach(), filled), scale, sums)
        pointers = (held.data_ptr() for held in self._held)
        self.fields = _LinearFields(*pointers, inputs, outputs, _TYPES[precision], source.relu)


class NativeLinear(nn.Module):
    """A linear layer in compiled code: float32, or 8-bit weights on inputs with one scale an utterance."""

    def __init__(self, source: Linear, precision: str, known: Quantised | None) -> None:
        """Lay out the weights of `source`, in `precision` float32 or int8."""
        super().__init__()
        self._weights = _Weights(source, precision, known)

    def forward(self, rows: torch.Tensor, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Map (N, inputs) to (N, outputs) in float32, of the utterances at `spans`."""
        lengths = tuple(end - start for start, end in spans)
        fields = self._weights.fields
        return _run("linear", fields, lengths, rows, (fields.inputs, fields.outputs))


class NativeBlock(nn.Module):
    """One encoder layer in compiled code."""

    def __init__(self, source: Block, precision: str, known: Mapping[str, Quantised]) -> None:
        """Lay out the weights of `source`; `known` has 8-bit ones by the names of its linear layers."""
        super().__init__()
        linears = ("self_attn.linear_q_k_v", "self_attn.linear_out", "feed_forward.w_1", "feed_forward.w_2")
        norms = (source.norm1, source.norm2)
        attention = source.self_attn
        memory = attention.fsmn_block
        self._weights = [
            _Weights(source.get_submodule(name), precision, known.get(name))  # type: ignore[arg-type]
            for name in linears
        ]
        self._norms = [(norm.weight.detach().clone(), norm.bias.detach().clone()) for norm in norms]
        self._taps = memory.taps()
        self._fields = _BlockFields(
            *(weights.fields for weights in self._weights),
            *(
                _NormFields(gain.data_ptr(), bias.data_ptr(), norm.eps)
                for norm, (gain, bias) in zip(norms, self._norms, strict=True)
            ),
            self._taps.data_ptr(),
            *(attention.heads, memory.kernel, memory.left),
        )

    def forward(self, rows: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Map (total, inputs) to (total, width), in float32 whatever the type of the linear layers."""
        sizes = self._fields.qkv.inputs, self._fields.out.outputs
        return _run("block", self._fields, packing.lengths, rows, sizes)


def _run(
    what: str, fields: ctypes.Structure, lengths: tuple[int, ...], rows: torch.Tensor, sizes: tuple[int, int]
) -> torch.Tensor:
    """Call one of native.c's two functions on rows (N, inputs) of utterances of `lengths`.

    Raises ValueError where they do not fit: behind this line nothing is checked.
    """
    native = _loaded()
    batch = _batch_of(lengths)
    inputs, outputs = sizes
    if rows.shape != (batch.rows, inputs) or rows.dtype != torch.float32 or not rows.is_cpu:
        raise ValueError(
            f"rows {tuple(rows.shape)} of {rows.dtype} are not {batch.rows} x {inputs} of float32"
        )
    arguments = ctypes.byref(fields), ctypes.byref(batch.fields), torch.get_num_threads()
    rows = rows.contiguous()
    result = rows.new_empty(batch.rows, outputs)
    room = _room(getattr(native, f"sensevoice_{what}_room")(*arguments))
    getattr(native, f"sensevoice_{what}")(*arguments, rows.data_ptr(), result.data_ptr(), room.data_ptr())
    return result


_rooms = [torch.empty(0, dtype=torch.uint8)]
_ROOM_STEP = 2**22
"""Working memory grows by so much at least: a 30 s utterance needs 12 MiB in float32."""


def _room(size: int) -> torch.Tensor:
    """Give memory of `size` bytes or more, the same at each call: so it lies in the processor's cache.

    There is one engine thread, so one is enough.
    """
    if len(_rooms[0]) < size:
        release()
        _rooms[0] = torch.empty(-(-size // _ROOM_STEP) * _ROOM_STEP, dtype=torch.uint8)
    return _rooms[0]


def release(beyond: int = 0) -> None:
    """Let go of the working memory, where it is larger than `beyond` bytes.

    It is as large as the largest batch since the last time needed.
    """
    if len(_rooms[0]) > beyond:
        _rooms[0] = torch.empty(0, dtype=torch.uint8)
