"""Filter banks, LFR and CMVN: the arithmetic of Kaldi and FunASR, in blocks of any size."""

from itertools import pairwise

import numpy as np
import pytest
from harness.energy_vad import write_mvn
from hypothesis import given, settings
from hypothesis import strategies as st

from sensevoiced.features import FrontendSpec
from sensevoiced.frontend.fbank import Cmvn, Fbank, mel_filters, stack_frames, window


def spec(tmp_path=None, lfr_m=7, lfr_n=6):
    """Describe SenseVoice's features."""
    return FrontendSpec(
        sample_rate_hz=16000,
        window="hamming",
        n_mels=80,
        frame_length_ms=25.0,
        frame_shift_ms=10.0,
        lfr_m=lfr_m,
        lfr_n=lfr_n,
        cmvn=tmp_path,
    )


def noise(samples, seed=0):
    """Give white noise, the same each time."""
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 16000), max_size=8), samples=st.integers(0, 16000))
def test_frames_do_not_depend_on_where_blocks_are_cut(cuts, samples):
    """Any cutting into blocks gives the frames of the whole, to the rounding of one matrix product."""
    signal = noise(samples)
    whole = Fbank(spec()).accept(signal)
    fbank = Fbank(spec())
    edges = [0, *sorted(min(cut, samples) for cut in cuts), samples]
    parts = [fbank.accept(signal[a:b]) for a, b in pairwise(edges)]
    assert sum(map(len, parts)) == len(whole) == max(0, (samples - 400) // 160 + 1)
    np.testing.assert_allclose(np.concatenate([part.mel for part in parts]), whole.mel, atol=5e-5)
    np.testing.assert_allclose(np.concatenate([part.level_db for part in parts]), whole.level_db, atol=1e-4)


def test_frames_equal_the_same_arithmetic_in_float64():
    """Kaldi's steps, written out plainly in float64, give the same logarithms within 1e-3."""
    signal = noise(8000)
    scaled = signal.astype(np.float64) * 32768
    rows = []
    for start in range(0, 8000 - 399, 160):
        frame = scaled[start : start + 400]
        frame = frame - frame.mean()
        shaped = frame - 0.97 * np.concatenate(([frame[0]], frame[:-1]))
        shaped *= 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(400) / 399)
        power = np.abs(np.fft.rfft(shaped, 512)) ** 2
        rows.append(np.log(np.maximum(power @ mel_filters(80, 512, 16000), np.finfo(np.float32).eps)))
    np.testing.assert_allclose(Fbank(spec()).accept(signal).mel, np.array(rows), atol=1e-3)


def test_digital_silence_has_the_floor_of_float32_and_minus_60_db():
    """Silence gives log(eps) in every bin and -60 dB, never minus infinity."""
    frames = Fbank(spec()).accept(np.zeros(1600, np.float32))
    assert np.all(frames.mel == np.log(np.finfo(np.float32).eps))
    np.testing.assert_allclose(frames.level_db, -60.0, atol=1e-4)


@pytest.mark.parametrize("value", [1, -77, 12_345, -32_768])
def test_a_constant_leaves_nothing_in_any_bin(value):
    """A recorder's offset is taken out to the last bit: 16-bit samples of one value are silence."""
    frames = Fbank(spec()).accept(np.full(1600, value / 32768, np.float32))
    assert np.all(frames.mel == np.log(np.finfo(np.float32).eps))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 12, 13, 100])
@pytest.mark.parametrize(("lfr_m", "lfr_n"), [(7, 6), (5, 1)])
def test_stacking_repeats_the_first_and_the_last_frame(count, lfr_m, lfr_n):
    """Row k holds frames k * n - (m - 1) / 2 and on, each index held to what there is."""
    mel = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    rows = -(-count // lfr_n)
    index = np.arange(rows)[:, None] * lfr_n - (lfr_m - 1) // 2 + np.arange(lfr_m)
    expected = mel[index.clip(0, count - 1)].reshape(rows, -1)
    np.testing.assert_array_equal(stack_frames(mel, lfr_m, lfr_n), expected)


def test_no_frames_stack_to_no_rows():
    """A recording shorter than one window has no features."""
    assert stack_frames(np.zeros((0, 80), np.float32), 7, 6).shape == (0, 560)


def test_cmvn_adds_the_shift_and_then_scales(tmp_path):
    """What am.mvn holds is applied as (x + shift) * scale, into a new array."""
    write_mvn(tmp_path / "am.mvn", 4, shift=-2.0, scale=0.5)
    features = np.full((2, 4), 6.0, np.float32)
    np.testing.assert_array_equal(Cmvn.read(tmp_path / "am.mvn", 4)(features), np.full((2, 4), 2.0))
    assert np.all(features == 6.0)


def test_cmvn_of_another_width_is_refused(tmp_path):
    """A normalisation that does not fit the model is an error with both numbers."""
    write_mvn(tmp_path / "am.mvn", 4)
    with pytest.raises(ValueError, match=r"holds 4 values .* 560 columns"):
        Cmvn.read(tmp_path / "am.mvn", 560)


def test_an_unknown_window_is_refused():
    """A window Kaldi has no name for is an error that lists the known ones."""
    with pytest.raises(ValueError, match="hamming, hanning, povey, rectangular"):
        window("kaiser", 400)


@pytest.mark.funasr
@pytest.mark.parametrize("cut", [None, (3200, 40000)])
def test_features_equal_funasrs_wav_frontend(shared_data, cut):
    """Fbank of the whole, cut to a segment's frames, is what FunASR gets from the cut samples, to 1e-3."""
    pytest.importorskip("funasr")
    import soundfile
    import torch
    from funasr.frontends.wav_frontend import WavFrontend

    mvn = shared_data / "sensevoice_small" / "am.mvn"
    theirs = WavFrontend(cmvn_file=str(mvn), window="hamming", lfr_m=7, lfr_n=6, dither=0.0)
    for name in ("zh/aishell_BAC009S0724W0121.wav", "en/librivox_sense_0890.wav"):
        samples, rate = soundfile.read(shared_data / "audio" / "speech" / name, dtype="float32")
        assert rate == 16000
        first, last = cut or (0, len(samples))
        part = torch.from_numpy(samples[first:last])[None]
        expected = theirs(part, torch.tensor([part.shape[1]]))[0][0].numpy()
        mel = Fbank(spec()).accept(samples).mel
        if cut is not None:
            mel = mel[first // 160 : last // 160 - 2]
        ours = Cmvn.read(mvn, 560)(stack_frames(mel, 7, 6))
        np.testing.assert_allclose(ours, expected, atol=1e-3)
