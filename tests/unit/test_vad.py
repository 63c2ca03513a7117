"""FSMN-VAD: reading weights, the network, and the way from probabilities to segments."""

import pickle
import zipfile

import numpy as np
import pytest
import torch
from harness.energy_vad import ENCODER_CONF, MODEL_CONF, speech, weights, write_models
from hypothesis import given, settings
from hypothesis import strategies as st

from sensevoiced.frontend.checkpoint import CheckpointError, read_tensors
from sensevoiced.frontend.fbank import Cmvn, Fbank
from sensevoiced.frontend.fsmn import Filter, Fsmn
from sensevoiced.frontend.vad import Endpointer, Segment, VadOptions, VoiceDetector


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """Make a function that gives the segments of int16 samples, fed in blocks of the given sizes."""
    _, vad = write_models(tmp_path_factory.mktemp("models"))
    net = Fsmn.from_tensors(ENCODER_CONF, read_tensors(vad.weights))
    cmvn = Cmvn.read(vad.frontend.cmvn, 400)

    def segments(samples, blocks=(), **asked):
        samples = samples.astype(np.float32) / 32768
        fbank = Fbank(vad.frontend)
        voice = VoiceDetector(net, VadOptions.from_config(MODEL_CONF, asked), cmvn, lfr_m=5)
        found, at = [], 0
        for size in [*blocks, len(samples)]:
            found += voice.accept(fbank.accept(samples[at : at + size]))[0]
            at += size
        return found + voice.finish(len(samples) / 16)[0]

    return segments


def test_speech_between_silences_is_one_segment(detector):
    """A second of noise in silence is found, with FunASR's margins: up to 400 ms before and 100 ms after."""
    samples = np.concatenate((np.zeros(32000, np.int16), speech(1.0, 3.0)))
    (segment,) = detector(samples)
    assert 160 <= segment.start <= 200
    assert 300 <= segment.end <= 325


def test_silence_has_no_segment(detector):
    """Digital silence of any length gives nothing."""
    assert detector(np.zeros(100_000, np.int16)) == []


@pytest.mark.parametrize("count", [0, 1, 399, 400, 559, 560, 900])
def test_almost_no_audio_gives_no_segment(detector, count):
    """Fewer samples than a few windows are no speech, and no error."""
    assert detector(speech(1.0)[:count]) == []


def test_an_explicit_end_silence_is_kept_and_the_schedule_off(detector):
    """A pause of 1.2 s ends a segment at 800 ms, and does not under FunASR's schedule (2000 ms)."""
    samples = speech(1.0, 1.2, 1.0, 3.0)
    assert len(detector(samples, max_end_silence_time=800)) == 2
    assert len(detector(samples)) == 1


def test_the_schedule_becomes_impatient_in_the_second_minute(detector):
    """A pause of 0.5 s in speech that goes on since before 60 s ends the segment (200 ms are enough then)."""
    samples = speech(58.0, 0.5, 4.0, 0.5, 3.0)
    first, *rest = detector(samples, max_single_segment_time=300_000)
    assert first.start == 0
    assert 6250 <= first.end <= 6320
    assert len(rest) == 1


def test_a_segment_is_cut_at_the_longest_time(detector):
    """Speech without end is cut every max_single_segment_time."""
    found = detector(speech(25.0), max_single_segment_time=10_000)
    assert [segment.start for segment in found] == [0, 1001, 2002]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.floats(0.05, 5.0), min_size=1, max_size=9),
    blocks=st.lists(st.integers(1, 60_000), max_size=12),
    asked=st.sampled_from([{}, {"max_end_silence_time": 500}, {"max_single_segment_time": 3000}]),
)
def test_segments_do_not_depend_on_the_size_of_blocks(detector, lengths, blocks, asked):
    """Streaming in blocks of any size gives the segments of the whole."""
    samples = speech(*lengths)
    assert detector(samples, blocks, **asked) == detector(samples, **asked)


def test_options_come_from_the_model_unless_asked_for():
    """What is asked goes over config.yaml's; only an end silence that is asked for turns the schedule off."""
    model_conf = {
        "max_end_silence_time": 700,
        "speech_noise_thres": 0.7,
        "detect_mode": 1,
        "frame_length_ms": 25,
    }
    assert VadOptions.from_config(model_conf) == VadOptions(max_end_silence_time=700, speech_noise_thres=0.7)
    asked = VadOptions.from_config(model_conf, {"max_end_silence_time": 500})
    assert (asked.max_end_silence_time, asked.dynamic) == (500, False)


def test_an_unknown_option_is_refused():
    """A misspelt option is an error, not a silent default."""
    with pytest.raises(ValueError, match="max_end_silence"):
        VadOptions.from_config({}, {"max_end_silence": 500})


def test_the_network_equals_torch():
    """Affine, FSMN memory with history, ReLU and softmax agree with torch's on random weights."""
    conf = ENCODER_CONF | {"linear_dim": 6, "proj_dim": 3, "fsmn_layers": 2, "output_dim": 5}
    generator = torch.Generator().manual_seed(1)

    def rand(*shape):
        return torch.randn(shape, generator=generator) * 0.5

    state = {}
    for name, out, dim in (
        ("in_linear1", 2, 400),
        ("in_linear2", 6, 2),
        ("fsmn.0.affine", 6, 3),
        ("fsmn.1.affine", 6, 3),
        ("out_linear1", 2, 6),
        ("out_linear2", 5, 2),
    ):
        state[f"encoder.{name}.linear.weight"], state[f"encoder.{name}.linear.bias"] = (
            rand(out, dim),
            rand(out),
        )
    for layer in range(2):
        state[f"encoder.fsmn.{layer}.linear.linear.weight"] = rand(3, 6)
        state[f"encoder.fsmn.{layer}.fsmn_block.conv_left.weight"] = rand(3, 1, 4, 1)
    x = rand(50, 400)

    def affine(name, value):
        return value @ state[f"encoder.{name}.linear.weight"].T + state[f"encoder.{name}.linear.bias"]

    y = torch.relu(affine("in_linear2", affine("in_linear1", x)))
    for layer in range(2):
        projected = y @ state[f"encoder.fsmn.{layer}.linear.linear.weight"].T
        taps = state[f"encoder.fsmn.{layer}.fsmn_block.conv_left.weight"][:, :, :, 0]
        padded = torch.nn.functional.pad(projected.T[None], (3, 0))
        remembered = torch.nn.functional.conv1d(padded, taps, groups=3)[0].T
        y = torch.relu(affine(f"fsmn.{layer}.affine", projected + remembered))
    expected = torch.softmax(affine("out_linear2", affine("out_linear1", y)), -1)[:, [0, 3]].sum(-1)

    net = Fsmn.from_tensors(conf, {name: value.numpy() for name, value in state.items()})
    memory = net.start()
    halves = [net.probability(part, (0, 3), memory) for part in (x[:13].numpy(), x[13:].numpy())]
    np.testing.assert_allclose(np.concatenate(halves), expected.numpy(), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 100), cut=st.integers(0, 100), stride=st.integers(1, 3))
def test_the_filter_sums_each_frame_and_those_before_it(count, cut, stride):
    """Any number of frames and any stride give the plain sums, the same bits however they are cut."""
    rng = np.random.default_rng(count)
    taps = rng.normal(size=(5, 6)).astype(np.float32)
    each = Filter.of(taps, stride)
    padded = rng.normal(size=(each.history + count, 6)).astype(np.float32)
    found = each(padded)
    expected = sum(padded[tap * stride : tap * stride + count] * taps[tap] for tap in range(5))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    cut = min(cut, count)
    parts = [each(padded[: each.history + cut]), each(padded[cut:])]
    np.testing.assert_array_equal(np.concatenate(parts), found)


def test_weights_that_do_not_fit_the_config_are_refused():
    """A missing or misshapen tensor is named."""
    tensors = {name: value.numpy() for name, value in weights().items()}
    with pytest.raises(ValueError, match=r"in_linear1\.linear\.weight should be \(3, 400\)"):
        Fsmn.from_tensors(ENCODER_CONF | {"input_affine_dim": 3}, tensors)


def test_a_torch_checkpoint_is_read_without_torch(tmp_path):
    """Tensors of every kind come back equal: views, other types, parameters, a wrapped state dict."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    saved = {
        "view": base[1:3, ::2],
        "transposed": base.T,
        "half": base.half(),
        "long": torch.arange(3),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(base),
    }
    torch.save({"state_dict": saved, "epoch": 3}, tmp_path / "model.pt")
    read = read_tensors(tmp_path / "model.pt")
    assert read.keys() == saved.keys()
    for name, value in saved.items():
        np.testing.assert_array_equal(read[name], value.detach().numpy())


def test_a_checkpoint_that_wants_to_run_code_is_refused(tmp_path):
    """A pickle that names a function is refused, and the function is not called."""

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"x": Evil()}, protocol=2))
    with pytest.raises(CheckpointError, match=r"io\.open|open"):
        read_tensors(tmp_path / "model.pt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"garbage" * 100])
def test_what_is_no_checkpoint_is_refused_with_a_sentence(tmp_path, content):
    """Other files give CheckpointError, which names the file."""
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.pt is not"):
        read_tensors(tmp_path / "model.pt")


def test_levels_below_the_threshold_are_never_speech():
    """decibel_thres and snr_thres silence a frame that the network takes for speech."""
    speaking = np.zeros(300)
    loud, quiet = np.full(300, 20.0, np.float32), np.full(300, -40.0, np.float32)
    options = VadOptions(decibel_thres=-30.0)

    def found(levels):
        endpoint = Endpointer(options)
        return endpoint.advance(speaking, levels, final=True) + endpoint.close_last()

    assert found(loud) == [Segment(0, 300)]
    assert found(quiet) == []
