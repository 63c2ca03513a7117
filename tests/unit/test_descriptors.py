"""How many descriptors may be on their way out, where a file system does not answer their close."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
from harness.daemon import wait_until
from harness.sessions import Running, Service
from harness.wire_client import memfd

from sensevoiced import descriptors
from sensevoiced.descriptors import Closing, close_later, closing


@pytest.fixture
def wall(monkeypatch):
    """No close returns before this is set; the descriptors whose close was asked for are in `wall.asked`."""
    gate, close = threading.Event(), os.close
    gate.asked = []

    def slow(fd):
        gate.asked.append(fd)
        assert gate.wait(30)
        close(fd)

    monkeypatch.setattr(descriptors, "os", type("os", (), {"close": staticmethod(slow)}))
    yield gate
    gate.set()
    wait_until(lambda: not closing, "all closed")


def test_what_hangs_is_counted_by_user(monkeypatch):
    """What one user's may hold does not keep others from theirs; all together are limited too."""
    monkeypatch.setattr(descriptors, "MAX_CLOSING", 2 * descriptors.MAX_CLOSING_PER_USER)
    mine = Closing()
    for _ in range(descriptors.MAX_CLOSING_PER_USER):
        assert not mine.full(1)
        mine.began(1)
    assert mine.full(1)
    assert not mine.full(2)
    for _ in range(descriptors.MAX_CLOSING_PER_USER):
        mine.began(2)
    assert mine.full(3)
    mine.ended(1)
    assert not mine.full(3)
    for _ in range(2 * descriptors.MAX_CLOSING_PER_USER):
        mine.began(2)  # connections, which nothing keeps from ending
    assert not mine.full(3), "one user's count for that user's share and no more"
    for _ in range(2 * descriptors.MAX_CLOSING_PER_USER):
        mine.ended(2)
    assert not mine.full(1)
    assert mine.full(2)
    assert len(mine) == descriptors.MAX_CLOSING - 1


def test_closing_does_not_wait(wall):
    """The caller goes on, the close is counted, and the descriptor goes when its file system says so."""
    fd = memfd(b"x")
    close_later(fd, 1)
    wait_until(lambda: wall.asked == [fd], "the thread at the wall")
    assert len(closing) == 1
    wall.set()
    wait_until(lambda: not closing, "closed")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_user_whose_closes_hang_gets_no_further_descriptor_in(wall, monkeypatch):
    """Requests that are refused bring descriptors too: the one too many ends its connection with `busy`."""
    monkeypatch.setattr(descriptors, "MAX_CLOSING_PER_USER", 3)
    fd = memfd(b"x")
    refused = {"source": "fd", "language": "klingon"}
    with Running(Service([asyncio.Event()])) as running:
        for request in range(3):
            assert running.client.ask(request, fd, **refused)[-1]["code"] == "invalid_request"
        assert running.client.ping()["type"] == "pong"
        running.client.transcribe(3, fd)
        *_, error = running.client.until_closed()
        assert (error["code"], error["id"]) == ("busy", None)
        assert "do not answer" in error["message"]
        # The connection too: it holds the one that was not received.
        wait_until(lambda: len(wall.asked) == 4, "four threads at the wall")
        assert len(closing) == 4
    assert running.error is None
    os.close(fd)


def test_a_descriptor_that_cannot_even_be_counted_is_closed(monkeypatch):
    """Whoever gives one away relies on it."""

    def lacking(_):
        raise MemoryError

    monkeypatch.setattr(closing, "began", lacking)
    fd = memfd(b"x")
    close_later(fd, 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert not closing
