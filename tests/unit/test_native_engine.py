"""When the compiled layers are loaded and chosen, and an engine of them."""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from harness.compiled import PRECISIONS, PUBLISHED, needs_native
from harness.random_checkpoint import random_features, write_tiny

from sensevoiced.engine import native
from sensevoiced.engine.api import OutOfMemory
from sensevoiced.engine.int8 import Quantised
from sensevoiced.engine.linear import PackedLinear
from sensevoiced.engine.packing import Dimensions
from sensevoiced.engine.precision import choose
from sensevoiced.engine.sensevoice import TorchEngine
from sensevoiced.jobs import Options, Utterance
from sensevoiced.models import find_asr

pytestmark = pytest.mark.usefixtures("two_threads")
FLAGS = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"}
CONF = {"output_size": 64, "attention_heads": 4, "linear_units": 96}
MELS, DIM = 16, 112


def able():
    """Say whether this machine could build and run them."""
    flags = Path("/proc/cpuinfo").read_text().split()
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    return sys.platform == "linux" and shutil.which(compiler[0]) is not None and set(flags) >= FLAGS


def test_they_are_there_where_they_can_be():
    """Installed on such a machine, the package has them: a compiler's error would pass for absence."""
    if not able():
        pytest.skip("needs AVX-512 with VNNI and BF16, and a C compiler")
    assert native.library() is not None


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
