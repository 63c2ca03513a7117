"""A front end for tests: an FSMN-VAD whose weights simply compare the mean log-mel with a threshold.

So tests know where segments begin and end, and need neither real weights nor the demo model. The layers are
those of the real network, small; the memory filters are zero, and a layer's skip connection carries the value
through.
"""

import numpy as np
import torch
import yaml

from sensevoiced.features import FrontendSpec
from sensevoiced.models import AsrModel, VadModel

THRESHOLD = 10.0
"""Mean log-mel above which a frame is speech: noise of amplitude 0.1 has about 17, digital silence -16."""
MODEL_CONF = {
    "max_end_silence_time": 800,
    "window_size_ms": 200,
    "sil_to_speech_time_thres": 150,
    "speech_to_sil_time_thres": 150,
    "lookback_time_start_point": 200,
    "lookahead_time_end_point": 100,
    "max_single_segment_time": 60000,
    "speech_noise_thres": 0.6,
    "sil_pdf_ids": [0],
}
ENCODER_CONF = {
    "input_dim": 400,
    "input_affine_dim": 2,
    "fsmn_layers": 1,
    "linear_dim": 2,
    "proj_dim": 2,
    "lorder": 4,
    "rorder": 0,
    "lstride": 1,
    "rstride": 0,
    "output_affine_dim": 2,
    "output_dim": 2,
}


def write_mvn(path, dim, shift=0.0, scale=1.0):
    """Write Kaldi's nnet1 text form of a normalisation that is the same for every column."""
    path.write_text(
        f"<Nnet>\n<Splice> {dim} {dim}\n[ 0 ]\n"
        f"<AddShift> {dim} {dim}\n<LearnRateCoef> 0 [ {' '.join([str(shift)] * dim)} ]\n"
        f"<Rescale> {dim} {dim}\n<LearnRateCoef> 0 [ {' '.join([str(scale)] * dim)} ]\n</Nnet>\n"
    )


def weights():
    """Give the state dict of the comparing network."""
    identity = torch.eye(2)
    mean = torch.full((1, 400), 1 / 400)
    return {
        "encoder.in_linear1.linear.weight": torch.cat((mean, -mean)),
        "encoder.in_linear1.linear.bias": torch.zeros(2),
        "encoder.in_linear2.linear.weight": identity,
        "encoder.in_linear2.linear.bias": torch.zeros(2),
        "encoder.fsmn.0.linear.linear.weight": identity,
        "encoder.fsmn.0.fsmn_block.conv_left.weight": torch.zeros(2, 1, 4, 1),
        "encoder.fsmn.0.affine.linear.weight": identity,
        "encoder.fsmn.0.affine.linear.bias": torch.zeros(2),
        "encoder.out_linear1.linear.weight": identity,
        "encoder.out_linear1.linear.bias": torch.zeros(2),
        "encoder.out_linear2.linear.weight": torch.tensor([[-4.0, 4.0], [0.0, 0.0]]),
        "encoder.out_linear2.linear.bias": torch.zeros(2),
    }


def write_models(folder):
    """Write both models below `folder` and describe them as the daemon would: (AsrModel, VadModel)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_mvn(folder / "asr.mvn", 560)
    write_mvn(folder / "vad.mvn", 400, shift=-THRESHOLD)
    torch.save(weights(), folder / "vad.pt")
    common = {"sample_rate_hz": 16000, "window": "hamming", "n_mels": 80}
    common |= {"frame_length_ms": 25.0, "frame_shift_ms": 10.0}
    config = {"model": "FsmnVADStreaming", "model_conf": MODEL_CONF, "encoder_conf": ENCODER_CONF}
    (folder / "vad.yaml").write_text(yaml.safe_dump(config))
    asr = AsrModel(
        name="tiny",
        path=folder,
        weights=folder / "absent.pt",
        tokenizer=folder / "absent.model",
        frontend=FrontendSpec(**common, lfr_m=7, lfr_n=6, cmvn=folder / "asr.mvn"),
        config={},
    )
    vad = VadModel(
        name="energy",
        path=folder,
        weights=folder / "vad.pt",
        frontend=FrontendSpec(**common, lfr_m=5, lfr_n=1, cmvn=folder / "vad.mvn"),
        config=config,
    )
    return asr, vad


def speech(*parts, seed=0):
    """Make noise and silence in turn, as int16: lengths in seconds, the first one noise."""
    rng = np.random.default_rng(seed)
    pieces = [
        rng.normal(0, 3000 if index % 2 == 0 else 0, round(seconds * 16000)).clip(-32768, 32767)
        for index, seconds in enumerate(parts)
    ]
    return np.concatenate(pieces).astype(np.int16)
