"""Subtitles as players read them: what svctl writes goes through the parsers of another project."""

from __future__ import annotations

import html
import io
import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sensevoiced.models import DEMO_DIR
from svctl import formats
from svctl.subtitles import columns

webvtt = pytest.importorskip(
    "webvtt", reason="webvtt-py, of the dev extra, reads the subtitles: it is not installed"
)

HOUR_S = 3_600.0
ODD = "-> <&;/17:,.ab中。\t\n　"
"""What marks something in one of the formats or on a screen, and a few letters."""


def cues(form, text):
    """Give the start and end in milliseconds and the text of each cue, by a parser that is strict in vtt."""
    if form == "srt":
        read = webvtt.WebVTT.from_buffer(io.StringIO(text), format="srt")
        return [(*times(cue), cue.raw_text) for cue in read]
    read = webvtt.WebVTT.from_string(text, strict=True)
    return [(*times(cue), html.unescape(cue.raw_text)) for cue in read]


def times(cue):
    """Give the start and end of a cue in milliseconds."""
    return cue.start_time.in_milliseconds(), cue.end_time.in_milliseconds()


def spoken(texts, start_s=0.0):
    """Give a transcript of these segments, a second each with a millisecond between them."""
    starts = [start_s + 1.001 * place for place in range(len(texts))]
    parts = [
        {"start": start, "end": start + 1, "text": text, "words": []}
        for start, text in zip(starts, texts, strict=True)
    ]
    return {"segments": parts}


@pytest.mark.parametrize("form", ["srt", "vtt"])
@given(texts=st.lists(st.text() | st.text(ODD), min_size=1, max_size=4))
@example(texts=["1", "NOTE well", "<b>fat</b> & 1 < 2", "a --> b", "----> c"])
@example(texts=["2\n00:00:01,000 --> 00:00:02,000", "WEBVTT"])
def test_any_text_comes_back(form, texts):
    """Whatever is said, each segment with text is one cue: in its place, at its times, on one line."""
    text = formats.rendered(form, spoken(texts), formats.Style())
    said = [(place, text.strip()) for place, text in enumerate(texts) if text.strip()]
    if form == "srt" and not said:
        assert text == ""
        return
    read = cues(form, text)
    assert [cue[:2] for cue in read] == [(1_001 * place, 1_001 * place + 1_000) for place, _ in said]
    assert [cue[2] for cue in read] == [
        formats.printable(re.sub("-+>", "->", text.replace("\t", " "))) for _, text in said
    ]


@pytest.mark.parametrize("form", ["srt", "vtt"])
@pytest.mark.parametrize("start_s", [59.9996, HOUR_S - 0.001, 100 * HOUR_S])
def test_times_carry(form, start_s):
    """Milliseconds round up into the next minute, and hours may have three digits."""
    text = formats.rendered(form, spoken(["so late"], start_s), formats.Style())
    assert cues(form, text) == [(round(start_s * 1_000), round(start_s * 1_000) + 1_000, "so late")]


def test_divided_subtitles_of_a_real_recording(ask_demo, tmp_path):
    """In both formats the same cues: lines that fit, times in order, and nothing of the text lost."""
    run = ("transcribe", "-f", "srt,vtt,json", "--max-line-width", "20", "--max-line-count", "2", "-o", "out")
    assert ask_demo(*run, DEMO_DIR / "samples" / "mixed.flac") == (0, "", "")
    out = tmp_path / "out"
    read = cues("srt", (out / "mixed.srt").read_text(encoding="utf-8"))
    assert cues("vtt", (out / "mixed.vtt").read_text(encoding="utf-8")) == read
    whole = json.loads((out / "mixed.json").read_text(encoding="utf-8"))
    assert len(read) > len(whole["segments"])
    assert "".join("".join(cue[2].split()) for cue in read) == "".join(whole["text"].split())
    assert all(columns(line) <= 20 for cue in read for line in cue[2].splitlines())
    assert all(cue[2].count("\n") < 2 for cue in read)
    clock = [moment for cue in read for moment in cue[:2]]
    assert clock == sorted(clock)
    outer = (whole["segments"][0]["start"], whole["segments"][-1]["end"])
    assert (clock[0], clock[-1]) == tuple(round(seconds * 1_000) for seconds in outer)
