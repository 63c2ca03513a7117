"""The demo checkpoint means in FunASR what it means here: 60 clips, waveform to tokens, on both sides."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from sensevoiced.engine.sensevoice import TorchEngine
from sensevoiced.frontend.fbank import Cmvn, Fbank, stack_frames
from sensevoiced.jobs import SAMPLE_RATE_HZ, Options, Utterance
from sensevoiced.models import DEMO_DIR, find_asr

pytestmark = pytest.mark.funasr

CLIPS = 60
SHORTEST_S, LONGEST_S = 1.0, 9.0


@pytest.fixture(scope="module")
def clips():
    """Give 60 stretches of the shipped samples, 1 to 9 s, at places that a fixed seed names."""
    samples = [soundfile.read(path, dtype="float32")[0] for path in sorted(DEMO_DIR.glob("samples/*.flac"))]
    rng = np.random.default_rng(60)
    cut = []
    for i in range(CLIPS):
        whole = samples[i % len(samples)]
        length = min(len(whole), int(rng.uniform(SHORTEST_S, LONGEST_S) * SAMPLE_RATE_HZ))
        start = int(rng.integers(0, len(whole) - length + 1))
        cut.append(whole[start : start + length])
    return cut


@pytest.fixture(scope="module")
def automodel():
    """Give funasr.AutoModel on the shipped folder, with what it says of the checkpoint while it loads."""
    pytest.importorskip("funasr")
    from funasr import AutoModel

    model = AutoModel(model=str(DEMO_DIR), device="cpu", disable_update=True, disable_pbar=True, ncpu=1)
    model.kwargs["frontend"].dither = 0.0
    return model


@pytest.fixture(scope="module")
def ours(clips, tmp_path_factory):
    """Give our engine on the same folder, and the clips as its front end hands them over."""
    model = find_asr("demo", tmp_path_factory.mktemp("none"))
    cmvn = Cmvn.read(model.frontend.cmvn, model.frontend.dim)
    works = []
    for i, clip in enumerate(clips):
        mel = Fbank(model.frontend).accept(clip).mel
        features = cmvn(stack_frames(mel, model.frontend.lfr_m, model.frontend.lfr_n))
        utterance = Utterance(
            i, 0.0, len(clip) / SAMPLE_RATE_HZ, features.tobytes(), len(features), features.shape[1]
        )
        works.append((utterance, Options(itn=i % 2 == 0)))
    return TorchEngine.load(model, device="cpu", precision="float32", threads=1), works


def test_every_weight_of_the_checkpoint_is_funasrs(automodel):
    """FunASR's network takes every tensor of the file under its name and shape, and lacks none."""
    stored = torch.load(DEMO_DIR / "model.pt", map_location="cpu", weights_only=True)
    state = automodel.model.state_dict()
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        name: tensor.shape for name, tensor in state.items()
    }
    for name, tensor in stored.items():
        assert torch.equal(state[name], tensor.float()), name


@pytest.mark.parametrize("size", [1, 8])
def test_sixty_clips_give_funasrs_text(automodel, ours, clips, size):
    """From the waveform on, in batches of 1 and of 8: the raw text, tags and all, is FunASR's."""
    engine, works = ours
    expected, found = [], []
    for itn in (True, False):
        mine = [i for i, (_, options) in enumerate(works) if options.itn == itn]
        for at in range(0, len(mine), size):
            group = mine[at : at + size]
            answers = automodel.generate(
                input=[torch.from_numpy(clips[i]) for i in group],
                fs=SAMPLE_RATE_HZ,
                language="auto",
                use_itn=itn,
                batch_size=size,
            )
            expected += [answer["text"] for answer in answers]
            found += [result.raw for result in engine.run([works[i] for i in group])]
    assert len(found) == CLIPS
    assert found == expected
    # Not vacuous: most clips say something, and no two clips say the same by default.
    assert len(set(found)) > CLIPS // 2
