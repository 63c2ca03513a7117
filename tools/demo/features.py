"""Owns the features of training and evaluation: kaldi-compatible fbank, LFR and CMVN as in FunASR.

Never imports torch. Kept apart from the product's own front end so that one can be checked against the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import kaldi_native_fbank as knf
import numpy as np
from numpy.typing import NDArray

from demo.espeak import FULL_SCALE, SAMPLE_RATE, Samples

if TYPE_CHECKING:
    from pathlib import Path

MELS = 80
LFR_M, LFR_N = 7, 6  # recognition
VAD_LFR_M, VAD_LFR_N = 5, 1

Array = NDArray[np.float32]


def fbank(samples: Samples) -> Array:
    """80-mel log filter banks: [frames, 80], 25 ms hamming windows every 10 ms, no dither, edges snipped."""
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = SAMPLE_RATE
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "hamming"
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = MELS
    options.energy_floor = 0.0
    extractor = knf.OnlineFbank(options)
    extractor.accept_waveform(SAMPLE_RATE, (samples * FULL_SCALE).tolist())
    extractor.input_finished()
    count = extractor.num_frames_ready
    if count == 0:
        return np.zeros((0, MELS), dtype=np.float32)
    return np.stack([extractor.get_frame(i) for i in range(count)])


def stack(frames: Array, m: int = LFR_M, n: int = LFR_N) -> Array:
    """LFR: output row i holds frames i*n - (m-1)/2 ... with the first and last frame repeated at the edges.

    Returns:
        [ceil(frames / n), m * 80].
    """
    count = -(-len(frames) // n)
    rows = np.arange(count)[:, None] * n + np.arange(m)[None, :] - (m - 1) // 2
    return frames[np.clip(rows, 0, len(frames) - 1)].reshape(count, m * frames.shape[1])


def write_cmvn(path: Path, mean: Array, std: Array) -> None:
    """Write am.mvn in the Kaldi nnet text form that FunASR reads: shift = -mean, scale = 1 / std."""
    size = len(mean)
    shift, scale = (" ".join(f"{v:.6f}" for v in values) for values in (-mean, 1.0 / std))
    path.write_text(
        f"<Nnet> \n<Splice> {size} {size}\n[ 0 ]\n<AddShift> {size} {size} \n<LearnRateCoef> 0 [ {shift} ]\n"
        f"<Rescale> {size} {size} \n<LearnRateCoef> 0 [ {scale} ]\n</Nnet> \n",
        encoding="utf-8",
    )


def read_cmvn(path: Path) -> tuple[Array, Array]:
    """Read shift and scale back from am.mvn."""
    rows = [
        line.split()[3:-1]
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("<LearnRateCoef>")
    ]
    shift, scale = (np.array(row, dtype=np.float32) for row in rows)
    return shift, scale
