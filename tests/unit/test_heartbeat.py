"""What systemd is told of an engine that works, hangs, recovers, or fails at everything."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sensevoiced.config import BatchLimits, Config
from sensevoiced.heartbeat import HEARTBEAT_S, Heartbeat


class Manager:
    """Writes down what it is told."""

    def __init__(self):
        self.told = []

    def watchdog(self):
        self.told.append("alive")

    def status(self, sentence):
        self.told.append(sentence.split()[0])

    def loading(self, sentence, extend_s):
        self.told.append("more time")


@pytest.fixture
def manager():
    """The service manager."""
    return Manager()


def heartbeat(manager, tmp_path, *, watchdog_s=None):
    """One with small limits."""
    limits = BatchLimits(stuck_after_s=10.0, max_failures_in_a_row=3)
    config = Config(socket=tmp_path, models_dir=tmp_path, batch=limits, load_timeout_s=60.0)
    return Heartbeat(manager, config, model="m", watchdog_s=watchdog_s)


def batches(*, age_s=0.0, failed=0, ended=False):
    """What the batcher reports."""
    return SimpleNamespace(oldest_batch_age_s=age_s, failed_in_a_row=failed, ended=ended)


def test_a_batch_that_is_stuck_is_told_once_and_its_end_too(manager, tmp_path):
    """Alive up to the limit, then one sentence and silence, and signs of life again afterwards."""
    heart = heartbeat(manager, tmp_path)
    for age_s in (0.0, 10.0, 10.1, 11.0, 0.0, 0.0):
        heart._look_at(batches(age_s=age_s), pytest.fail)
    assert manager.told == ["alive", "alive", "Stuck:", "alive", "The", "alive"]


def test_an_engine_that_fails_at_everything_is_given_up(manager, tmp_path):
    """At the limit, with the number of failures in the reason."""
    heart, heard = heartbeat(manager, tmp_path), []
    for failed in (0, 2, 3):
        heart._look_at(batches(failed=failed), heard.append)
    assert heard == ["3 utterances in a row failed"]


def test_an_engine_whose_thread_has_ended_is_given_up(manager, tmp_path):
    """It is idle for ever and fails at nothing: no sign of life may hide that, and the reason says it."""
    heart, heard = heartbeat(manager, tmp_path), []
    for _ in range(2):
        heart._look_at(batches(ended=True), heard.append)
    assert [reason.split(",")[0] for reason in heard] == ["the engine thread has ended"] * 2
    assert not manager.told


def test_time_for_loading_is_asked_for_until_the_limit(manager, tmp_path, caplog):
    """After load_timeout_s nothing more is asked for, which is logged once."""
    heart = heartbeat(manager, tmp_path)
    for since_s in (0.0, 59.9, 60.0, 61.0):
        heart._while_loading(since_s)
    assert manager.told == ["more time"] * 2
    assert len(caplog.records) == 1


def test_a_short_deadline_is_met_three_times(manager, tmp_path):
    """The daemon looks at itself every second, and more often where systemd wants to hear of it sooner."""
    assert heartbeat(manager, tmp_path)._every_s == HEARTBEAT_S
    assert heartbeat(manager, tmp_path, watchdog_s=30.0)._every_s == HEARTBEAT_S
    assert heartbeat(manager, tmp_path, watchdog_s=1.5)._every_s == 0.5
