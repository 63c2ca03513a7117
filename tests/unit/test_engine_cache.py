"""8-bit weights on disk: kept once, found again, and never trusted beyond what they are."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from harness.random_checkpoint import random_features, write_tiny

from sensevoiced.engine import cache
from sensevoiced.engine.int8 import Quantised
from sensevoiced.engine.sensevoice import TorchEngine
from sensevoiced.jobs import Options, Utterance
from sensevoiced.models import find_asr

DIM = 56


@pytest.fixture
def model(tmp_path):
    """A model of random weights."""
    return find_asr(str(write_tiny(tmp_path / "tiny")), tmp_path)


@pytest.fixture
def kept(tmp_path):
    """A folder for what is kept."""
    return tmp_path / "cache"


def load(model, kept):
    """Load a model in 8 bits."""
    return TorchEngine.load(model, device="cpu", precision="int8", threads=1, cache_dir=kept)


def answer(engine):
    """What an engine says of one clip."""
    features = random_features(1, 60, DIM).tobytes()
    return engine.run([(Utterance(0, 0.0, 3.6, features, 60, DIM), Options())])


def count_quantising(monkeypatch):
    """Count the layers that are quantised from here on."""
    made = []
    original = Quantised.of.__func__
    monkeypatch.setattr(Quantised, "of", classmethod(lambda c, w: made.append(1) or original(c, w)))
    return made


def test_the_second_start_quantises_nothing_and_answers_the_same(model, kept, monkeypatch):
    """The second start reads what the first wrote: no layers but the two of the trial are quantised."""
    first = answer(load(model, kept))
    (file,) = kept.iterdir()
    assert file == cache.file_of(model.weights, kept)
    assert kept.stat().st_mode & 0o777 == 0o700
    made = count_quantising(monkeypatch)
    assert answer(load(model, kept)) == first
    assert len(made) == 2


def test_another_version_of_the_model_takes_the_place_of_the_first(model, kept):
    """A model.pt that changed is quantised again, and only its own weights stay."""
    load(model, kept)
    (old,) = kept.iterdir()
    write_tiny(model.path, seed=2)
    second = answer(load(model, kept))
    (new,) = kept.iterdir()
    assert new != old
    assert answer(load(model, kept)) == second


def reshape(file):
    """Take a row off every layer."""
    held = torch.load(file, weights_only=True)
    torch.save({name: (weight[1:], scale[1:]) for name, (weight, scale) in held.items()}, file)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-2_000]),
        lambda file: file.write_bytes(b"garbage"),
        lambda file: torch.save([1, 2], file),
        lambda file: torch.save({"encoder.encoders0.0.feed_forward.w_1": ("x", "y")}, file),
        lambda file: file.chmod(0o666),
        reshape,
    ],
    ids=["cut", "garbage", "list", "texts", "rights", "shape"],
)
def test_a_file_that_cannot_be_used_is_made_again(model, kept, damage):
    """Cut, garbage, of another model, writable for others: as if it were not there, and whole afterwards."""
    first = answer(load(model, kept))
    (file,) = kept.iterdir()
    damage(file)
    assert answer(load(model, kept)) == first
    assert file.stat().st_mode & 0o777 == 0o600
    assert set(cache.read(file)) == set(cache.read(cache.file_of(model.weights, kept)))
    assert cache.read(file)


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("/nonexistent/evil",))


def test_the_file_may_hold_weights_only(model, kept):
    """A pickle that would run code is refused unread."""
    first = answer(load(model, kept))
    (file,) = kept.iterdir()
    torch.save({"encoder": Evil()}, file)
    file.chmod(0o600)
    assert answer(load(model, kept)) == first


def test_a_folder_that_cannot_be_written_is_done_without(model, tmp_path, caplog):
    """The model is loaded all the same, and the log says why the next start will be no faster."""
    (tmp_path / "file").write_text("no folder")
    assert answer(load(model, tmp_path / "file" / "cache"))
    with caplog.at_level("INFO"):
        load(model, tmp_path / "file" / "cache")
    assert "8-bit weights are not kept" in caplog.text
    assert not list(tmp_path.glob("*.new"))


def test_a_full_disk_is_done_without(model, kept, monkeypatch):
    """Torch answers a failed write with an error of its own; the model is loaded all the same."""

    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self):
            pass

    original = torch.save
    monkeypatch.setattr(torch, "save", lambda held, opened: original(held, Full()))
    assert answer(load(model, kept))
    assert list(kept.iterdir()) == []


def test_what_a_killed_daemon_left_is_cleared_away(model, kept):
    """An unfinished file goes when it is old; a young one may be another daemon's."""
    kept.mkdir(mode=0o700)
    old, young = kept / "old.new", kept / "young.new"
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    load(model, kept)
    assert not old.exists()
    assert young.exists()


def test_other_precisions_keep_nothing(model, kept):
    """Only what takes long to compute is kept."""
    TorchEngine.load(model, device="cpu", precision="bfloat16", threads=1, cache_dir=kept)
    assert not kept.exists()
