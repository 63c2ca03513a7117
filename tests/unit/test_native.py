"""The compiled layers compute what torch's do, whatever the batch; where there are none, nothing is lost."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import logging
import math
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from harness.random_checkpoint import random_features, write_tiny

from sensevoiced.engine import native
from sensevoiced.engine.api import OutOfMemory
from sensevoiced.engine.encoder import Block
from sensevoiced.engine.int8 import Quantised, QuantisedLinear
from sensevoiced.engine.linear import Linear, PackedLinear
from sensevoiced.engine.native import NativeBlock, NativeLinear
from sensevoiced.engine.packing import Dimensions, Packing
from sensevoiced.engine.precision import choose
from sensevoiced.engine.sensevoice import TorchEngine
from sensevoiced.jobs import Options, Utterance
from sensevoiced.models import find_asr

PRECISIONS = ("float32", "bfloat16", "int8")
NEAR = {"float32": 3e-6, "bfloat16": 0.01, "int8": 0.03}
"""Largest difference of a layer's results from torch's float32 ones, in parts of the largest of those."""
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
UNEVEN = Dimensions(
    features=112, width=96, heads=2, hidden=80, blocks=2, tp_blocks=1, kernel=7, shift=1, vocabulary=37
)
"""Half-filled panels of 32 everywhere, and a memory that looks back farther than ahead."""
NARROWEST = Dimensions(
    features=16, width=16, heads=1, hidden=16, blocks=1, tp_blocks=0, kernel=3, shift=0, vocabulary=1
)
LENGTHS = ((1,), (254,), (5, 13, 1, 60), (33, 31, 64, 12, 24), (2,) * 7)
FLAGS = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"}
CONF = {"output_size": 64, "attention_heads": 4, "linear_units": 96}
MELS, DIM = 16, 112


def able():
    """Say whether this machine could build and run them."""
    flags = Path("/proc/cpuinfo").read_text().split()
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    return sys.platform == "linux" and shutil.which(compiler[0]) is not None and set(flags) >= FLAGS


needs_native = pytest.mark.skipif(
    native.library() is None, reason="the compiled layers are not there: no compiler, or no AVX-512 BF16"
)


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
def threads():
    """Each test begins with two threads, and leaves the number as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_gradients():
    """As the engine runs."""
    with torch.inference_mode():
        yield


def test_they_are_there_where_they_can_be():
    """Installed on such a machine, the package has them: a compiler's error would pass for absence."""
    if not able():
        pytest.skip("needs AVX-512 with VNNI and BF16, and a C compiler")
    assert native.library() is not None


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


@needs_native
def test_working_memory_is_given_back_where_memory_lacks(model, monkeypatch):
    """A batch that did not fit leaves nothing behind; the next one takes what it needs."""
    engine = load(model, "float32")
    expected = engine.run([work(1, 100)])
    assert len(native._rooms[0])
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_paths", lambda _: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(OutOfMemory):
            engine.run([work(1, 100)])
    assert not len(native._rooms[0])
    assert engine.run([work(1, 100)]) == expected
    engine.close()
    assert not len(native._rooms[0])


@needs_native
def test_much_working_memory_is_not_kept(model):
    """What an unusual batch took goes back; what usual ones take stays."""
    engine = load(model, "float32")
    engine.run([work(1, 100)])
    assert 0 < len(native._rooms[0]) <= 2**23
    engine.run([work(i, 2_000) for i in range(6)])
    assert not len(native._rooms[0])


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


def choice(precision, dimensions=PUBLISHED):
    """Name the backend that is chosen on a CPU."""
    return choose(torch.device("cpu"), precision, dimensions).name


@needs_native
@pytest.mark.parametrize("precision", PRECISIONS)
def test_they_are_chosen_where_they_fit(precision):
    """For the published model and the demo model in every precision of a CPU; not for odd sizes."""
    demo = Dimensions(
        features=560,
        width=192,
        heads=4,
        hidden=768,
        blocks=6,
        tp_blocks=2,
        kernel=11,
        shift=0,
        vocabulary=2_000,
    )
    assert choice(precision) == choice(precision, demo) == "compiled, AVX-512"
    for changed in ({"heads": 8}, {"width": 72}, {"hidden": 90}, {"features": 56}):
        odd = Dimensions(**{**{name: getattr(demo, name) for name in Dimensions.__slots__}, **changed})
        assert "oneDNN" in choice(precision, odd)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_without_them_the_other_backends_are_taken(monkeypatch, precision):
    """Not built, or another processor: as before."""
    monkeypatch.setattr(native, "library", lambda: None)
    assert "oneDNN" in choice(precision)


@needs_native
def test_layers_that_compute_something_else_are_not_taken(monkeypatch):
    """They are tried before they are chosen."""
    run = native._run
    monkeypatch.setattr(
        native, "_run", lambda what, *others: run(what, *others) * (1.2 if what == "block" else 1)
    )
    assert "oneDNN" in choice("float32")
    monkeypatch.setattr(
        native, "_run", lambda what, *others: run(what, *others) * (1.2 if what == "linear" else 1)
    )
    assert "oneDNN" in choice("float32")
    monkeypatch.setattr(native, "_run", run)
    assert choice("float32") == "compiled, AVX-512"


@pytest.mark.parametrize("held", [None, b"", b"\x7fELF no library"], ids=["missing", "empty", "damaged"])
def test_a_library_that_cannot_be_loaded_is_none(monkeypatch, tmp_path, held):
    """Without a traceback."""
    file = tmp_path / "libsensevoice.so"
    if held is not None:
        file.write_bytes(held)
    monkeypatch.setattr(native, "LIBRARY", file)
    assert native.library.__wrapped__() is None


@needs_native
def test_a_library_of_another_version_is_not_used(monkeypatch, tmp_path, caplog):
    """Its structures may be others: what to do is in the log."""
    other = tmp_path / "native.c"
    other.write_text("/* changed */")
    monkeypatch.setattr(native, "_SOURCE", other)
    with caplog.at_level(logging.WARNING):
        assert native.library.__wrapped__() is None
    assert "install again" in caplog.text


@needs_native
def test_a_processor_that_lacks_something_is_none(monkeypatch):
    """The library itself says whether it can run."""

    class Unable:
        sensevoice_source = native.library().sensevoice_source

        @staticmethod
        def sensevoice_supported():
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Unable)
    assert native.library.__wrapped__() is None


def load(folder, precision, cache_dir=None):
    """Load a model on two threads."""
    return TorchEngine.load(
        find_asr(str(folder), folder.parent),
        device="cpu",
        precision=precision,
        threads=2,
        cache_dir=cache_dir,
    )


def work(seed, frames):
    """Make an utterance of random features."""
    features = random_features(seed, frames, DIM).tobytes()
    return Utterance(seed, 0.0, frames * 0.06, features, frames, DIM), Options()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder of random weights, of a size that fits."""
    return write_tiny(tmp_path_factory.mktemp("models") / "small", conf=CONF, n_mels=MELS)


@needs_native
@pytest.mark.parametrize(("precision", "scores"), [("float32", 1e-4), ("bfloat16", 0.1), ("int8", 0.1)])
def test_an_engine_of_them_is_near_the_other(monkeypatch, model, precision, scores):
    """A whole model: float32 gives the same tokens, each precision is near, and alike in any company."""
    batch = [work(i, frames) for i, frames in enumerate((60, 7, 130, 1))]
    fast = load(model, precision)
    assert fast.info.backend == "compiled, AVX-512"
    monkeypatch.setattr(native, "library", lambda: None)
    plain = load(model, "float32")
    assert isinstance(plain._network.ctc.ctc_lo, PackedLinear)
    expected = plain.run(batch)
    monkeypatch.undo()
    results = fast.run(batch)
    if precision == "float32":
        assert [result.raw for result in results] == [result.raw for result in expected]
    for item, result, other in zip(batch, results, expected, strict=True):
        assert result.event_score == pytest.approx(other.event_score, abs=scores)
        assert fast.run([item]) == [result]


@needs_native
def test_another_batch_may_run_between_two_layers(model):
    """Their working memory is one, and empty between layers."""
    engine = load(model, "int8")
    long, short = work(1, 200), work(2, 250)
    expected = engine.run([long]), engine.run([short])
    within = []

    def cut_in():
        engine.between_layers(lambda: None)
        within.append(engine.run([short]))
        engine.between_layers(cut_in)

    engine.between_layers(cut_in)
    assert engine.run([long]) == expected[0]
    assert within == [expected[1]] * 5


@needs_native
def test_kept_8_bit_weights_give_the_same_results(monkeypatch, model, tmp_path):
    """Quantised once, read at the next start: of the model's 5 x 4 layers and its head none is done again."""
    quantise, quantised = Quantised.of, []
    monkeypatch.setattr(Quantised, "of", lambda weight: quantised.append(weight) or quantise(weight))
    batch = [work(3, 40), work(4, 11)]
    first = load(model, "int8", tmp_path).run(batch)
    of_first = len(quantised)
    assert load(model, "int8", tmp_path).run(batch) == first
    # Both loads quantise the layers of the trial.
    assert 2 * of_first - len(quantised) == 21
