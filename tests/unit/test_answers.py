"""What a front-end child says of its job, and what is refused of it."""

import math

import pytest

from sensevoiced.frontend.answers import Begun, Expected, Found, Progress, interpret
from sensevoiced.jobs import Decoded, JobError

EXPECTED = Expected(dim=4, max_frames=10, max_s=100.0)
UTTERANCE = {
    "type": "utterance",
    "index": 3,
    "start_s": 1.0,
    "end_s": 2.0,
    "frames": 2,
    "dim": 4,
    "channel": 2,
    "decoded_s": 5.0,
}
DONE = {
    "type": "done",
    "duration_s": 5.0,
    "truncated": True,
    "decode_s": 0.1,
    "features_s": 0.1,
    "vad_s": 0.1,
}
ERROR = {"type": "error", "code": "bad_input", "message": "No."}


def answer(message, size=0):
    """Interpret a message with so many bytes of features."""
    return interpret(message, memoryview(bytes(size)), 3, EXPECTED)


def test_what_a_child_says_is_understood():
    """Each kind of message becomes its noun."""
    assert answer({"type": "begun"}) == Begun()
    assert answer({"type": "progress", "decoded_s": 2}) == Progress(2.0)
    found = answer(UTTERANCE, 32)
    assert isinstance(found, Found)
    assert (found.utterance.index, found.utterance.frames, found.decoded_s) == (3, 2, 5.0)
    assert answer(DONE) == Decoded(5.0, True, 0.1, 0.1, 0.1)
    error = answer(ERROR)
    assert isinstance(error, JobError)
    assert (error.code, error.message) == ("bad_input", "No.")


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ({"type": "surprise"}, 0),
        ({"type": "begun"}, 4),
        ({"type": "progress"}, 0),
        ({"type": "progress", "decoded_s": math.nan}, 0),
        ({"type": "progress", "decoded_s": -1}, 0),
        ({"type": "progress", "decoded_s": 100.1}, 0),
        (DONE | {"duration_s": 1e300}, 0),
        (DONE | {"decode_s": math.inf}, 0),
        (UTTERANCE | {"end_s": 1e300}, 32),
        (UTTERANCE | {"decoded_s": 1e300}, 32),
        ({"type": "utterance"}, 0),
        (UTTERANCE, 31),
        (UTTERANCE | {"frames": 0}, 0),
        (UTTERANCE | {"frames": 2.0}, 32),
        (UTTERANCE | {"frames": 11}, 11 * 16),
        (UTTERANCE | {"frames": 4, "dim": 2}, 32),
        (UTTERANCE | {"channel": -1}, 32),
        (UTTERANCE | {"channel": True}, 32),
        (UTTERANCE | {"index": 2}, 32),
        (UTTERANCE | {"start_s": "0"}, 32),
        (UTTERANCE | {"start_s": 3.0}, 32),
        (DONE | {"duration_s": math.inf}, 0),
        ({"type": "done"}, 0),
        ({"type": "error"}, 0),
        (ERROR | {"code": "shutting_down"}, 0),
        (ERROR | {"code": ["bad_input"]}, 0),
        (ERROR | {"message": ""}, 0),
        (ERROR | {"message": 7}, 0),
        (ERROR | {"message": "x" * 5000}, 0),
    ],
)
def test_nonsense_is_refused(message, size):
    """What no child of ours would send raises ValueError, and nothing else."""
    with pytest.raises(ValueError, match=r"."):
        answer(message, size)
