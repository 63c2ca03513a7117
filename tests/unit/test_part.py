"""Parts of a recording: its channels told apart or chosen, and a stretch of its time."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from harness.wire_client import memfd

from sensevoiced.config import FrontendConfig
from sensevoiced.frontend.audio import Recording
from sensevoiced.frontend.part import Part
from sensevoiced.jobs import JobError

RATE_HZ = 16_000
LEFT, RIGHT = 0.25, -0.5


def stereo(seconds, rate=RATE_HZ):
    """A descriptor of a WAV whose channels hold one value each, and count up in time on the left."""
    count = round(seconds * rate)
    ramp = np.arange(count) / count * LEFT
    held = io.BytesIO()
    soundfile.write(held, np.stack([ramp, np.full(count, RIGHT)], axis=1), rate, format="WAV")
    return memfd(held.getvalue())


def tracks(fd, **part):
    """All of each track, and the recording."""
    recording = Recording(fd, FrontendConfig(), part=Part(**part))
    blocks = list(recording.tracks())
    assert all(len({one.size for one in block}) == 1 for block in blocks)
    return [np.concatenate(track) for track in zip(*blocks, strict=True)], recording


def test_channels_are_averaged_unless_told():
    """One track, the mean of both."""
    (mix,), _ = tracks(stereo(0.5))
    assert mix[-1] == pytest.approx((LEFT + RIGHT) / 2, abs=1e-3)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_split_gives_each_channel_for_itself(rate):
    """As many tracks as channels, equally long, each with its own sound."""
    (left, right), recording = tracks(stereo(0.5, rate), channels="split")
    assert left.size == right.size == recording.samples
    assert left[left.size // 2] == pytest.approx(LEFT / 2, abs=2e-3)
    assert right[right.size // 2] == pytest.approx(RIGHT, abs=2e-3)
    assert [recording.part.channel(track) for track in (0, 1)] == [1, 2]


def test_one_channel_can_be_chosen():
    """By its number from 1 on; one that is not there is a sentence."""
    (right,), recording = tracks(stereo(0.5), channels="2")
    assert right[100] == pytest.approx(RIGHT, abs=1e-3)
    assert recording.part.channel(0) == 2
    with pytest.raises(JobError, match=r"has 2 channels, and channel 3 was asked for") as caught:
        tracks(stereo(0.5), channels="3")
    assert caught.value.code == "bad_input"


@pytest.mark.parametrize(
    ("start_s", "duration_s", "first", "last"),
    [
        (0.0, 0.0, 0, 20.0),
        (12.5, 0.0, 12.5, 20.0),
        (0.0, 3.0, 0, 3.0),
        (7.0, 4.25, 7.0, 11.25),
        (19, 9, 19, 20),
    ],
)
def test_a_stretch_of_time_is_cut_out_to_the_sample(start_s, duration_s, first, last):
    """Wherever blocks begin; how far it is read is never beyond what is wanted."""
    (whole,), _ = tracks(stereo(20.0), channels="1")
    (part,), recording = tracks(stereo(20.0), channels="1", start_s=start_s, duration_s=duration_s)
    np.testing.assert_array_equal(part, whole[round(first * RATE_HZ) : round(last * RATE_HZ)])
    assert recording.position_s == last
    assert not recording.truncated


def test_a_start_beyond_the_end_is_a_sentence():
    """With how long the recording is."""
    with pytest.raises(JobError, match=r"is 2\.0 s long, and 5 s is where to start") as caught:
        tracks(stereo(2.0), start_s=5.0)
    assert caught.value.code == "bad_input"
