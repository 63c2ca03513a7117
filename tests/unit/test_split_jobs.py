"""What a job of many channels may cost, and how soon it hears that nobody wants it any more."""

from __future__ import annotations

import os
import socket

import numpy as np
import pytest
from harness.energy_vad import speech
from harness.pools import memfd

from sensevoiced.config import FrontendConfig
from sensevoiced.frontend import job
from sensevoiced.frontend.channel import HEAD, unpack
from sensevoiced.frontend.pipeline import Frontend, Pass, _Track
from sensevoiced.frontend.source import Stopped

CHANNELS = 16
CPU_S = 100


@pytest.fixture(scope="module")
def frontend(models):
    """What a child loads, with a budget that is known."""
    asr, vad = models
    return Frontend.load(
        FrontendConfig(child_cpu_s=CPU_S),
        asr.frontend,
        vad_spec=vad.frontend,
        vad_weights=vad.weights,
        vad_config=vad.config,
    )


@pytest.fixture
def budgets(monkeypatch):
    """The CPU seconds that jobs were given, one after another, which this process is spared."""
    given = []
    monkeypatch.setattr(job, "arm_cpu_limit", given.append)
    return given


@pytest.fixture
def pair():
    """A job's socket and our end of it."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**22)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def conversation(seconds):
    """A recording of a channel each for sixteen people, all of whom talk."""
    return memfd(np.stack([speech(seconds, seed=n) for n in range(CHANNELS)], axis=1))


def run(frontend, fd, sock, channels):
    """Do the job, as a child does."""
    part = {"channels": channels, "start_s": 0.0, "duration_s": 0.0}
    try:
        return job.run_job(frontend, fd, sock, {"part": part, "vad": True})
    finally:
        os.close(fd)


def heard(ours):
    """What the parent was told: the messages without their features."""
    said, messages = b"", []
    while True:
        try:
            said += ours.recv(2**20)
        except BlockingIOError:
            break
    while said:
        header_bytes, payload_bytes = HEAD.unpack_from(said)
        messages.append(unpack(said[HEAD.size : HEAD.size + header_bytes]))
        said = said[HEAD.size + header_bytes + payload_bytes :]
    return messages


@pytest.mark.parametrize(
    ("channels", "budget_s"), [("split", CHANNELS * CPU_S), ("mix", CPU_S), ("3", CPU_S)]
)
def test_each_channel_that_is_told_apart_has_a_budget(frontend, budgets, pair, channels, budget_s):
    """As it would have, had it been sent alone; a mix or one channel is one recording's work."""
    ours, theirs = pair
    assert run(frontend, conversation(2.0), theirs, channels)
    assert (budgets[0], budgets[-1]) == (CPU_S, budget_s)
    *_, done = heard(ours)
    assert done["type"] == "done"


def test_a_job_called_off_ends_after_the_channel_at_hand(frontend, budgets, pair, monkeypatch):
    """Not after all sixteen of the block, which may be more than the second after which a child is killed."""
    ours, theirs = pair
    accept, worked = _Track.accept, []

    def accept_and_be_left(track, samples):
        worked.append(track)
        if len(worked) == CHANNELS + 3:
            ours.close()
        return accept(track, samples)

    monkeypatch.setattr(_Track, "accept", accept_and_be_left)
    assert run(frontend, conversation(20.0), theirs, "split")
    assert len(worked) == CHANNELS + 3


def test_a_job_called_off_at_the_end_ends_there_too(frontend):
    """What is left of each channel at a recording's end is work as well."""

    def asked_until(last):
        asked = 0

        def between():
            nonlocal asked
            asked += 1
            if asked == last:
                raise Stopped

        fd = conversation(1.0)
        recording = job.Recording(fd, FrontendConfig(), part=job.Part(channels="split"))
        try:
            for _ in Pass(frontend, recording, vad=True, between=between).stretches():
                pass
        except Stopped:
            pass
        finally:
            os.close(fd)
        return asked

    everything = asked_until(None)
    assert everything % CHANNELS == 0
    assert asked_until(everything - 3) == everything - 3
