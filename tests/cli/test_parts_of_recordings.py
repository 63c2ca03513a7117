"""Channels told apart and parts of a recording, from the command line to the demo model and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from sensevoiced.models import DEMO_DIR

TURNS = (("en", 0, 0.0), ("angry", 1, 5.5), ("en", 0, 10.0), ("angry", 1, 15.5))
"""Which sample is said on which channel, from which second on."""
SAMPLES_S = {"en": 5.0, "angry": 4.0}
"""Longer than each sample is, so that turns do not overlap."""


def sample(name):
    """One of the demo's clips."""
    return DEMO_DIR / "samples" / f"{name}.flac"


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """A stereo call of two speakers who take turns."""
    spoken = {
        name: soundfile.read(DEMO_DIR / "samples" / f"{name}.flac", dtype="float32") for name in SAMPLES_S
    }
    (rate,) = {found[1] for found in spoken.values()}
    samples = np.zeros((20 * rate, 2), np.float32)
    for name, channel, at_s in TURNS:
        said, first = spoken[name][0], round(at_s * rate)
        samples[first : first + len(said), channel] = said
    path = tmp_path_factory.mktemp("calls") / "call.wav"
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


def transcript(ask_demo, *words):
    """The transcript as svctl's JSON."""
    status, out, err = ask_demo("transcribe", "-f", "json", *words)
    assert (status, err) == (0, "")
    return json.loads(out)


def texts(ask_demo, name):
    """What the demo model makes of a sample alone."""
    return [
        segment["text"] for segment in transcript(ask_demo, DEMO_DIR / "samples" / f"{name}.flac")["segments"]
    ]


def test_a_stereo_call_has_two_speakers_who_take_turns(ask_demo, call):
    """`--channels split` labels both, and puts their turns in the order of time, in every format."""
    found = transcript(ask_demo, "--channels", "split", call)
    segments = found["segments"]
    assert [segment["channel"] for segment in segments] == [1, 2, 1, 2]
    assert [segment["start"] for segment in segments] == sorted(segment["start"] for segment in segments)
    alone = {name: " ".join(texts(ask_demo, name)) for name in SAMPLES_S}
    assert [segment["text"] for segment in segments] == [alone[name] for name, _, _ in TURNS]
    assert [segment["emotion"] for segment in segments] == ["NEUTRAL", "ANGRY"] * 2
    assert found["duration"] == 20.0
    lines = ask_demo("transcribe", "--channels", "split", "-t", call)[1].splitlines()
    assert [line.split("] ")[1][:8] for line in lines] == ["1: [EN][", "2: [EN]["] * 2
    plain = ask_demo("transcribe", "--channels=split", "-f", "plain", call)[1]
    assert plain.splitlines() == [f"{channel + 1}: {alone[name]}" for name, channel, _ in TURNS]
    tsv = ask_demo("transcribe", "--channels=split", "-f", "tsv", call)[1].splitlines()
    assert tsv[0] == "start\tend\tchannel\ttext"
    assert [row.split("\t")[2] for row in tsv[1:]] == ["1", "2", "1", "2"]
    assert ask_demo("transcribe", "--channels=split", "-f", "srt", call)[1].count("\n2: ") == 2


def test_one_channel_alone_is_the_other_speaker_left_out(ask_demo, call):
    """`--channels 2` gives the second's turns; a third is a sentence and 65."""
    segments = transcript(ask_demo, "--channels", "2", call)["segments"]
    assert [(segment["channel"], segment["emotion"]) for segment in segments] == [(2, "ANGRY")] * 2
    status, _, err = ask_demo("transcribe", "--channels", "3", call)
    assert (status, err) == (
        65,
        f"svctl: {call}: The recording has 2 channels, and channel 3 was asked for.\n",
    )


def test_a_part_keeps_the_times_of_the_whole(ask_demo, call):
    """`--start` and `--duration` leave out what lies outside; times are the recording's, words included."""
    whole = transcript(ask_demo, "--channels", "split", call)["segments"]
    part = transcript(ask_demo, "--channels", "split", "--start", "9.75", "--duration", "5.5", call)
    (turn,) = part["segments"]
    assert part["duration"] == 5.5
    assert turn["text"] == whole[2]["text"]
    assert turn["start"] == pytest.approx(whole[2]["start"], abs=0.1)
    assert turn["words"][0]["start"] == pytest.approx(whole[2]["words"][0]["start"], abs=0.2)
    status, _, err = ask_demo("transcribe", "--start", "60", call)
    assert status == 65
    assert "is 20.0 s long, and 60 s is where to start" in err


def test_a_part_of_a_stream_does_not_wait_for_its_end(start, demo, call):
    """With --duration the transcript of a pipe is there while its writer still holds it open."""
    process = start(
        *("transcribe", "--channels", "1", "--duration", "5.2", "-"),
        stdin=-1,
        env={"SENSEVOICE_SOCKET": str(demo.socket)},
    )
    # 5.2 s of two channels at 16 kHz, and a little
    process.stdin.write(call.read_bytes()[:360_000])
    process.stdin.flush()
    assert process.stdout.readline().startswith(b"1: [EN]")
    process.stdin.close()
    process.stdin = None
    assert process.wait(60) == 0
