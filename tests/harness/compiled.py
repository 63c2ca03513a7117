"""What tests of the compiled layers share; imports torch, so only where those are the subject."""

from __future__ import annotations

import pytest

from sensevoiced.engine import native
from sensevoiced.engine.packing import Dimensions

PRECISIONS = ("float32", "bfloat16", "int8")
PUBLISHED = Dimensions(
    features=560,
    width=512,
    heads=4,
    hidden=2048,
    blocks=2,
    tp_blocks=1,
    kernel=11,
    shift=0,
    vocabulary=25_055,
)
"""SenseVoiceSmall's, but for the number of layers."""
needs_native = pytest.mark.skipif(
    native.library() is None, reason="the compiled layers are not there: no compiler, or no AVX-512 BF16"
)
