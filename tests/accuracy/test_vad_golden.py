"""FSMN-VAD has FunASR's segments: real weights by a golden table, real and demo weights side by side."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from sensevoiced.config import FrontendConfig
from sensevoiced.frontend.audio import Recording
from sensevoiced.frontend.checkpoint import read_tensors
from sensevoiced.frontend.fbank import Cmvn, Fbank
from sensevoiced.frontend.fsmn import Fsmn
from sensevoiced.frontend.vad import VadOptions, VoiceDetector
from sensevoiced.models import DEMO_DIR, find_vad

TOLERANCE_MS = 10
HEADERLESS = (".raw", ".pcm")
"""16-bit samples without a header, at 16 kHz by their makers' word: the product cannot know that."""
SIDE_BY_SIDE = (
    "speech/zh/aishell_BAC009S0724W0121.wav",
    "speech/zh/cosyvoice_zero_shot_prompt.wav",
    "speech/en/cmu_chan3.sph",
    "speech/en/gcp_commercial_8k.wav",
    "speech/en/gcp_google_gnome_video.wav",
    "speech/en/picovoice_3speakers_en.wav",
    "speech/ja/watson_ja-JP_Broadband_sample2.wav",
    "speech/ko/watson_ko-KR_NarrowbandModel_sample1.wav",
    "events/lets_go_fishin_song.ogg",
    "events/sugar_plum_music.ogg",
)


def decode(path):
    """Decode a recording as the product does: 16 kHz mono, float32 on the 16-bit grid."""
    if path.suffix in HEADERLESS:
        return np.fromfile(path, "<i2").astype(np.float32) / 32768
    fd = os.open(path, os.O_RDONLY)
    try:
        return np.concatenate(list(Recording(fd, FrontendConfig()).blocks()))
    finally:
        os.close(fd)


def segmenter(folder):
    """Make a function from samples to segments in ms, with the weights in a folder."""
    vad = find_vad(str(folder), Path("/nonexistent"), beside=None)
    net = Fsmn.from_tensors(vad.config["encoder_conf"], read_tensors(vad.weights))
    cmvn = Cmvn.read(vad.frontend.cmvn, vad.frontend.dim)

    def run(samples, block=48_000, **asked):
        fbank = Fbank(vad.frontend)
        voice = VoiceDetector(net, VadOptions.from_config(vad.config["model_conf"], asked), cmvn, lfr_m=5)
        found = []
        for at in range(0, len(samples), block):
            found += voice.accept(fbank.accept(samples[at : at + block]))[0]
        found += voice.finish(len(samples) / 16)[0]
        return [[segment.start * 10, segment.end * 10] for segment in found]

    return run


def funasr_segmenter(folder):
    """Make the same function of FunASR's own."""
    funasr = pytest.importorskip("funasr")
    model = funasr.AutoModel(model=str(folder), device="cpu", disable_update=True, disable_pbar=True)

    def run(samples, **asked):
        (result,) = model.generate(input=samples.copy(), **asked)
        return result["value"]

    return run


@pytest.fixture(scope="module")
def segments(shared_data):
    """Ours, with the real weights."""
    return segmenter(shared_data / "fsmn_vad")


@pytest.fixture(scope="module")
def funasr_segments(shared_data):
    """FunASR's, with the real weights."""
    return funasr_segmenter(shared_data / "fsmn_vad")


def test_every_recording_of_the_golden_table_has_funasrs_segments(shared_data, segments):
    """Decoded by the product itself, each recording gives FunASR 1.4.16's segments within 10 ms."""
    table = (shared_data / "golden" / "fsmn_vad_funasr-1.4.16.tsv").read_text().splitlines()[1:]
    wrong = {}
    checked = 0
    for line in table:
        name, _, golden = line.split("\t")
        if not golden.startswith("["):
            continue
        expected, actual = json.loads(golden), segments(decode(shared_data / name))
        checked += 1
        same = len(expected) == len(actual) and np.allclose(expected, actual, rtol=0, atol=TOLERANCE_MS)
        if not same:
            wrong[name] = (expected, actual)
    assert checked >= 90
    assert wrong == {}


@pytest.mark.parametrize("block", [1600, 7777, 320_000])
def test_real_segments_do_not_depend_on_the_size_of_blocks(shared_data, segments, block):
    """Two minutes of a song, in blocks of 0.1 to 20 s, give the same segments."""
    samples = decode(shared_data / "audio" / "events" / "lets_go_fishin_song.ogg")
    assert segments(samples, block) == segments(samples)


@pytest.mark.funasr
@pytest.mark.parametrize("end_silence", [800, 500])
def test_an_explicit_end_silence_gives_funasrs_segments(shared_data, segments, funasr_segments, end_silence):
    """With max_end_silence_time asked for, ten recordings give exactly FunASR's segments."""
    for name in SIDE_BY_SIDE:
        samples = decode(shared_data / "audio" / name)
        expected = funasr_segments(samples, max_end_silence_time=end_silence)
        assert (name, segments(samples, max_end_silence_time=end_silence)) == (name, expected)


@pytest.mark.funasr
def test_the_schedule_gives_funasrs_segments_over_minutes(shared_data, funasr_segments, segments):
    """Minutes of speech with few pauses take the schedule through its states and end where FunASR's do."""
    parts = [decode(shared_data / "audio" / name) for name in SIDE_BY_SIDE]
    dense = np.concatenate([np.tile(parts[4], 4), np.tile(parts[3][40_000:], 3), parts[5], parts[8]])
    exact_minutes = np.tile(parts[4], 5)[: 16_000 * 240]
    for samples in (dense, exact_minutes, exact_minutes[:-1], exact_minutes[: 16_000 * 60]):
        assert segments(samples) == funasr_segments(samples)


@pytest.mark.funasr
def test_the_demo_weights_give_funasrs_segments():
    """The shipped clips, alone and all in a row, under the schedule and under explicit end silences."""
    ours, theirs = segmenter(DEMO_DIR / "vad"), funasr_segmenter(DEMO_DIR / "vad")
    clips = [decode(path) for path in sorted(DEMO_DIR.glob("samples/*.flac"))]
    clips.append(np.concatenate(clips))
    for asked in ({}, {"max_end_silence_time": 800}, {"max_end_silence_time": 500}):
        for samples in clips:
            expected = theirs(samples, **asked)
            assert expected
            assert ours(samples, **asked) == expected
