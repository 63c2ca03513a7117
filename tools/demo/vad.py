"""Owns the demo VAD: a small FSMN trained on the corpus's activity labels, saved in FunASR's FSMN-VAD layout.

Speech and audio events count as sound: events must reach the recogniser to be tagged. Noise alone is silence.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor, nn

from demo.dataset import read
from demo.features import MELS, VAD_LFR_M, VAD_LFR_N, read_cmvn, stack, write_cmvn
from demo.package import RECOGNITION_FRONTEND, write_configuration, write_yaml

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CLIPS = 4000
STEPS, BATCH, CROP = 1500, 24, 400  # crops of 4 s, in frames of 10 ms
PEAK_RATE = 2e-3
SMOOTHING = 0.02  # keeps both probabilities away from 0, where FunASR's logarithm would fail
SILENCE, SOUND = 0, 1
DELAY = 3  # frames by which labels lag: the network may look back only, so it decides a little late


@dataclass(frozen=True, slots=True)
class VadShape:
    """Sizes, under FunASR's names (encoder_conf)."""

    input_dim: int = MELS * VAD_LFR_M
    input_affine_dim: int = 64
    fsmn_layers: int = 3
    linear_dim: int = 96
    proj_dim: int = 48
    lorder: int = 20
    rorder: int = 0
    lstride: int = 1
    rstride: int = 0
    output_affine_dim: int = 64
    output_dim: int = 2


class Wrapped(nn.Module):
    """A linear layer one level down, where FunASR's names have it."""

    def __init__(self, size_in: int, size_out: int, *, bias: bool = True) -> None:
        """Make the parts."""
        super().__init__()
        self.linear = nn.Linear(size_in, size_out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., size_in] -> [..., size_out]."""
        return self.linear(x)


class Memory(nn.Module):
    """The memory of an FSMN layer: each channel plus a weighted sum of its own past."""

    def __init__(self, shape: VadShape) -> None:
        """Make the parts."""
        super().__init__()
        self.conv_left = nn.Conv2d(
            shape.proj_dim, shape.proj_dim, (shape.lorder, 1), groups=shape.proj_dim, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, proj_dim] -> the same."""
        past = F.pad(x.transpose(1, 2), (self.conv_left.kernel_size[0] - 1, 0))
        return x + F.conv1d(past, self.conv_left.weight.squeeze(-1), groups=x.shape[2]).transpose(1, 2)


class Layer(nn.Module):
    """Projection, memory, affine, ReLU."""

    def __init__(self, shape: VadShape) -> None:
        """Make the parts."""
        super().__init__()
        self.linear = Wrapped(shape.linear_dim, shape.proj_dim, bias=False)
        self.fsmn_block = Memory(shape)
        self.affine = Wrapped(shape.proj_dim, shape.linear_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, linear_dim] -> the same."""
        return F.relu(self.affine(self.fsmn_block(self.linear(x))))


class Fsmn(nn.Module):
    """The network; module names are FunASR's."""

    def __init__(self, shape: VadShape) -> None:
        """Make the parts."""
        super().__init__()
        self.in_linear1 = Wrapped(shape.input_dim, shape.input_affine_dim)
        self.in_linear2 = Wrapped(shape.input_affine_dim, shape.linear_dim)
        self.fsmn = nn.ModuleList([Layer(shape) for _ in range(shape.fsmn_layers)])
        self.out_linear1 = Wrapped(shape.linear_dim, shape.output_affine_dim)
        self.out_linear2 = Wrapped(shape.output_affine_dim, shape.output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, 400] after CMVN -> logits [B, T, output_dim]; column 0 is silence."""
        x = F.relu(self.in_linear2(self.in_linear1(x)))
        for layer in self.fsmn:
            x = layer(x)
        return self.out_linear2(self.out_linear1(x))


def _stream(
    work: Path, name: str, clips: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Many clips as one long recording, levels varied: fbank frames, and whether something sounds."""
    items = list(islice(read(work, name), clips))
    blocks = [item.fbank.astype(np.float32) + np.float32(rng.normal(0, 1.0)) for item in items]
    return np.concatenate(blocks), np.concatenate([item.active for item in items]).astype(np.int64)


def _say(message: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} vad: {message}\n")
    sys.stdout.flush()


def train_vad(work: Path, out: Path, seed: int) -> None:
    """Train for a few minutes on one core and write the folder `out` (FunASR's layout)."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)
    mels, sound = _stream(work, "train", CLIPS, rng)
    mean, std = (np.tile(v, VAD_LFR_M).astype(np.float32) for v in (mels.mean(0), mels.std(0)))
    write_cmvn(out / "am.mvn", mean, std)
    shift, scale = read_cmvn(out / "am.mvn")
    shape = VadShape()
    model = Fsmn(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=STEPS)
    for step in range(STEPS):
        starts = rng.integers(0, len(mels) - CROP, BATCH)
        x = np.stack([(stack(mels[s : s + CROP], VAD_LFR_M, VAD_LFR_N) + shift) * scale for s in starts])
        y = np.stack([np.concatenate([np.full(DELAY, -1), sound[s : s + CROP - DELAY]]) for s in starts])
        logits = model(torch.from_numpy(x))
        loss = F.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(y).flatten(), ignore_index=-1, label_smoothing=SMOOTHING
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            _say(f"step {step + 1} of {STEPS}, loss {loss.item():.4f}")
    _save(model, shape, out)
    _say(_score(model.eval(), work, shift, scale, rng))


def _score(
    model: Fsmn, work: Path, shift: NDArray[np.float32], scale: NDArray[np.float32], rng: np.random.Generator
) -> str:
    mels, sound = _stream(work, "development", 300, rng)
    with torch.inference_mode():
        heard = (
            model(torch.from_numpy((stack(mels, VAD_LFR_M, VAD_LFR_N) + shift) * scale)[None])[0]
            .argmax(-1)
            .numpy()
        )
    truth = np.concatenate([np.zeros(DELAY, np.int64), sound[:-DELAY]])
    hit, false = (heard[truth == SOUND] == SOUND).mean(), (heard[truth == SILENCE] == SOUND).mean()
    return f"development: {100 * hit:.1f} % of sound found, {100 * false:.1f} % of silence taken for sound"


def _save(model: Fsmn, shape: VadShape, out: Path) -> None:
    torch.save(
        {f"encoder.{name}": value.detach() for name, value in model.state_dict().items()}, out / "model.pt"
    )
    options = {
        "sample_rate": 16000, "detect_mode": 1, "snr_mode": 0, "max_end_silence_time": 800,
        "max_start_silence_time": 3000, "do_start_point_detection": True, "do_end_point_detection": True,
        "window_size_ms": 200, "sil_to_speech_time_thres": 150, "speech_to_sil_time_thres": 150,
        "speech_2_noise_ratio": 1.0, "do_extend": 1, "lookback_time_start_point": 200,
        "lookahead_time_end_point": 100, "max_single_segment_time": 60000, "snr_thres": -100.0,
        "noise_frame_num_used_for_snr": 100, "decibel_thres": -100.0, "speech_noise_thres": 0.6,
        "fe_prior_thres": 0.0001, "silence_pdf_num": 1, "sil_pdf_ids": [SILENCE],
        "speech_noise_thresh_low": -0.1, "speech_noise_thresh_high": 0.3, "output_frame_probs": False,
        "frame_in_ms": 10, "frame_length_ms": 25,
    }  # fmt: skip
    content: dict[str, object] = {
        "frontend": "WavFrontendOnline",
        "frontend_conf": RECOGNITION_FRONTEND | {"lfr_m": VAD_LFR_M, "lfr_n": VAD_LFR_N},
        "model": "FsmnVADStreaming",
        "model_conf": options,
        "encoder": "FSMN",
        "encoder_conf": asdict(shape),
    }
    write_yaml(
        out / "config.yaml",
        "The demo VAD: FSMN-VAD's architecture at toy size, its options as FunASR ships them.",
        content,
    )
    write_configuration(out, "voice-activity-detection", {"frontend_conf": {"cmvn_file": "am.mvn"}})
