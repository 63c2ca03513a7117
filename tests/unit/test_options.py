"""The quick parser and click read the same option table, and must mean the same by it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensevoiced.config import ServingConfig
from svctl import cli, options, verbs

FLAGS = sorted({flag for _, _, table in options.VERBS.values() for option in table for flag in option[1]})
WORDS = st.one_of(
    st.sampled_from(FLAGS),
    st.sampled_from(
        [
            *("--", "-", "a.wav", "", "json", "zn", "yue", "none", "3", "0.5", "1e3", ".", "-1"),
            *("--format=srt", "1:30", "0:01:30.5", "--start=2:5", "--duration=1:60", "--jobs=33"),
        ]
    ),
    st.sampled_from(
        [
            "--wait=7",
            "--wait=",
            "--wait=nan",
            "--wait=86400.5",
            "--wait=" + "9" * 400,
            "--socket=",
            "--socket=/x",
            "--itn=1",
            "-fjson",
            "-0q",
            "--form",
            "-h",
            "ü=1",
        ]
    ),
)


def by_click(monkeypatch, verb, words, before=()):
    """What click makes of the words: the values and names it would run with, or None where it stops."""
    seen = []
    monkeypatch.setattr(verbs, "run", lambda verb, values, names: seen.append((values, names)) or 0)
    monkeypatch.setattr(cli, "say", lambda sentence: None)
    status = cli.main([*before, verb, *words])
    return seen[0] if seen else None, status


@given(verb=st.sampled_from(sorted(options.VERBS)), words=st.lists(WORDS, max_size=6))
def test_the_quick_parser_agrees_with_click(verb, words):
    """Whatever the quick parser accepts, click reads as the same values and names."""
    quick = options.parse(verb, words)
    if quick is not None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            assert by_click(monkeypatch, verb, words)[0] == quick


@pytest.mark.parametrize("before", [["--socket", "/before"], ["--socket=/before"]])
@pytest.mark.parametrize(("behind", "socket"), [([], "/before"), (["--socket", "/behind"], "/behind")])
def test_the_socket_may_stand_before_every_verb(monkeypatch, before, behind, socket):
    """It means the same there; where it stands behind the verb as well, that one counts."""
    for verb, (argument, _, _) in options.VERBS.items():
        words = ["1"] if argument else []
        quick = options.parse(verb, ["--socket", socket, *words])
        assert by_click(monkeypatch, verb, [*behind, *words], before)[0] == quick


@pytest.mark.parametrize(
    "words",
    [
        ["a.wav"],
        ["a.wav", "-", "b.wav"],
        ["-f", "json", "-l", "zh", "--no-itn", "a.wav", "--tags", "none"],
        ["--no-vad", "--wait=2.5", "--socket", "/x", "-o", "d", "-q", "-t", "--progress", "--no-wait", "-0"],
        ["--", "-i.wav", "--help"],
    ],
)
def test_plain_words_are_understood_without_click(monkeypatch, words):
    """Common command lines never need click."""
    quick = options.parse("transcribe", words)
    assert quick is not None
    assert by_click(monkeypatch, "transcribe", words)[0] == quick


def test_clusters_and_mistakes_are_left_to_click(monkeypatch):
    """What the quick parser does not know it hands on, and click still understands or refuses it."""
    assert options.parse("transcribe", ["-qt", "a.wav"]) is None
    values, names = by_click(monkeypatch, "transcribe", ["-qt", "-fjson", "a.wav"])[0]
    assert (values["quiet"], values["timestamps"], values["format"], names) == (True, True, "json", ["a.wav"])
    assert by_click(monkeypatch, "transcribe", ["--wait", "soon", "a.wav"]) == (None, 64)


@pytest.mark.parametrize("wait", ["nan", "inf", "-inf", "1e400", "1e30", "9" * 23, "86401", "-1", ""])
def test_a_patience_that_no_clock_can_count_is_refused(monkeypatch, wait):
    """More than a day, less than nothing and no number at all are mistakes, on either path."""
    for words in (["--wait", wait], [f"--wait={wait}"]):
        assert options.parse("ping", words) is None
        assert by_click(monkeypatch, "ping", words) == (None, 64)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90", 90.0), ("1:30", 90.0), ("0:01:30.5", 90.5), (".5", 0.5), ("5.", 5.0), ("0", 0.0)),
        *(("90:00", 5400.0), ("1:2:3", 3723.0), ("240:00:00", 864_000.0), ("00:00:00.040", 0.04)),
        *((text, None) for text in ("", ".", ":", "1:", ":30", "1:60", "1:60:00", "1.5:30", "1:2:3:4")),
        *((text, None) for text in ("1m", "1e3", "-5", "+5", " 5", "nan", "inf", "1:-5", "٣", "9" * 400)),
        *((text, None) for text in ("240:00:00.1", "864001", "1:30,5", "1..5")),
    ],
)
def test_times_are_those_of_ffmpeg(monkeypatch, text, seconds):
    """Seconds, or hours and minutes before colons; anything else is a mistake, on either path."""
    for words in (["--start", text, "a.wav"], [f"--start={text}", "a.wav"]):
        quick = options.parse("transcribe", words)
        by_click_too = by_click(monkeypatch, "transcribe", words)
        if seconds is None:
            assert (quick, by_click_too) == (None, (None, 64))
        else:
            assert quick[0]["start"] == by_click_too[0][0]["start"] == seconds


@pytest.mark.parametrize(
    ("words", "jobs"),
    [
        *(([], 6), (["-j", "1"], 1), (["-j32"], 32), (["--jobs=7"], 7)),
        *((["-j", text], None) for text in ("0", "33", "-1", "", "two", "1.5")),
    ],
)
def test_recordings_in_flight_have_bounds(monkeypatch, words, jobs):
    """From one to what the daemon takes of one connection."""
    found, status = by_click(monkeypatch, "transcribe", [*words, "a.wav"])
    assert (found and found[0]["jobs"], status) == (jobs, 0 if jobs else 64)


def test_as_many_in_flight_as_a_daemon_takes():
    """More than the daemon's default for a connection would be refused, to be sent again and again."""
    assert options.JOBS <= options.MAX_JOBS <= ServingConfig().max_jobs_per_connection


def test_patience_is_what_was_asked_for_or_the_default():
    """A day is the most; --no-wait is none; without either each verb has its own."""
    for verb, words, patience_s in (
        ("ping", [], 5.0),
        ("status", [], 60.0),
        ("reload", ["--wait", "0"], 0.0),
        ("ping", ["--wait=86400"], 86_400.0),
        ("transcribe", ["--no-wait", "a.wav"], 0.0),
    ):
        values, _ = options.parse(verb, words)
        assert options.patience_s(verb, values) == patience_s


def test_every_option_has_its_default_in_both(monkeypatch):
    """Without options both give the table's defaults."""
    for verb, (argument, _, table) in options.VERBS.items():
        words = ["a.wav"] if argument else []
        values, _ = by_click(monkeypatch, verb, words)[0]
        assert values == {option[0]: option[3] for option in table}
