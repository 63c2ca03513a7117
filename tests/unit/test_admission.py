"""Who may add how much work."""

from __future__ import annotations

import dataclasses

import pytest

from sensevoiced.config import ServingConfig
from sensevoiced.serving.admission import MAX_RETRY_MS, MIN_RETRY_MS, Admission
from svctl.wire import WireError

ALICE, BOB = 1000, 1001
LIMITS = ServingConfig(
    max_connections=3,
    max_connections_per_uid=2,
    max_jobs=4,
    max_jobs_per_connection=2,
    max_queued_audio_s=150.0,
    max_queued_audio_per_uid_s=100.0,
    max_job_charge_s=60.0,
    assumed_bytes_per_s=1,
)


def admission(rtf=None, **changes):
    """The limits above, changed here and there."""
    return Admission(dataclasses.replace(LIMITS, **changes), lambda: rtf)


def test_f10_connections_are_capped_by_user_and_in_all():
    """One user's connections leave room for another's, and what is closed may be opened again."""
    door = admission()
    door.connect(ALICE)
    door.connect(ALICE)
    with pytest.raises(WireError, match="one user") as caught:
        door.connect(ALICE)
    assert caught.value.code == "too_many_connections"
    door.connect(BOB)
    with pytest.raises(WireError, match="The daemon has 3 connections"):
        door.connect(BOB)
    door.disconnect(ALICE)
    door.connect(BOB)
    assert door.connections == 3


def test_jobs_are_capped_by_connection_and_in_all():
    """A job beyond either cap is `busy`, with a time to come back."""
    door = admission()
    with pytest.raises(WireError, match="This connection has 2"):
        door.admit(ALICE, 2)
    for _ in range(4):
        door.admit(ALICE, 0)
    with pytest.raises(WireError, match="The daemon has 4") as caught:
        door.admit(BOB, 0)
    assert caught.value.code == "busy"
    assert caught.value.retry_after_ms == MIN_RETRY_MS


def test_jobs_are_capped_by_user():
    """One user's jobs, however many connections they come over, leave room for another's."""
    door = admission(max_jobs_per_uid=2)
    ticket = door.admit(ALICE, 0)
    door.admit(ALICE, 0)
    with pytest.raises(WireError, match=f"User {ALICE} has 2 unfinished requests") as caught:
        door.admit(ALICE, 0)
    assert caught.value.code == "busy"
    door.admit(BOB, 0)
    ticket.release()
    door.admit(ALICE, 0)


def test_f17_queued_audio_is_capped_by_user_and_in_all():
    """What no longer fits is `busy`; what comes to an empty queue fits, whatever its length."""
    door = admission()
    door.admit(ALICE, 0).charge_bytes(10**9)
    assert door.queued_audio_s == 60.0
    door.admit(ALICE, 0).charge_bytes(40)
    with pytest.raises(WireError, match=f"User {ALICE} has 100 s"):
        door.admit(ALICE, 0).charge_bytes(1)
    with pytest.raises(WireError, match="The daemon has 100 s"):
        door.admit(BOB, 0).charge_bytes(55)


def test_recognised_audio_is_given_back():
    """A job counts for what is left of it, as far as known, and for nothing once it is released."""
    door = admission()
    ticket = door.admit(ALICE, 0)
    ticket.charge_bytes(50)
    ticket.progress(decoded_s=30.0, recognised_s=20.0)
    assert door.queued_audio_s == 30.0
    ticket.progress(decoded_s=70.0, recognised_s=20.0)
    assert door.queued_audio_s == 50.0
    ticket.release()
    ticket.release()
    ticket.progress(decoded_s=99.0, recognised_s=0.0)
    assert (door.queued_audio_s, door.jobs) == (0, 0)


def test_the_time_to_come_back_follows_the_measured_speed():
    """What has to be worked off first, at the measured RTF, within sensible ends."""
    for rtf, expected_ms in ((0.1, 4_000), (1e-9, MIN_RETRY_MS), (100.0, MAX_RETRY_MS), (None, 4_000)):
        door = admission(rtf, max_queued_audio_per_uid_s=60.0)
        door.admit(ALICE, 0).charge_bytes(60)
        with pytest.raises(WireError) as caught:
            door.admit(ALICE, 0).charge_bytes(40)
        assert caught.value.retry_after_ms == expected_ms


def test_limits_may_change_while_jobs_run():
    """A reload replaces the limits, and running jobs are still given back in full."""
    door = admission()
    ticket = door.admit(ALICE, 0)
    ticket.charge_bytes(60)
    door.limits = dataclasses.replace(LIMITS, max_job_charge_s=10.0, max_jobs=1)
    with pytest.raises(WireError):
        door.admit(BOB, 0)
    ticket.release()
    assert door.queued_audio_s == 0
    door.admit(BOB, 0)


def test_what_a_job_passes_over_is_charged_until_it_is_decoded():
    """Its `start` is anything that its client says: a late one is no way around the queue's limit."""
    found = admission(max_job_charge_s=1000.0)
    ticket = found.admit(ALICE, 0)
    ticket.charge_bytes(600)
    ticket.progress(0.0, 500.0)
    assert found.queued_audio_s == 600.0
    ticket.progress(400.0, 500.0)
    assert found.queued_audio_s == 200.0
    ticket.progress(600.0, 550.0)
    assert found.queued_audio_s == 50.0
