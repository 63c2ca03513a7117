"""Which failures of utterances say that the device is broken: those that end the daemon for all."""

from __future__ import annotations

import pytest

from sensevoiced.config import BatchLimits
from sensevoiced.engine.api import OutOfMemory
from sensevoiced.engine.runner import SMALL_FRAMES, Item, Runner
from sensevoiced.jobs import JobError, Options, Recognition, Utterance

MOST = 4
"""Failures in a row, of these runners."""
FRAME_S = 0.06


class Device:
    """Has memory for batches up to so many frames."""

    def __init__(self, fits):
        self.fits = fits
        self.runner = Runner(self.run, BatchLimits(max_failures_in_a_row=MOST))

    def run(self, batch):
        if sum(utterance.frames for utterance, _ in batch) > self.fits:
            raise OutOfMemory("as the test says")
        return [Recognition("en", 1.0, "", 1.0, "", 1.0, itn=True, text="", raw="") for _ in batch]

    def ask(self, *lengths, vad=True):
        """What becomes of one batch of utterances of these lengths, in frames."""
        batch = [
            Item(1, 1, (Utterance(n, 0.0, frames * FRAME_S, b"", frames, 0), Options(vad=vad)), None)
            for n, frames in enumerate(lengths)
        ]
        return [outcome for _, outcome in self.runner.work_off(batch)]

    @property
    def in_a_row(self):
        return self.runner.failed_in_a_row


def test_what_never_fitted_says_nothing_of_the_device():
    """However often it is sent, alone or in batches: its requests fail, and the daemon stays."""
    device = Device(fits=500)
    for _ in range(3 * MOST):
        (error,) = device.ask(1_000)
        assert error.code == "internal"
    device.ask(1_000, 600, 900)
    assert (device.in_a_row, device.runner.failed) == (0, 3 * MOST + 3)


@pytest.mark.parametrize("frames", [1, SMALL_FRAMES])
def test_what_has_to_fit_and_does_not_counts(frames):
    """Without memory for two seconds of speech nobody can be served: the end comes with the limit."""
    device = Device(fits=0)
    for failed in range(1, MOST + 1):
        device.ask(frames)
        assert device.in_a_row == failed


def test_what_fitted_before_and_does_not_any_more_counts():
    """Then something has changed that a fresh start may mend; what is longer still says nothing."""
    device = Device(fits=500)
    device.ask(200)
    device.ask(500)
    device.fits = 50
    device.ask(501)
    assert device.in_a_row == 0
    device.ask(500)
    device.ask(499, 501)
    assert device.in_a_row == 2
    device.ask(50)
    assert device.in_a_row == 0


def test_a_success_in_the_same_batch_ends_the_row():
    """As long as anything succeeds the device works."""
    device = Device(fits=0)
    device.ask(10)
    assert device.in_a_row == 1
    device.fits = 10
    _, fine = device.ask(20, 10)
    assert isinstance(fine, Recognition)
    assert device.in_a_row == 0


@pytest.mark.parametrize(("vad", "remedy"), [(True, "max_utterance_s"), (False, "leave VAD on")])
def test_the_refusal_names_length_and_remedy(vad, remedy):
    """One sentence, for whoever sent it."""
    (error,) = Device(fits=500).ask(1_000, vad=vad)
    assert isinstance(error, JobError)
    assert "too little memory for an utterance of 60.0 s" in error.message
    assert remedy in error.message


def test_other_failures_count_whatever_their_length():
    """A model that fails for another reason than memory may be broken at any length."""
    device = Device(fits=10**6)
    device.runner = Runner(lambda batch: [], BatchLimits(max_failures_in_a_row=MOST))
    device.ask(1_000)
    device.ask(5_000)
    assert device.in_a_row == 2
