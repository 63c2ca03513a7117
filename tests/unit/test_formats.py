"""Renderings of a transcript: pure functions of the daemon's events."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path

import pytest
from harness.fake_server import done, segment
from hypothesis import given, settings
from hypothesis import strategies as st

from svctl import formats, objects
from svctl.emoji import emoji
from svctl.terminal import printable

MARKS = [
    *(
        "zh",
        "en",
        "yue",
        "ja",
        "ko",
        "nospeech",
        "HAPPY",
        "SAD",
        "ANGRY",
        "NEUTRAL",
        "FEARFUL",
        "DISGUSTED",
        "SURPRISED",
    ),
    *(
        "EMO_UNKNOWN",
        "Speech",
        "BGM",
        "Applause",
        "Laughter",
        "Cry",
        "Sneeze",
        "Breath",
        "Cough",
        "Sing",
        "Speech_Noise",
    ),
    *("Event_UNK", "GBG", "withitn", "woitn", "OTHER"),
]


def recording(*segments, **changes):
    """The transcript of a recording with these segments."""
    return objects.transcript(
        "call.wav", segments, done(1, len(segments), **changes) | {"truncated": False} | changes
    )


def test_json_holds_the_contract():
    """Names, order and types of the JSON are what clients rely on."""
    words = [{"word": "hi", "start": 1, "end": 1.23456}]
    event = segment(1, 0, "hi", start=1, end=2.00049, language_score=0.987654, event_score=1, words=words)
    text = formats.json_text(recording(event, duration=3, model="demo"))
    assert text == (
        '{"file": "call.wav", "duration": 3.0, "language": "en", "text": "hi", "segments": [{"id": 0, '
        '"start": 1.0, "end": 2.0, "language": "en", "language_score": 0.9877, "emotion": "NEUTRAL", '
        '"emotion_score": 0.75, "event": "Speech", "event_score": 1.0, "text": "hi", '
        '"words": [{"word": "hi", "start": 1.0, "end": 1.235}], '
        '"raw": "<|en|><|NEUTRAL|><|Speech|><|withitn|>hi"}], "model": "demo", "truncated": false}'
    )


def test_json_is_utf8_and_refuses_nan():
    """Characters stand as themselves; a number that JSON does not have is an error."""
    assert '"text": "你好"' in formats.json_text(recording(segment(1, 0, "你好")))
    with pytest.raises(ValueError, match="JSON"):
        formats.json_text(recording(segment(1, 0, "x", start=float("nan"))))


def test_the_language_is_that_of_most_seconds():
    """Seconds count, not segments; no speech has no say; equal shares go to the first."""
    yue = segment(1, 0, "a", language="yue", start=0, end=5)
    english = [segment(1, n, "b", start=5 + n, end=6 + n) for n in (1, 2, 3)]
    noise = segment(1, 4, "", language="nospeech", start=10, end=100)
    assert recording(yue, *english, noise)["language"] == "yue"
    assert recording(segment(1, 0, "a", language="ko", start=0, end=3), *english)["language"] == "ko"
    assert recording(noise)["language"] == recording()["language"] == "nospeech"


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        (["Hello there.", "How are you?"], "Hello there. How are you?"),
        (["今天天气好。", "我们走吧。"], "今天天气好。我们走吧。"),
        (["开放时间", "早上九点"], "开放时间早上九点"),
        (["これは", "ペンです。"], "これはペンです。"),
        (["안녕하세요.", "반갑습니다."], "안녕하세요. 반갑습니다."),
        (["我用 GPU", "CPU 太慢"], "我用 GPU CPU 太慢"),
        (["你好。", "Hello."], "你好。Hello."),
        (["Hello.", "안녕", "你好"], "Hello. 안녕你好"),
        ([" one ", "", "  ", "two"], "one two"),
        ([], ""),
    ],
)
def test_texts_are_joined_as_their_scripts_are_written(texts, joined):
    """Spaces stand between words that are written with spaces, and nowhere else."""
    assert objects.join(texts) == joined


@pytest.mark.parametrize(
    ("tags", "line"),
    [
        ("bracket", "[YUE][ANGRY][BGM] 你讲咩"),
        ("enclosed", "[YUE][ANGRY][BGM]你讲咩[BGM][ANGRY][YUE]"),
        ("raw", "<|yue|><|ANGRY|><|BGM|><|withitn|>你讲咩"),
        ("none", "你讲咩"),
    ],
)
def test_tags_are_shown_as_asked(tags, line):
    """Every way of showing language, emotion and event."""
    raw = "<|yue|><|ANGRY|><|BGM|><|withitn|>你讲咩"
    event = segment(1, 0, "你讲咩", language="yue", emotion="ANGRY", event="BGM", raw=raw)
    assert formats.segment_line(event, tags, timestamps=False) == f"{line}\n"
    assert formats.segment_line(event, tags, timestamps=True) == f"[0.00-1.50] {line}\n"


def test_tags_that_say_nothing_are_left_out():
    """Unknown emotion and plain speech are no news; a segment without text is its tags alone."""
    event = segment(1, 0, "", language="nospeech", emotion="EMO_UNKNOWN", event="Applause")
    assert formats.segment_line(event, "bracket", timestamps=False) == "[NOSPEECH][Applause]\n"
    plain = segment(1, 0, "so", emotion="EMO_UNKNOWN")
    assert formats.segment_line(plain, "bracket", timestamps=False) == "[EN] so\n"
    assert formats.segment_line(segment(1, 0, "so"), "enclosed", timestamps=False) == "[EN]so[EN]\n"


@pytest.mark.parametrize("timestamps", [False, True])
def test_an_event_without_text_is_no_blank_line(timestamps):
    """Where tags are not wanted, a segment that is only an event leaves nothing, not even its times."""
    event = segment(1, 0, " ", language="nospeech", event="Applause")
    assert formats.segment_line(event, "none", timestamps=timestamps) == ""
    whole = recording(event, segment(1, 1, "so"))
    assert formats.text_lines(whole, "none", timestamps=False) == "so\n"


def test_subtitles_skip_silence_and_count_hours():
    """Cues are numbered without holes; times carry over minutes and hours; markup is not obeyed."""
    late = segment(1, 2, "a < b & c --> d", start=3_661.0014, end=36_000.9996)
    whole = recording(segment(1, 0, "one"), segment(1, 1, " "), late)
    assert formats.srt(whole) == (
        "1\n00:00:00,000 --> 00:00:01,500\none\n\n2\n01:01:01,001 --> 10:00:01,000\na < b & c -> d\n\n"
    )
    assert formats.vtt(whole) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\none\n\n"
        "01:01:01.001 --> 10:00:01.000\na &lt; b &amp; c -&gt; d\n\n"
    )
    assert formats.vtt(recording()) == "WEBVTT\n\n"


def test_turns_of_two_channels_are_in_order_whatever_came_first():
    """Equal beginnings go by channel, as of a file so of a pipe; subtitles of both are in order of time."""
    words = [{"word": "a", "start": 0.0, "end": 1.0}, {"word": "b", "start": 3.0, "end": 4.0}]
    two = segment(1, 0, "c", channel=2, start=0.0, end=4.0, words=[])
    one = segment(1, 1, "a b", channel=1, start=0.0, end=4.0, words=words)
    whole = recording(two, one)
    assert formats.plain_line(whole) == "1: a b\n2: c\n"
    shown = formats.srt(whole, 1, 1)
    assert [line for line in shown.splitlines() if line[1:2] == ":"] == ["1: a", "2: c", "1: b"]


def spoken(index, text, words, **changes):
    """A segment whose words begin every half second and take a quarter."""
    start = changes.get("start", 2.0 * index)
    timed = [
        {"word": word, "start": start + at / 2, "end": start + at / 2 + 0.25} for at, word in enumerate(words)
    ]
    return segment(1, index, text, words=timed, **changes)


def test_words_are_segments_of_their_own():
    """--words: each word with its own times, in every format that has times; JSON is as ever."""
    whole = recording(spoken(0, "Hi there.", ["Hi", "there."]), spoken(1, "你好", "你好"), segment(1, 2, ""))
    style = formats.Style(words=True)
    assert formats.rendered("text", whole, style) == (
        "[0.00-0.25] Hi\n[0.50-0.75] there.\n[2.00-2.25] 你\n[2.50-2.75] 好\n"
    )
    assert formats.rendered("tsv", whole, style) == (
        "start\tend\ttext\n0\t250\tHi\n500\t750\tthere.\n2000\t2250\t你\n2500\t2750\t好\n"
    )
    assert formats.rendered("srt", whole, style).startswith(
        "1\n00:00:00,000 --> 00:00:00,250\nHi\n\n2\n00:00:00,500 --> 00:00:00,750\nthere.\n\n3\n"
    )
    assert formats.rendered("vtt", whole, style).endswith("\n\n00:00:02.500 --> 00:00:02.750\n好\n\n")
    for form in ("json", "jsonl", "verbose_json"):
        assert formats.rendered(form, whole, style) == formats.rendered(form, whole, formats.Style())


def test_words_of_two_channels_are_in_order_of_time():
    """Overlapping turns are taken apart, each word under its channel's number."""
    whole = recording(
        spoken(0, "one two", ["one", "two"], start=0.0, channel=1),
        spoken(1, "three four", ["three", "four"], start=0.25, channel=2),
    )
    lines = formats.rendered("text", whole, formats.Style(words=True)).splitlines()
    assert [line.partition("] ")[2] for line in lines] == ["1: one", "2: three", "1: two", "2: four"]
    rows = formats.rendered("tsv", whole, formats.Style(words=True)).splitlines()
    assert [row.split("\t")[2] for row in rows] == ["channel", "1", "2", "1", "2"]


def test_what_has_no_words_stays_whole_among_words():
    """An engine that gives no words loses no text."""
    whole = recording(segment(1, 0, "all of it", words=[]))
    assert formats.rendered("text", whole, formats.Style(words=True)) == "[0.00-1.50] all of it\n"


def test_tsv_is_one_row_per_segment():
    """Tabs and line ends of a text cannot break a row; what has no text has no row."""
    whole = recording(segment(1, 0, "a\tb\nc"), segment(1, 1, " "))
    assert formats.tsv(whole) == "start\tend\ttext\n0\t1500\ta b\\nc\n"


def test_terminals_are_safe():
    """Escape sequences, controls and direction overrides are shown; letters of every script stay."""
    assert printable("\x1b[31m\n\x9b\u202ered") == "\\x1b[31m\\n\\x9b\\u202ered"
    assert printable("你好　안녕 ñ 😊") == "你好　안녕 ñ 😊"


STYLES = [{}, {"timestamps": True}, {"words": True}, {"max_line_width": 6, "max_line_count": 1}]


@pytest.mark.parametrize("form", formats.GROWING)
@pytest.mark.parametrize("style", STYLES)
@given(texts=st.lists(st.sampled_from(["", " ", "one two", "<a> --> b", "你好。"]), max_size=4))
def test_parts_are_the_whole(form, style, texts):
    """What is written segment by segment is what is written of the recording at its end."""
    events = [
        segment(
            1, index, text, words=[{"word": text[:2], "start": index * 2.0, "end": index * 2.0 + 0.34567}]
        )
        for index, text in enumerate(texts)
    ]
    style = formats.Style(**style)
    growing = formats.Growing(form, style)
    parts = [*map(growing.add, events), growing.end()]
    assert "".join(parts) == formats.rendered(form, recording(*events), style)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("<|en|><|HAPPY|><|Laughter|><|withitn|>Hello.", "😀Hello.😊"),
        ("<|zh|><|SAD|><|Speech|><|woitn|>你好 <|zh|><|SAD|><|Speech|><|woitn|>再见", "你好再见😔"),
        ("<|en|><|NEUTRAL|><|BGM|>One. <|en|><|NEUTRAL|><|BGM|>Two.", "🎼One.Two."),
        ("<|nospeech|><|Event_UNK|>", "❓"),
        ("<|en|><|NEUTRAL|><|Speech|>The.", ""),
        ("", ""),
    ],
)
def test_emoji_shows_events_in_front_and_emotions_behind(raw, shown):
    """The rendering of FunASR's demo, with its habits."""
    assert emoji(raw) == shown


@pytest.fixture(scope="module")
def funasr_postprocess():
    """FunASR's own function, from its file: importing the package would take ten seconds for forty lines."""
    package = importlib.util.find_spec("funasr")
    if package is None:
        pytest.skip("FunASR is not installed")
    return runpy.run_path(Path(package.origin).parent / "utils/postprocess_utils.py")[
        "rich_transcription_postprocess"
    ]


PIECES = [f"<|{mark}|>" for mark in MARKS] + [" ", "  ", "a", "The.", "你", "😊", "🎼", "❓", "<|", "|>"]


@pytest.mark.funasr
@settings(max_examples=2_000, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=30))
def test_emoji_equals_funasr(funasr_postprocess, pieces):
    """For any text with marks the rendering is FunASR's, to the byte."""
    raw = "".join(pieces)
    try:
        expected = funasr_postprocess(raw)
    except IndexError:  # it looks at the last character of what it has emptied
        return
    assert emoji(raw) == expected
