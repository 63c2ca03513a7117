"""What a front-end child keeps of the jobs it has done: nothing."""

from __future__ import annotations

import gc
import os
import socket
import weakref

import pytest

from sensevoiced.frontend import worker
from sensevoiced.frontend.channel import pack, unpack


class Kept:
    """Part of a cycle, as a recording and what reads it are."""


@pytest.fixture
def no_collector():
    """Leave collecting to whoever asks for it."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_what_a_job_leaves_is_gone_before_the_child_says_that_it_is_free(monkeypatch):
    """Objects that hold each other, and with them a recording, do not wait for hundreds of jobs more."""
    left = []

    def run_job(*_):
        one, other = Kept(), Kept()
        one.other, other.other = other, one
        left.append(weakref.ref(one))
        return True

    monkeypatch.setattr(worker, "run_job", run_job)
    parents, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    job, rest = socket.socketpair()
    recording = os.memfd_create("recording")
    with parents, childs, job, rest:
        socket.send_fds(parents, [pack({"type": "job"})], [recording, job.fileno()])
        assert worker.take(None, childs)
        assert unpack(parents.recv(4096)) == {"type": "idle"}
    os.close(recording)
    assert [reference() for reference in left] == [None]
