"""FunASR is the oracle: on the same weights and features our engine says what it says, token for token."""

from __future__ import annotations

import logging
import random
from itertools import groupby

import pytest
import torch
from harness.random_checkpoint import random_features, write_full, write_tiny

from sensevoiced.config import ConfigError
from sensevoiced.engine.funasr import FunasrEngine
from sensevoiced.engine.sensevoice import TorchEngine
from sensevoiced.jobs import Options, Utterance
from sensevoiced.models import find_asr

pytestmark = pytest.mark.funasr

LENGTHS = (40, 3, 120, 1, 77, 300, 12, 64)
CONFS = {
    "like the published one": {},
    "another kernel and shift": {"kernel_size": 7, "sanm_shfit": 1, "output_size": 48, "attention_heads": 3},
    "as wide as its features": {"output_size": 56, "num_blocks": 1, "tp_blocks": 1},
}


class Oracle:
    """funasr.AutoModel itself, asked through generate(); a hook notes the best id of every frame."""

    def __init__(self, folder):
        pytest.importorskip("funasr")
        from funasr import AutoModel

        self.model = AutoModel(
            model=str(folder),
            device="cpu",
            disable_update=True,
            disable_pbar=True,
            ncpu=torch.get_num_threads(),
        )

    def ask(self, features, *, language, itn):
        """Give FunASR's texts, and the best ids of all frames, for one padded batch."""
        seen = []
        hook = self.model.model.ctc.ctc_lo.register_forward_hook(lambda _m, _i, out: seen.append(out))
        answers = self.model.generate(
            input=torch.nn.utils.rnn.pad_sequence(features, batch_first=True),
            input_len=torch.tensor([len(rows) for rows in features]),
            data_type="fbank",
            language=language,
            use_itn=itn,
        )
        hook.remove()
        best = seen[0].detach().log_softmax(-1).argmax(-1).tolist()
        ids = [row[: 4 + len(rows)] for row, rows in zip(best, features, strict=True)]
        return [answer["text"] for answer in answers], ids


@pytest.fixture(scope="module", params=CONFS, ids=str)
def folder(request, tmp_path_factory):
    """A model folder of random weights, of each kind."""
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny", conf=CONFS[request.param])


@pytest.fixture(scope="module")
def oracle(folder):
    """FunASR on the same folder."""
    return Oracle(folder)


def load(kind, folder, precision="auto", threads=1):
    """Load one of our engines on the folder."""
    return kind.load(find_asr(str(folder), folder.parent), device="cpu", precision=precision, threads=threads)


def batch_of(count, dim=56, **options):
    """Make utterances of different lengths with equal options."""
    works = []
    for i in range(count):
        frames = LENGTHS[i % len(LENGTHS)]
        features = random_features(100 + i, frames, dim).tobytes()
        works.append((Utterance(i, 0.0, frames * 0.06, features, frames, dim), Options(**options)))
    return works


def rows(batch):
    """Give the features of a batch as FunASR takes them."""
    return [
        torch.frombuffer(bytearray(u.features), dtype=torch.float32).view(u.frames, u.dim) for u, _ in batch
    ]


def in_batches(batch, size):
    """Divide a batch."""
    return [batch[i : i + size] for i in range(0, len(batch), size)]


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize(("language", "itn"), [("auto", True), ("ko", False)])
def test_our_engine_says_what_automodel_says(folder, oracle, size, language, itn):
    """In batches of 1 and of 8: the same best id on every frame, so the same raw text."""
    engine = load(TorchEngine, folder)
    for batch in in_batches(batch_of(16, language=language, itn=itn), size):
        texts, ids = oracle.ask(rows(batch), language=language, itn=itn)
        assert [path.ids for path in engine._paths(batch)] == ids
        assert [result.raw for result in engine.run(batch)] == texts


def test_the_reference_engine_is_the_same_service(folder, oracle):
    """For mixed options the reference gives FunASR's raw text, and the tags, words and scores ours gives."""
    reference, ours = load(FunasrEngine, folder), load(TorchEngine, folder)
    reference.warm_up()
    batch = [
        one
        for language, itn in (("auto", True), ("zh", False), ("yue", True))
        for one in batch_of(3, language=language, itn=itn)
    ]
    random.Random(1).shuffle(batch)
    for (utterance, options), expected, found in zip(
        batch, ours.run(batch), reference.run(batch), strict=True
    ):
        texts, _ = oracle.ask(rows([(utterance, options)]), language=options.language, itn=options.itn)
        assert found.raw == texts[0]
        assert (found.raw, found.text, found.words) == (expected.raw, expected.text, expected.words)
        assert (found.language, found.emotion, found.event, found.itn) == (
            expected.language,
            expected.emotion,
            expected.event,
            expected.itn,
        )
        assert found.language_score == pytest.approx(expected.language_score, abs=1e-3)
        assert found.event_score == pytest.approx(expected.event_score, abs=1e-3)
    reference.close()


def test_funasr_leaves_no_marks_on_the_process(folder, oracle, capsys):
    """The reference keeps root logger, random numbers, threads and stdout as they were."""
    root = logging.getLogger()
    torch.set_num_threads(1)
    random.seed(7)
    torch.manual_seed(7)
    before = (list(root.handlers), root.level, random.getstate(), torch.random.get_rng_state().tolist())
    reference = load(FunasrEngine, folder)
    reference.run(batch_of(2))
    after = (list(root.handlers), root.level, random.getstate(), torch.random.get_rng_state().tolist())
    assert after == before
    assert torch.get_num_threads() == 1
    assert capsys.readouterr().out == ""


def test_the_reference_engine_refuses_what_it_would_do_silently_wrong(tmp_path):
    """Missing weights, which FunASR would replace by random ones, and another precision are sentences."""
    folder = write_tiny(tmp_path / "tiny")
    with pytest.raises(ConfigError, match="runs in float32: choose precision auto, not bfloat16"):
        load(FunasrEngine, folder, precision="bfloat16")
    state = torch.load(folder / "model.pt", weights_only=True)
    del state["encoder.tp_norm.weight"]
    torch.save(state, folder / "model.pt")
    with pytest.raises(ConfigError, match=r"it lacks encoder\.tp_norm\.weight"):
        load(FunasrEngine, folder)


@pytest.mark.slow
def test_parity_at_the_published_size(shared_data, tmp_path):
    """On 936 MB of random weights at least 99.9 % of tokens are FunASR's, in batches of 1 and of 8."""
    folder = write_full(tmp_path / "full", shared_data / "sensevoice_small")
    # One thread: beside other work on the machine, two that wait for each other are slower than one.
    engine, oracle = load(TorchEngine, folder), Oracle(folder)
    same = total = 0
    for size in (1, 8):
        for batch in in_batches(batch_of(16, dim=560), size):
            _, expected = oracle.ask(rows(batch), language="auto", itn=True)
            for path, ids in zip(engine._paths(batch), expected, strict=True):
                ours, theirs = ([token for token, _ in groupby(i) if token] for i in (path.ids, ids))
                total += max(len(ours), len(theirs))
                same += sum(a == b for a, b in zip(ours, theirs, strict=False))
        print(f"up to batches of {size}: {same} of {total} tokens equal")
    assert total > 1_000
    assert same >= 0.999 * total
