"""Where the time of a job goes: moments in, stages out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensevoiced.jobs import Decoded, Recognised
from sensevoiced.stages import Stages

NOTHING = None
"""The stages never look at what was recognised."""


def recognised(began_s, texts_s, ended_s):
    """One utterance's batch."""
    return Recognised(NOTHING, began_s, texts_s, ended_s)


def whole(timings):
    """What the stages add up to."""
    front_end_s = timings.frontend_s - timings.overlap_s
    engine_s = timings.wait_s + timings.engine_s + timings.richtext_s
    return timings.queued_s + front_end_s + engine_s + timings.serving_s


def test_a_short_recording_goes_through_one_stage_after_the_other():
    """One utterance: every moment has its stage, and serving is what lies between them."""
    stages = Stages(100.0)
    stages.handed(102.0)
    stages.front_end_ended(
        102.5, 101.0, Decoded(5.0, truncated=False, decode_s=0.25, features_s=0.5, vad_s=0.125)
    )
    stages.recognised(102.0, recognised(103.0, 104.5, 104.75))
    stages.returned(105.0)
    timings = stages.timings
    timings.settle(0.5, 6.0)
    assert (timings.queued_s, timings.wait_s, timings.engine_s, timings.richtext_s) == (1.5, 1.0, 1.5, 0.25)
    assert (timings.decode_s, timings.fbank_s, timings.vad_s, timings.frontend_s) == (0.25, 0.5, 0.125, 0.875)
    assert timings.overlap_s == 0.0
    assert timings.serving_s == 0.875
    assert whole(timings) == timings.total_s == 6.0


def test_two_utterances_of_one_batch_are_one_stretch():
    """Time at the engine counts once, however many utterances spend it there."""
    stages = Stages(0.0)
    stages.handed(1.0)
    stages.handed(2.0)
    stages.recognised(1.0, recognised(3.0, 5.0, 6.0))
    stages.recognised(2.0, recognised(3.0, 5.0, 6.0))
    timings = stages.timings
    assert (timings.wait_s, timings.engine_s, timings.richtext_s) == (2.0, 2.0, 1.0)


def test_an_utterance_that_waits_while_another_runs_is_not_waited_for():
    """The second one's wait begins when the first one's batch has ended."""
    stages = Stages(0.0)
    stages.handed(1.0)
    stages.handed(1.5)
    stages.recognised(1.0, recognised(2.0, 4.0, 4.0))
    stages.recognised(1.5, recognised(7.0, 8.0, 8.0))
    timings = stages.timings
    assert (timings.wait_s, timings.engine_s, timings.richtext_s) == (1.0 + 3.0, 2.0 + 1.0, 0.0)


def test_a_front_end_that_works_ahead_costs_nothing():
    """CPU seconds behind the engine's are overlap; those before its first utterance are not."""
    stages = Stages(0.0)
    stages.handed(2.0)
    stages.front_end_ended(6.0, 1.0, Decoded(60.0, truncated=False, decode_s=3.0, vad_s=0.5))
    stages.recognised(2.0, recognised(2.0, 9.0, 9.0))
    stages.returned(9.0)
    timings = stages.timings
    timings.settle(0.0, 9.5)
    assert (timings.frontend_s, timings.overlap_s) == (3.5, 2.5)
    assert (timings.queued_s, timings.engine_s, timings.serving_s) == (1.0, 7.0, 0.5)
    assert whole(timings) == 9.5


@pytest.mark.parametrize(("utterances", "queued_s"), [(1, 3.0), (0, 5.0)])
def test_a_front_end_that_does_not_say_when_it_began(utterances, queued_s):
    """It counts as queued for until its first utterance, or its end where there is none."""
    stages = Stages(0.0)
    for _ in range(utterances):
        stages.handed(3.0)
    stages.front_end_ended(5.0, None, Decoded(1.0, truncated=False))
    assert stages.timings.queued_s == queued_s


STEP = st.floats(0.0, 10.0)


@given(
    queue=STEP,
    first=STEP,
    utterances=st.lists(st.tuples(STEP, STEP, STEP, STEP, st.booleans()), max_size=12),
    frontend=st.floats(0.0, 50.0),
    rest=st.tuples(STEP, STEP),
)
def test_every_moment_counts_once(queue, first, utterances, frontend, rest):
    """Whatever the order of things, the stages add up to the whole and none is negative."""
    stages = Stages(0.0)
    begun_s = queue
    handed_s = begun_s + first
    free_s = 0.0
    events = []
    for apart, waits, runs, texts, together in utterances:
        handed_s += apart
        if together and events and events[-1][1].began_s >= handed_s:
            found = events[-1][1]
        else:
            began_s = max(handed_s, free_s) + waits
            found = recognised(began_s, began_s + runs, began_s + runs + texts)
        free_s = found.ended_s
        events.append((handed_s, found))
    decoded_s = handed_s + rest[0]
    moments = [(at_s, 0, ("handed", at_s, None)) for at_s, _ in events]
    moments += [(found.ended_s, 1, ("returned", at_s, found)) for at_s, found in events]
    moments.append((decoded_s, 2, ("decoded", decoded_s, None)))
    for now_s, _, (what, at_s, found) in sorted(moments, key=lambda moment: moment[:2]):
        if what == "handed":
            stages.handed(now_s)
        elif what == "returned":
            stages.returned(now_s)
            stages.recognised(at_s, found)
        else:
            stages.front_end_ended(now_s, begun_s, Decoded(1.0, truncated=False, decode_s=frontend))
    total_s = max(now_s for now_s, _, _ in moments) + rest[1]
    timings = stages.timings
    timings.settle(0.0, total_s)
    assert whole(timings) == pytest.approx(total_s)
    assert 0.0 <= timings.overlap_s <= timings.frontend_s
    assert min(timings.queued_s, timings.wait_s, timings.engine_s, timings.richtext_s) >= 0.0
    waited_s = total_s - timings.serving_s
    assert waited_s <= total_s + 1e-9
