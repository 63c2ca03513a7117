"""Samples as decoders give them, made fit for what follows: finite, and of at most two channels.

Must never import a decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sensevoiced.frontend.resample import Samples

    Floats = NDArray[np.float32]

_MAX_AMPLITUDE = 1e6
"""Far above full scale; keeps sums finite when a float file holds absurd values."""


def mix_down(piece: Samples) -> Samples:
    """Leave one and two channels to the resampler (which averages two) and average more of them here."""
    channels = piece.shape[1]
    if channels <= 2:  # noqa: PLR2004 - stereo
        return piece
    scale = np.float32((1 if piece.dtype == np.float32 else 1 / 32768) / channels)
    mono: Floats = piece.astype(np.float32, copy=False) @ np.full((channels, 1), scale)
    return mono


def finite(piece: Samples) -> Samples:
    """Replace what is not a number by silence, and bound the rest."""
    if piece.dtype == np.int16:
        return piece
    # Both comparisons fail for what is not a number.
    if piece.min(initial=0.0) >= -_MAX_AMPLITUDE and piece.max(initial=0.0) <= _MAX_AMPLITUDE:
        return piece
    return np.nan_to_num(piece, nan=0.0, posinf=0.0, neginf=0.0).clip(-_MAX_AMPLITUDE, _MAX_AMPLITUDE)
