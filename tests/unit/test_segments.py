"""Cutting and joining of VAD segments into utterances."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sensevoiced.frontend.segments import UtterancePlan, quietest_frame
from sensevoiced.frontend.vad import Segment

LIMITS = {"max_frames": 3000, "merge_frames": 1500, "gap_frames": 50}


def plan(quietest=lambda first, last: last, **limits):
    """Make a plan with the product's limits, which cuts as late as it may."""
    return UtterancePlan(**{**LIMITS, **limits}, quietest=quietest)


def run(segments, **limits):
    """Feed closed segments and give all utterances."""
    joined = plan(**limits)
    return [out for segment in segments for out in joined.close(segment)] + joined.finish()


segment_lists = st.lists(st.tuples(st.integers(0, 400), st.integers(3, 7000)), min_size=0, max_size=20).map(
    lambda pairs: [
        Segment(start, start + length)
        for start, length in (
            (sum(gap + size for gap, size in pairs[:at]) + pairs[at][0], pairs[at][1])
            for at in range(len(pairs))
        )
    ]
)


@settings(deadline=None)
@given(segments=segment_lists)
def test_utterances_cover_exactly_the_speech_and_short_gaps(segments):
    """Every frame of a segment is in one utterance, in order; the rest of one is gaps of at most 0.5 s."""
    utterances = run(segments)
    assert all(a.end <= b.start for a, b in pairwise(utterances))
    assert all(0 < u.end - u.start <= 3000 for u in utterances)
    spoken = np.zeros(200_000, bool)
    for segment in segments:
        spoken[segment.start : segment.end] = True
    for utterance in utterances:
        inside = spoken[utterance.start : utterance.end]
        silent = np.diff(np.flatnonzero(np.concatenate(([True], inside, [True])))) - 1
        assert silent.max(initial=0) <= 50
        spoken[utterance.start : utterance.end] = False
    assert not spoken.any()


@settings(deadline=None)
@given(segments=segment_lists)
def test_joined_utterances_stay_within_the_merge_length(segments):
    """Only what was one segment may be longer than merge_length_s."""
    starts = {segment.start for segment in segments}
    for utterance in run(segments):
        pieces = [start for start in starts if utterance.start < start < utterance.end]
        assert not pieces or utterance.end - utterance.start <= 1500


@settings(deadline=None)
@given(segments=segment_lists, data=st.data())
def test_utterances_do_not_depend_on_how_the_open_segment_grows(segments, data):
    """Seeing a segment grow, and silence pass, gives the utterances that closed segments alone give."""
    watched = plan()
    seen = []
    at = 0
    for segment in segments:
        if segment.start > at:
            seen += watched.silence(data.draw(st.integers(at, segment.start), label="silence until"))
        for end in sorted(
            data.draw(st.lists(st.integers(segment.start, segment.end), max_size=4), label="ends")
        ):
            seen += watched.grow(segment.start, end)
        seen += watched.close(segment)
        at = segment.end
    assert seen + watched.finish() == run(segments)


def test_a_two_second_pause_is_never_joined():
    """The pauses between languages stay boundaries, whatever the joined length would be."""
    assert run([Segment(0, 100), Segment(300, 400)]) == [Segment(0, 100), Segment(300, 400)]


def test_near_neighbours_are_joined():
    """Two short segments half a second apart make one utterance."""
    assert run([Segment(0, 100), Segment(150, 400)]) == [Segment(0, 400)]


def test_a_long_segment_is_cut_at_the_quietest_frame():
    """The place is asked for in the last third of 30 s, and again for the rest."""
    asked = []

    def quietest(first, last):
        asked.append((first, last))
        return first + 500

    assert run([Segment(100, 6100)], quietest=quietest) == [
        Segment(100, 2600),
        Segment(2600, 5100),
        Segment(5100, 6100),
    ]
    assert asked == [(2100, 3100), (4600, 5600)]


def test_an_utterance_leaves_as_soon_as_nothing_can_be_joined_to_it():
    """Once silence has outlasted the gap, the pending utterance is given without waiting for the next."""
    waiting = plan()
    assert waiting.close(Segment(0, 100)) == []
    assert waiting.silence(150) == []
    assert waiting.silence(151) == [Segment(0, 100)]


def test_the_quietest_frame_is_the_pause_between_words():
    """Of a stretch of speech with one pause, the middle of the pause is taken."""
    speech = np.full(1000, 0.99)
    mel = np.full((1000, 80), 12.0, np.float32)
    mel += np.random.default_rng(1).normal(0, 0.1, mel.shape).astype(np.float32)
    speech[600:630] = 0.3
    mel[600:630] -= 5
    assert 605 <= quietest_frame(speech, mel) <= 625


@settings(deadline=None)
@given(segments=segment_lists, max_frames=st.integers(300, 3000), merge_frames=st.integers(0, 6000))
def test_joining_never_undoes_a_cut(segments, max_frames, merge_frames):
    """No utterance is longer than one may be, whatever length may be joined."""
    utterances = run(segments, max_frames=max_frames, merge_frames=merge_frames)
    assert all(u.end - u.start <= max_frames for u in utterances)
    if segments:
        assert (utterances[0].start, utterances[-1].end) == (segments[0].start, segments[-1].end)
