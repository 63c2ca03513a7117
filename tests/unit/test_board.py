"""Who sees and ends whose jobs: serving/board.py, and the two requests that reach it."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace

import pytest

from sensevoiced.serving.board import Board
from sensevoiced.serving.listener import Peer
from svctl.framing import encode
from svctl.wire import MAX_JOB_LABEL_CHARS, MAX_JOBS, WireError

ALICE, BOB = (Peer(pid=number, uid=number, gid=number) for number in (65_001, 65_002))
SELF = Peer(pid=os.getpid(), uid=os.geteuid(), gid=os.getegid())
ROOT = Peer(pid=1, uid=0, gid=0)


class Job(SimpleNamespace):
    """Told apart as a job is: by being that one."""

    __hash__ = object.__hash__


def job(label="call.wav"):
    """As much of a Job as the board looks at."""
    times = {"began_s": 0.0, "decoded_s": 2.0, "recognised_s": 1.5}
    return Job(label=label, state="waiting", waits_for="share", **times)


def on_loop(function):
    """Call it on a running loop, whose clock tells the ages."""

    async def main():
        return function()

    return asyncio.run(main())


@pytest.fixture
def board():
    """Two jobs of Alice, one of Bob; what was cancelled is noted."""
    found = Board()
    found.cancelled = []
    for peer, name in ((ALICE, "a1"), (BOB, "b"), (ALICE, "a2")):
        found.last = job(name)
        found.add(peer, found.last, lambda name=name: found.cancelled.append(name))
    return found


def test_everybody_sees_their_own_and_root_all(board):
    """Oldest first, under numbers that do not change."""

    def seen(peer):
        return [(one["job"], one["label"]) for one in on_loop(lambda: board.jobs(peer))]

    assert seen(ALICE) == [(1, "a1"), (3, "a2")]
    assert seen(BOB) == [(2, "b")]
    assert seen(ROOT) == seen(SELF) == [(1, "a1"), (2, "b"), (3, "a2")]
    for _ in range(2):  # the second time is harmless
        board.remove(board.last)
    assert seen(ALICE) == [(1, "a1")]


def test_nobody_ends_another_users_job(board):
    """It is not there for them; root ends any."""
    for number in (2, 99):
        with pytest.raises(WireError, match=f"no unfinished job {number}") as caught:
            board.cancel(ALICE, number)
        assert caught.value.code == "not_found"
    board.cancel(ALICE, 3)
    board.cancel(ROOT, 2)
    assert board.cancelled == ["a2", "b"]


def test_the_longest_answer_fits_a_frame():
    """Labels are cut and the list ends, whatever clients call their recordings."""
    board = Board()
    for _ in range(MAX_JOBS + 10):
        board.add(ALICE, job("\U0001f600" * 4_096), lambda: None)
    found = on_loop(lambda: board.jobs(ALICE))
    assert (len(found), len(found[0]["label"])) == (MAX_JOBS, MAX_JOB_LABEL_CHARS)
    encode({"type": "jobs", "id": 1, "jobs": found})
