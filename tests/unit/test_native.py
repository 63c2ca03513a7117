"""The compiled layers compute what torch's do, whatever the batch is."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from harness.compiled import PRECISIONS, PUBLISHED, needs_native

from sensevoiced.engine import native
from sensevoiced.engine.encoder import Block
from sensevoiced.engine.int8 import Quantised, QuantisedLinear
from sensevoiced.engine.linear import Linear
from sensevoiced.engine.native import NativeBlock, NativeLinear
from sensevoiced.engine.packing import Dimensions, Packing

pytestmark = pytest.mark.usefixtures("two_threads")
NEAR = {"float32": 3e-6, "bfloat16": 0.01, "int8": 0.03}
"""Largest difference of a layer's results from torch's float32 ones, in parts of the largest of those."""
UNEVEN = Dimensions(
    features=112, width=96, heads=2, hidden=80, blocks=2, tp_blocks=1, kernel=7, shift=1, vocabulary=37
)
"""Half-filled panels of 32 everywhere, and a memory that looks back farther than ahead."""
NARROWEST = Dimensions(
    features=16, width=16, heads=1, hidden=16, blocks=1, tp_blocks=0, kernel=3, shift=0, vocabulary=1
)
LENGTHS = ((1,), (254,), (5, 13, 1, 60), (33, 31, 64, 12, 24), (2,) * 7)


def made(kind, *arguments, spread=0.5):
    """Make a module of seeded random numbers."""
    random = torch.Generator().manual_seed(7)
    module = kind(*arguments).requires_grad_(requires_grad=False)
    for parameter in module.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else spread
        parameter.copy_(torch.randn(parameter.shape, generator=random) * scale)
    return module


def normal(*shape, seed=1):
    """Make seeded random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packing(lengths, dimensions):
    """Lay out utterances on the CPU."""
    return Packing(lengths, dimensions, torch.device("cpu"))


@pytest.fixture(autouse=True)
def no_gradients():
    """As the engine runs."""
    with torch.inference_mode():
        yield


@needs_native
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(
    ("dimensions", "inputs"),
    [(PUBLISHED, 560), (PUBLISHED, 512), (UNEVEN, 112), (UNEVEN, 96), (NARROWEST, 16)],
    ids=["first", "published", "uneven-first", "uneven", "narrowest"],
)
def test_a_layer_computes_what_torchs_does(dimensions, inputs, lengths, precision):
    """In each precision near the plain float32 layer, whatever the lengths."""
    block = made(Block, inputs, dimensions)
    rows = normal(sum(lengths), inputs)
    right = block(rows, packing(lengths, dimensions))
    found = NativeBlock(block, precision, {})(rows, packing(lengths, dimensions))
    assert found.shape == right.shape
    assert (found - right).abs().max() < NEAR[precision] * right.abs().max()


@needs_native
def test_8_bits_are_those_of_the_other_backend():
    """One utterance of one row has no sum whose order matters: the same steps, so the same numbers."""
    block = made(Block, 512, PUBLISHED)
    rows = normal(1, 512)
    found = NativeBlock(block, "int8", {})(rows, packing([1], PUBLISHED))
    for module in (block.self_attn, block.feed_forward):
        for name, layer in list(module.named_children()):
            if isinstance(layer, Linear):
                setattr(module, name, QuantisedLinear(layer, Quantised.of(layer.weight)))
    right = block(rows, packing([1], PUBLISHED))
    assert (found - right).abs().max() < 1e-3 * right.abs().max()


@needs_native
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("dimensions", "inputs"),
    [(PUBLISHED, 560), (PUBLISHED, 512), (UNEVEN, 112), (UNEVEN, 96)],
    ids=["first", "published", "uneven-first", "uneven"],
)
def test_neither_company_nor_threads_change_a_bit_of_a_layer(dimensions, inputs, precision):
    """Alone and in company, on one thread, on two, and on more than there are cores or parts."""
    lengths = (25, 1, 13, 60)
    block = NativeBlock(made(Block, inputs, dimensions), precision, {})
    rows = normal(sum(lengths), inputs)
    together = block(rows, packing(lengths, dimensions))
    starts = [0, *itertools.accumulate(lengths)]
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        assert torch.equal(block(rows, packing(lengths, dimensions)), together)
        for start, end in itertools.pairwise(starts):
            alone = block(rows[start:end], packing([end - start], dimensions))
            assert torch.equal(alone, together[start:end])


@needs_native
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_neither_company_nor_threads_change_a_bit_of_the_head(precision):
    """The same for a linear layer alone."""
    layer = NativeLinear(made(Linear, 512, 1_000), precision, None)
    rows = normal(64, 512)
    together = layer(rows, [(0, 7), (7, 20), (20, 64)])
    for threads in (1, 7):
        torch.set_num_threads(threads)
        for start, end in ((0, 7), (7, 20), (20, 64)):
            assert torch.equal(layer(rows[start:end], [(0, end - start)]), together[start:end])


@needs_native
@pytest.mark.parametrize("outputs", [1, 31, 32, 33, 25_055])
@pytest.mark.parametrize(("precision", "near"), [("float32", 3e-6), ("int8", 0.03)])
def test_the_head_may_have_any_vocabulary(outputs, precision, near):
    """A last panel that is not full gives the right numbers."""
    layer = made(Linear, 48, outputs)
    rows = normal(70, 48)
    right = layer(rows, [])
    found = NativeLinear(layer, precision, None)(rows, [(0, 1), (1, 30), (30, 70)])
    assert found.shape == right.shape
    assert (found - right).abs().max() <= near * right.abs().max()


@needs_native
@pytest.mark.parametrize("relu", [True, False])
def test_a_layer_alone_may_end_with_relu(relu):
    """As the feed-forward's first one does."""
    layer = made(functools.partial(Linear, relu=relu), 16, 32)
    found = NativeLinear(layer, "float32", None)(normal(3, 16), [(0, 3)])
    torch.testing.assert_close(found, layer(normal(3, 16), []), atol=1e-6, rtol=1e-6)


@needs_native
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -3e38])
def test_bad_numbers_stay_in_their_utterance(precision, value):
    """An utterance that cannot be computed leaves its neighbours as they are alone."""
    block = NativeBlock(made(Block, 96, UNEVEN), precision, {})
    rows = normal(60, 96)
    alone = block(rows[20:40], packing([20], UNEVEN))
    rows[:20], rows[40:] = value, value
    assert torch.equal(block(rows, packing([20, 20, 20], UNEVEN))[20:40], alone)


@needs_native
@pytest.mark.parametrize("rows", [torch.zeros(3, 16), torch.ones(3, 16), -torch.ones(3, 16), torch.eye(16)])
def test_the_ends_of_the_range_are_quantised_right(rows):
    """All zeros, all equal, all negative, one peak: within a step and a half of the exact product."""
    exact = made(Linear, 16, 8)
    fast = NativeLinear(exact, "int8", None)
    torch.testing.assert_close(fast(rows, [(0, len(rows))]), exact(rows, []), atol=0.1, rtol=0.02)


@needs_native
@pytest.mark.parametrize("precision", PRECISIONS)
def test_memory_beside_its_own_is_left_alone(monkeypatch, precision):
    """Neither working memory nor a result is written past its end."""
    guard = 4096
    given = []

    def guarded(size):
        given.append((torch.full((size + guard,), 0x5A, dtype=torch.uint8), size))
        return given[-1][0]

    class Rows(torch.Tensor):
        def new_empty(self, rows, outputs):
            size = rows * outputs * 4
            return guarded(size)[:size].view(torch.float32).view(rows, outputs)

    monkeypatch.setattr(native, "_room", guarded)
    for dimensions, lengths in itertools.product((PUBLISHED, UNEVEN), ((1,), (31, 2), (97,))):
        block = NativeBlock(made(Block, dimensions.width, dimensions), precision, {})
        block(normal(sum(lengths), dimensions.width).as_subclass(Rows), packing(lengths, dimensions))
    for outputs in (1, 31, 33):
        kind = "int8" if precision == "int8" else "float32"
        layer = NativeLinear(made(Linear, 48, outputs), kind, None)
        layer(normal(5, 48).as_subclass(Rows), [(0, 5)])
    assert len(given) == 2 * (6 + 3)
    assert all((memory[size:] == 0x5A).all() for memory, size in given)


@needs_native
@pytest.mark.parametrize(
    "rows", [torch.zeros(4, 96), torch.zeros(3, 95), torch.zeros(3, 96, dtype=torch.float64)], ids=str
)
def test_rows_that_do_not_fit_are_refused(rows):
    """Too many, of another width, of another type: behind the check nothing would notice."""
    block = NativeBlock(made(Block, 96, UNEVEN), "float32", {})
    with pytest.raises(ValueError, match="are not 3 x 96"):
        block(rows, packing([3], UNEVEN))
    layer = NativeLinear(made(Linear, 96, 8), "float32", None)
    with pytest.raises(ValueError, match="are not 3 x 96"):
        layer(rows, [(0, 3)])


@needs_native
def test_a_kernel_of_one_leaves_the_checkpoint_alone():
    """Its taps would be the weights themselves."""
    block = made(Block, 16, dataclasses.replace(NARROWEST, kernel=1))
    before = block.self_attn.fsmn_block.weight.clone()
    NativeBlock(block, "float32", {})
    assert torch.equal(block.self_attn.fsmn_block.weight, before)


SANITIZED = """
    import sys; sys.path[:0] = sys.argv[1:3]
    from pathlib import Path
    import torch
    from sensevoiced.engine import native
    native.LIBRARY = Path(sys.argv[3])
    native._room = lambda size: torch.empty(size, dtype=torch.uint8)
    from unit import test_native as cases
    torch.set_num_threads(2)
    with torch.inference_mode():
        assert native.library()
        for dimensions, inputs in ((cases.UNEVEN, 112), (cases.UNEVEN, 96), (cases.NARROWEST, 16)):
            for lengths in cases.LENGTHS:
                for precision in cases.PRECISIONS:
                    cases.test_a_layer_computes_what_torchs_does(dimensions, inputs, lengths, precision)
        for precision in cases.PRECISIONS:
            cases.test_a_layer_computes_what_torchs_does(cases.PUBLISHED, 560, (40, 3), precision)
        for outputs in (1, 31, 33):
            for precision in ("float32", "int8"):
                cases.test_the_head_may_have_any_vocabulary(outputs, precision, 0.03)
    print("through")
"""


@needs_native
def test_the_sanitizers_find_nothing(repository, tmp_path):
    """Those for addresses and undefined behaviour; between two pieces of memory is forbidden ground."""
    pytest.importorskip("hatchling", reason="the [dev] extra is not installed")
    from tools import build_native

    compiler = os.environ.get("CC") or "cc"
    library = tmp_path / "libsensevoice.so"
    runtimes = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(runtime).is_absolute() for runtime in runtimes):
        pytest.skip("this compiler has no sanitizers")
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    assert build_native.build(repository / build_native.SOURCE, library, checks) == ""
    environment = {**os.environ, "LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(SANITIZED),
            str(repository),
            str(repository / "tests"),
            str(library),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "through\n", done.stderr[-2000:]


@needs_native
def test_weights_may_go_once_they_are_laid_out():
    """Nothing of the checkpoint is read later."""
    block = made(Block, 96, UNEVEN)
    rows = normal(20, 96)
    right = block(rows, packing([20], UNEVEN))
    fast = NativeBlock(block, "float32", {})
    for parameter in block.parameters():
        parameter.fill_(math.nan)
    torch.testing.assert_close(fast(rows, packing([20], UNEVEN)), right, atol=1e-4, rtol=1e-4)
