"""What only a terminal gets: colours, and a line that says how far the run is."""

from __future__ import annotations

import contextlib
import os
import pty
import re

import pytest
from harness.fake_server import Peer

from svctl.subtitles import columns

PLAIN = "[EN][NEUTRAL] hello\n"
COLOURED = "\x1b[2m[EN]\x1b[0m\x1b[35m[NEUTRAL]\x1b[0m hello\n"


@pytest.fixture
def recordings(tmp_path):
    """Three recordings of one line."""
    for name in ("a.wav", "b.wav", "c.wav"):
        (tmp_path / name).write_text("hello")


@pytest.fixture
def on_terminal(start):
    """Run svctl with one of its outputs on a terminal: exit status, what came there, the other output."""

    def run(*words, which, env=None, **settings):
        leader, follower = pty.openpty()
        settings[which] = follower
        process = start(*words, env={"TERM": "xterm", **(env or {})}, **settings)
        os.close(follower)
        shown = b""
        # a terminal whose last writer has gone is an I/O error on Linux
        with contextlib.suppress(OSError):
            while part := os.read(leader, 4096):
                shown += part
        os.close(leader)
        out, err = process.communicate(timeout=60)
        other = err if which == "stdout" else out
        return process.returncode, shown.decode().replace("\r\n", "\n"), other.decode()

    return run


@pytest.mark.parametrize(
    ("words", "env", "shown"),
    [
        ([], {}, COLOURED),
        ([], {"NO_COLOR": "1"}, PLAIN),
        ([], {"TERM": "dumb"}, PLAIN),
        (["--color", "never"], {}, PLAIN),
        (["--color=always"], {"NO_COLOR": "1"}, COLOURED),
        (["-t"], {}, "\x1b[2m[0.00-1.50]\x1b[0m " + COLOURED),
        (["-f", "plain"], {}, "hello\n"),
    ],
)
def test_text_is_coloured_on_a_terminal(  # noqa: PLR0917 - a table of three
    on_terminal, server, recordings, words, env, shown
):
    """Unless told otherwise, and never another format."""
    assert on_terminal("transcribe", "-q", *words, "a.wav", which="stdout", env=env)[:2] == (0, shown)


def test_a_pipe_and_a_file_get_no_escape(svctl, server, recordings):
    """Colour where there is no terminal has to be asked for; a file of -o never has it."""
    assert svctl("transcribe", "a.wav", env={"TERM": "xterm"})[1:] == (PLAIN, "")
    assert svctl("transcribe", "--color=always", "a.wav")[1] == COLOURED
    assert svctl("transcribe", "--color=always", "-o", ".", "a.wav")[0] == 0
    assert svctl("transcribe", "-f", "raw", "--color=always", "a.wav")[1].count("\x1b") == 0


def test_what_is_said_brings_no_colours_of_its_own(svctl, serve, recordings, tmp_path):
    """An escape in a transcript is shown, also where colours are on."""
    (tmp_path / "evil.wav").write_text("\x1b[31mred")
    serve()
    assert svctl("transcribe", "--color=always", "evil.wav")[1].endswith(" \\x1b[31mred\n")


def _slow(peer, message):
    """Answer with progress before the transcript."""
    peer.send({"type": "progress", "id": message["id"], "decoded_s": 30.4, "recognised_s": 10.0})
    Peer.answer(peer, message)


def test_progress_is_a_line_of_a_terminal_and_leaves_it_clean(on_terminal, serve, recordings, svctl):
    """It counts recordings and seconds, and is gone before anything else is written; a pipe gets none."""
    serve(_slow)
    status, shown, out = on_terminal("transcribe", "a.wav", "b.wav", which="stderr")
    assert (status, out.count("hello")) == (0, 2)
    lines = shown.split("\r\x1b[K")
    assert lines[0] == lines[-1] == ""
    assert any(re.match(r"1/2  a\.wav: 10/30 s  \d+x", line) for line in lines)
    assert any(line.startswith("2/2  b.wav: 10/30 s  ") and line.endswith(" left") for line in lines)
    assert svctl("transcribe", "a.wav")[2] == ""
    for word in ("-q", "--no-progress"):
        assert on_terminal("transcribe", word, "a.wav", which="stderr")[1] == ""


@pytest.mark.parametrize(
    ("waits_for", "said"),
    [
        ("share", "waits for your other recordings to end"),
        ("process", "waits for a free process of the daemon"),
        ("model", "waits for the model to load"),
        ("wings", "0/0 s"),
    ],
)
def test_a_terminal_shows_what_a_recording_waits_for(  # noqa: PLR0917 - a table of two
    on_terminal, svctl, serve, recordings, waits_for, said
):
    """As long as it has not begun; a pipe sees nothing of it."""

    def script(peer, message):
        far = {"decoded_s": 0.0, "recognised_s": 0.0, "waits_for": waits_for}
        peer.send({"type": "progress", "id": message["id"], **far})
        Peer.answer(peer, message)

    serve(script)
    _, shown, out = on_terminal("transcribe", "a.wav", which="stderr")
    assert [line.split("  ")[0] for line in shown.split("\r\x1b[K")] == ["", f"a.wav: {said}", ""]
    assert svctl("transcribe", "a.wav")[1:] == (out, "")


def test_a_terminal_shows_that_the_daemon_is_full(on_terminal, serve, recordings):
    """A recording that was refused is sent again; until it is taken the line says why nothing happens."""
    refusals = [{"code": "busy", "message": "The queue is full.", "retryable": True, "retry_after_ms": 100}]

    def script(peer, message):
        if refusals:
            peer.send({"type": "error", "id": message["id"], **refusals.pop()})
        else:
            Peer.answer(peer, message)

    serve(script)
    status, shown, out = on_terminal("transcribe", "a.wav", which="stderr")
    assert (status, "hello" in out) == (0, True)
    assert shown == "\r\x1b[Ka.wav: waits for room in the daemon's queue\r\x1b[K"


@pytest.mark.parametrize("words", [["-r", "."], ["--files-from", "list"], ["-r", "--files-from=list"]])
def test_what_is_left_is_shown_of_folders_and_lists_too(on_terminal, serve, recordings, tmp_path, words):
    """They are counted while the daemon works; between recordings the line counts those that are done."""
    (tmp_path / "list").write_text("a.wav\nb.wav\nc.wav\n")
    serve(_slow)
    status, shown, out = on_terminal("transcribe", *words, which="stderr")
    assert (status, out.count("hello")) == (0, 3)
    *lines, summary = shown.split("\r\x1b[K")
    assert summary.startswith("svctl: 3 transcribed, 0 failed; 6 s of audio in ")
    assert any(line.startswith("2/3  ") and line.endswith(" left") for line in lines)
    done = [line for line in lines if " done, " in line]
    assert done[-1].startswith("2/3 done, 4 s  ")
    assert done[-1].endswith(" left")


def test_what_is_at_the_daemon_counts_for_what_it_has_of_it(on_terminal, serve, recordings):
    """Three that are nearly done together leave little, not three times what the first has taken."""

    def script(peer, message):
        shares.append(message)
        if len(shares) == 3:
            for one in reversed(shares):
                peer.send({"type": "progress", "id": one["id"], "decoded_s": 100.0, "recognised_s": 90.0})
            for one in shares:
                Peer.answer(peer, one)

    shares = []
    serve(script)
    _, shown, _ = on_terminal("transcribe", "a.wav", "b.wav", "c.wav", which="stderr")
    first = next(line for line in shown.split("\r\x1b[K") if line.startswith("1/3  a.wav: 90/100 s  "))
    assert re.fullmatch(r"1/3  a\.wav: 90/100 s  \d+x  0:00 left", first)


def test_a_list_without_end_is_counted_as_far_as_it_is(on_terminal, serve, recordings, tmp_path):
    """Until all names are known the line has no total and no time left; then it has."""
    reader, writer = os.pipe()
    os.write(writer, b"a.wav\0b.wav\0")
    names = ["a.wav", "b.wav", "c.wav"]

    def script(peer, message):
        names.remove(message["label"])
        if names == ["c.wav"]:
            os.write(writer, b"c.wav\0")
            os.close(writer)
        _slow(peer, message)

    serve(script)
    status, shown, out = on_terminal("transcribe", "-0", "-j", "1", which="stderr", stdin=reader)
    os.close(reader)
    assert (status, out.count("hello")) == (0, 3)
    lines = shown.split("\r\x1b[K")
    assert any(line.startswith("1  a.wav: ") for line in lines)
    assert any(line.startswith("1 done, 2 s  ") and "left" not in line for line in lines)
    assert any(line.startswith("2/3 done, 4 s  ") and line.endswith(" left") for line in lines)


def test_what_was_there_already_is_not_left_to_do(on_terminal, serve, recordings, tmp_path):
    """A run that goes on counts what it has to do itself."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_text("there")
    serve(_slow)
    words = ("-r", "--skip-existing", "-o", "out", ".")
    _, shown, _ = on_terminal("transcribe", *words, which="stderr")
    assert "1/2 done, 2 s  " in shown
    assert not {"1/3", "2/3", "3/3"} & set(shown.split())


def test_wide_names_leave_room_for_what_the_line_is_for(on_terminal, serve, tmp_path):
    """Chinese names take two columns a character; a line that wraps would stay on the screen for good."""
    name = "很长的录音" * 10 + ".wav"
    (tmp_path / name).write_text("hello")
    serve(_slow)
    _, shown, _ = on_terminal("transcribe", name, which="stderr")
    line = next(line for line in shown.split("\r\x1b[K") if line)
    assert line.startswith("…录音" + "很长的录音" * 3 + ".wav: 10/30 s  ")
    assert columns(line) < 80


def test_a_run_that_breaks_off_leaves_the_line_clean(on_terminal, serve, recordings):
    """The sentence about a daemon that has gone begins on an empty line."""

    def script(peer, message):
        peer.send({"type": "progress", "id": message["id"], "decoded_s": 30.4, "recognised_s": 10.0})
        peer.hang_up()

    serve(script)
    status, shown, _ = on_terminal("transcribe", "a.wav", which="stderr")
    assert (status, shown.count("a.wav: 10/30 s")) == (69, 1)
    assert shown.split("\r\x1b[K")[-1].startswith("svctl: The connection to the daemon at ")


def _slow_or_broken(peer, message):
    """As `_slow`, but nobody can read what is called broken."""
    if "broken" not in message["label"]:
        _slow(peer, message)
        return
    os.close(message["descriptor"])
    peer.send({"type": "error", "id": message["id"], "code": "bad_input", "message": "This is no audio."})


@pytest.mark.parametrize("terminal", ["", "stdout", "stderr"])
@pytest.mark.parametrize("words", [["-r", "."], ["a.wav", "broken.wav", "c.wav"]])
def test_each_output_is_written_for_what_it_is(  # noqa: PLR0917 - a table of two
    svctl, on_terminal, serve, recordings, tmp_path, words, terminal
):
    """A pipe beside a terminal gets what a pipe gets: no colour, no progress, every sentence once."""
    (tmp_path / "b.wav").rename(tmp_path / "broken.wav")
    serve(_slow_or_broken)
    plain = {"TERM": "xterm"}
    if terminal:
        status, shown, piped = on_terminal("transcribe", *words, which=terminal, env=plain)
        out, err = (shown, piped) if terminal == "stdout" else (piped, shown)
    else:
        status, out, err = svctl("transcribe", *words, env=plain)
    assert status == 65
    assert ("\x1b" in out, "\x1b" in err) == (terminal == "stdout", terminal == "stderr")
    assert ("\r" in out, "\r" in err) == (False, terminal == "stderr")
    said = [line.rpartition("\x1b[K")[2] for line in err.split("\n")[:-1]]
    assert sum(line.endswith("broken.wav: This is no audio.") for line in said) == 1
    assert [line.startswith("svctl: ") for line in said] == [True] * len(said)
    assert len(said) == (2 if "-r" in words else 1)
    assert out.count("hello") == 2


@pytest.mark.parametrize(
    "words", [["status"], ["ps"], ["models"], ["version"], ["ping"], ["--help"], ["bench", "-h"]]
)
def test_tables_are_the_same_on_a_terminal(svctl, on_terminal, server, words):
    """Nothing but `transcribe` and `status --watch` has a face for terminals."""
    status, shown, _ = on_terminal(*words, which="stdout")
    assert (status, shown) == svctl(*words, env={"TERM": "xterm"})[:2]
    assert "\x1b" not in shown
