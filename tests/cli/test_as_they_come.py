"""Transcripts that appear while the recording is still being made: a line, row or cue as it is recognised."""

from __future__ import annotations

import os
import select
import subprocess

import numpy as np
import pytest
import soundfile
from harness.fake_server import done, segment

from sensevoiced.models import DEMO_DIR

HANG_S = 300.0
"""Only a hang takes so long."""
AT_ONCE = {
    "vtt": ["vtt"],
    "srt": ["srt"],
    "tsv": ["tsv"],
    "raw": ["raw"],
    "text": ["text", "-t"],
    "words": ["srt", "--words"],
    "lines": ["vtt", "--max-line-width", "20", "--max-line-count", "2"],
    "channel": ["tsv", "--channels", "1"],
}
"""Formats with what belongs to them."""


@pytest.fixture
def lesson(tmp_path):
    """A sentence, a pause that shows its end, another sentence: the file, and the place behind the pause."""
    said, rate = soundfile.read(DEMO_DIR / "samples" / "angry.flac", dtype="int16")
    pause = np.zeros(4 * rate, "int16")
    path = tmp_path / "lesson.wav"
    soundfile.write(path, np.concatenate([said, pause, said]), rate, "PCM_16")
    return path, path.stat().st_size - said.nbytes


@pytest.mark.parametrize("words", AT_ONCE.values(), ids=AT_ONCE)
def test_a_cue_is_written_before_the_rest_is_recorded(start, ask_demo, demo, lesson, words):
    """And in the end it is what the same recording gives as a file, and what `-o` writes."""
    path, behind_the_pause = lesson
    data = path.read_bytes()
    command = ("transcribe", "-q", "-f", *words, "-")
    process = start(*command, stdin=subprocess.PIPE, env={"SENSEVOICE_SOCKET": str(demo.socket)})
    process.stdin.write(data[:behind_the_pause])
    process.stdin.flush()
    shown = b""
    last_word = b"62"
    while last_word not in shown:
        assert select.select([process.stdout], [], [], HANG_S)[0], "nothing is shown while more may come"
        part = os.read(process.stdout.fileno(), 65_536)
        assert part, process.stderr.read()
        shown += part
    assert process.poll() is None
    rest, err = process.communicate(data[behind_the_pause:], timeout=HANG_S)
    assert (process.returncode, err) == (0, b"")
    assert last_word in rest
    text = (shown + rest).decode()
    assert ask_demo(*command[:-1], path) == (0, text, "")
    assert ask_demo(*command[:-1], "-o", "out", path)[0] == 0
    (written,) = (path.parent / "out").iterdir()
    assert written.read_text("utf-8") == text


@pytest.mark.parametrize("form", ["json", "jsonl", "verbose_json", "plain"])
def test_what_is_one_object_or_line_waits(svctl, serve, files, form):
    """Of a recording that fails in the middle nothing is printed, except that it failed."""
    serve(_breaks_off)
    status, out, err = svctl("transcribe", "-f", form, "first.wav")
    assert (status, err) == (65, "svctl: first.wav: The audio breaks.\n")
    assert "hello" not in out


def test_turns_of_two_channels_wait_for_their_order(svctl, serve, files):
    """With --channels split a cue may come that belongs before the last one."""

    def script(peer, message):
        peer.send(segment(message["id"], 0, "answer", start=2.0, channel=1))
        peer.send(segment(message["id"], 1, "question", start=0.5, channel=2))
        peer.send(done(message["id"], 2))

    serve(script)
    status, out, _ = svctl("transcribe", "-f", "tsv", "--channels", "split", "first.wav")
    assert (status, out.split()[4::4]) == (0, ["500", "2000"])


@pytest.mark.parametrize(
    ("form", "shown"),
    [
        ("vtt", "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nhello\n\n"),
        ("srt", "1\n00:00:00,000 --> 00:00:01,500\nhello\n\n"),
        ("tsv", "start\tend\ttext\n0\t1500\thello\n"),
    ],
)
def test_what_is_printed_before_an_error_stays(svctl, serve, files, form, shown):
    """The sentence and the status are those of -f text; of one that fails at once nothing is printed."""
    serve(_breaks_off)
    said = "svctl: first.wav: The audio breaks.\n"
    assert svctl("transcribe", "-f", form, "first.wav") == (65, shown, said)
    assert svctl("transcribe", "-f", "text", "first.wav") == (65, "[EN][NEUTRAL] hello\n", said)
    (files / "empty.wav").write_text("")
    assert svctl("transcribe", "-f", form, "empty.wav") == (65, "", "svctl: empty.wav: The audio breaks.\n")


def _breaks_off(peer, message):
    """Give the first line of what was heard, then an error."""
    with os.fdopen(message["descriptor"]) as file:
        heard = file.read().splitlines()
    for line in heard[:1]:
        peer.send(segment(message["id"], 0, line))
    peer.send({"type": "error", "id": message["id"], "code": "bad_input", "message": "The audio breaks."})
