"""The benchmark's checkpoint: the stand-in where no real side files are, and what is made once and kept."""

import pytest
import sentencepiece
import torch
import yaml
from harness.random_checkpoint import TINY, random_features

from benchmarks.checkpoint import FULL, MELS, PIECES, TAGS, made_once, write_stand_in
from sensevoiced.engine.encoder import SenseVoice
from sensevoiced.engine.packing import Dimensions
from sensevoiced.engine.sensevoice import TorchEngine
from sensevoiced.jobs import Options, Utterance
from sensevoiced.models import find_asr

PARAMETERS = 233_999_167
"""Of the published model."""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A stand-in whose encoder is tiny, with the tokenizer and features of the large one."""
    return write_stand_in(tmp_path_factory.mktemp("bench") / "model", conf=TINY)


def test_the_stand_in_tokenizer_has_the_published_number_of_pieces_and_every_tag(stand_in):
    """The head costs what the real one costs, and each tag is one piece."""
    pieces = sentencepiece.SentencePieceProcessor()
    pieces.Load(str(next(stand_in.glob("*.bpe.model"))))
    assert pieces.GetPieceSize() == PIECES
    assert [tag for tag in TAGS if pieces.IsUnknown(pieces.PieceToId(tag))] == []


def test_the_stand_in_is_as_large_as_the_published_model():
    """Its dimensions give the published model's parameters, one for one."""
    dimensions = Dimensions(
        features=7 * MELS,
        width=FULL["output_size"],
        heads=FULL["attention_heads"],
        hidden=FULL["linear_units"],
        blocks=FULL["num_blocks"],
        tp_blocks=FULL["tp_blocks"],
        kernel=FULL["kernel_size"],
        shift=FULL["sanm_shfit"],
        vocabulary=PIECES,
    )
    with torch.device("meta"):
        network = SenseVoice(dimensions)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS


def test_the_stand_in_describes_the_encoder_that_the_published_config_describes(shared_data):
    """Where the real side files are, they and the stand-in say the same of the network."""
    config = yaml.safe_load((shared_data / "sensevoice_small" / "config.yaml").read_text())
    assert config["encoder_conf"] == FULL
    assert config["frontend_conf"]["n_mels"] == MELS


def test_the_engine_runs_the_stand_in(stand_in):
    """It is a model like any other to the daemon."""
    engine = TorchEngine.load(
        find_asr(str(stand_in), stand_in.parent), device="cpu", precision="float32", threads=1
    )
    rows = random_features(1, 50, 7 * MELS)
    (answer,) = engine.run([(Utterance(0, 0.0, 3.0, rows.tobytes(), *rows.shape), Options())])
    assert answer.raw


def test_what_is_kept_is_made_once(tmp_path):
    """The second call finds what the first one made."""
    made = []

    def write(folder):
        made.append(folder)
        folder.mkdir()
        (folder / "file").touch()

    assert made_once(tmp_path / "kept", write) == made_once(tmp_path / "kept", write) == tmp_path / "kept"
    assert len(made) == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "file"]


def test_what_could_not_be_made_leaves_nothing_behind(tmp_path):
    """Half a checkpoint is never taken for a whole one."""

    def fail(folder):
        folder.mkdir()
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        made_once(tmp_path / "kept", fail)
    assert list(tmp_path.iterdir()) == []
