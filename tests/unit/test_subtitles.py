"""svctl/subtitles.py: lines that fit, times of the words, and nothing lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from svctl.subtitles import columns, cues


def segment(*words, spaces=True, seconds=1.0):
    """A segment of these words, one after the other."""
    return {
        "start": 0.0,
        "end": len(words) * seconds + 0.5,
        "text": (" " if spaces else "").join(words),
        "words": [
            {"word": word, "start": at * seconds, "end": at * seconds + 0.75 * seconds}
            for at, word in enumerate(words)
        ],
    }


def test_lines_break_between_words_and_cues_take_the_words_times():
    """Two lines a cue; the first begins and the last ends with the segment."""
    found = cues(segment(*["one", "two", "three", "four", "five"]), 9, 2)
    assert [cue.lines for cue in found] == [("one two", "three"), ("four five",)]
    assert [(cue.start, cue.end) for cue in found] == [(0.0, 2.75), (3.0, 5.5)]


def test_a_segment_stays_one_cue_without_a_count():
    """Only its lines are divided."""
    (cue,) = cues(segment(*["one", "two", "three", "four"]), 8, None)
    assert cue == (0.0, 4.5, ("one two", "three", "four"))


def test_wide_characters_take_two_columns_and_punctuation_stays_behind():
    """Ten columns hold five characters; a line never begins with what closes the one before."""
    (cue,) = cues(segment(*"今天天气很好。我们走吧！", spaces=False), 10, None)
    assert cue.lines == ("今天天气很", "好。我们走", "吧！")
    assert all(columns(line) <= 10 and line[0] not in "。！" for line in cue.lines)
    assert columns("a\u0301b你") == 4


def test_a_word_that_no_line_holds_is_cut():
    """Into pieces that fit, with nothing lost."""
    (cue,) = cues(segment("to", "incomprehensibilities"), 8, None)
    assert cue.lines == ("to", "incompre", "hensibil", "ities")


def test_words_that_are_not_the_texts_do_no_harm():
    """The text is what is shown; times are then the segment's."""
    odd = segment("one", "two") | {"text": "three four five"}
    assert [cue.lines for cue in cues(odd, 10, 1)] == [("three four",), ("five",)]
    assert [cue.lines for cue in cues(odd | {"words": []}, 10, 1)] == [("three four",), ("five",)]


def test_who_speaks_takes_room_in_the_first_line_of_each_subtitle_alone():
    """Lines of nine columns: six of them are left beside `1: `, and all nine below it."""
    found = cues(segment("one", "two", "three", "four", "five", "six"), 9, 2, "1: ")
    assert [cue.lines for cue in found] == [("1: one", "two three"), ("1: four", "five six")]


@given(
    st.lists(st.text(st.sampled_from("abcdefgh你好。,"), min_size=1, max_size=12), min_size=1, max_size=12),
    st.integers(2, 40),
    st.none() | st.integers(1, 3),
    st.sampled_from(["", "1: ", "16: "]),
)
def test_nothing_is_lost_and_every_line_fits(words, width, count, label):
    """Whatever is said, the lines hold all of it, within the width, in order of time; who speaks counts."""
    width += columns(label)
    whole = segment(*words)
    found = cues(whole, width, count, label)
    assert all(cue.lines[0].startswith(label) for cue in found)
    shown = "".join("".join(cue.lines).removeprefix(label) for cue in found)
    assert shown.replace(" ", "") == "".join(words)
    assert all(columns(line) <= width for cue in found for line in cue.lines)
    assert all(cue.start <= cue.end for cue in found)
    assert [cue.start for cue in found] == sorted(cue.start for cue in found)
    assert count is None or all(len(cue.lines) <= count for cue in found)
