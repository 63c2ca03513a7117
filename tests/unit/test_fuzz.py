"""The fuzzer's own parts: what it begins with, what it holds the code to, and what it says in the end."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from svctl import framing, wire
from tools.fuzz import BrokenPromise, frames, recordings
from tools.fuzz import __main__ as program

DONE = "#9 DONE   cov: 140 ft: 385 corp: 92/15Kb\nstat::number_of_executed_units: 25733\n"


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Run the program with a script in the place of the fuzzer; gives the status and what was written."""

    def run(script, capsys):
        monkeypatch.setattr(program, "find_spec", lambda _: True)
        monkeypatch.setattr(program, "PROCESS", (sys.executable, "-c", script))
        status = program.main(["--seconds", "0.1", "--folder", str(tmp_path), "--target", "frames"])
        return status, capsys.readouterr().out

    return run


def test_every_seed_of_the_frame_reader_keeps_its_promises():
    """The fuzzer begins with messages of every kind, whole and alone in their frames."""
    seeds = frames.seeds()
    assert {name.partition("-")[2] for name in seeds} >= {*wire.REQUESTS, *wire.EVENTS}
    for name, data in seeds.items():
        frames.check(data)
        if name.startswith("request-"):
            (message,), ended = frames.verdict(data, requests=True)
            assert ended is None
            assert frames.settled(message, wire.REQUESTS) is not None


def test_every_seed_of_the_front_end_keeps_its_promises():
    """A clip in more than twenty forms decodes, by file and by stream; what is no audio is refused."""
    seeds, check = recordings.seeds(), recordings.make_check()
    assert len(seeds) > 20
    assert {data[-1] for data in seeds.values()} == {0, 1, 2, 3}
    for data in (*seeds.values(), b"", b"\0", b"no audio at all"):
        check(data)


def test_a_reader_that_depends_on_the_cuts_is_found(monkeypatch):
    """The check fails for a reader that takes a piece for a frame."""
    feed = framing.FrameReader.feed
    monkeypatch.setattr(framing.FrameReader, "feed", lambda reader, data: feed(reader, data[:20]))
    with pytest.raises(BrokenPromise, match="cuts change nothing"):
        frames.check(frames.seeds()["request-transcribe"])


def test_without_the_fuzzer_one_sentence_says_so(monkeypatch, capsys):
    """Status 1, and nothing was run."""
    monkeypatch.setattr(program, "find_spec", lambda _: None)
    assert program.main([]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "pip install atheris" in said.err


def test_a_run_that_breaks_nothing_says_how_much_was_tried(scripted, capsys):
    """Status 0, with the fuzzer's own figures."""
    status, said = scripted(f"print({DONE!r})", capsys)
    assert (status, said) == (0, "frames: 25733 inputs run, nothing broke (92 kept, 140 places reached).\n")


def test_a_finding_is_named_and_the_status_is_1(scripted, capsys, tmp_path):
    """The input is kept, its path and the end of the log are printed."""
    script = (
        "import sys; (prefix,) = [word.partition('=')[2] for word in sys.argv if 'artifact' in word];"
        "open(prefix + 'crash-1', 'w').close(); print('BrokenPromise: x'); sys.exit(77)"
    )
    status, said = scripted(script, capsys)
    found = tmp_path / "frames" / "findings" / "crash-1"
    assert status == 1
    assert said.startswith("BrokenPromise: x\nframes: it ended with status 77;")
    assert f"the input is {found}" in said


def test_a_fuzzer_that_does_not_end_is_ended(scripted, capsys, monkeypatch):
    """A hang is a finding as well."""
    monkeypatch.setattr(program, "START_S", 0.2)
    status, said = scripted("import time; time.sleep(60)", capsys)
    assert status == 1
    assert "it did not end in time" in said


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed: make fuzz does that"
)
def test_the_fuzzer_runs_for_the_time_it_is_given(tmp_path, capsys):
    """Both targets run, and nothing that strangers can send breaks them within seconds."""
    assert program.main(["--seconds", "6", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("nothing broke") == 2
