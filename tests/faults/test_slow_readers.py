"""Section B of the abuse table: clients that do not read, or have closed one half of their connection."""

from __future__ import annotations

import contextlib
import select
import socket
import time

import pytest
from harness.abuse import latency_s
from harness.asking import ask, gate, idle, jobs
from harness.daemon import Canary, script, wait_until
from harness.figures import within
from harness.wire_client import TERMINAL, memfd, texts

from sensevoiced.config import ServingConfig
from svctl.framing import FrameReader, encode
from svctl.wire import MAX_FRAME_BYTES

MIB = 2**20
LONG = "x" * 20_000
LINES = 2_000
STEADY_LOOKS = 20
"""So many looks in a row at a counter that stays as it is: the daemon waits."""


class Recognised:
    """The counter of recognised utterances, and whether it has come to rest."""

    def __init__(self, daemon, client):
        self._client = client
        self._same = 0
        self.count = self.look()
        self.since_s = time.monotonic()

    def look(self):
        return self._client.status()["batches"]["utterances"]

    def rests(self):
        found = self.look()
        if found != self.count:
            self.count, self._same, self.since_s = found, 0, time.monotonic()
        self._same += 1
        return self._same > STEADY_LOOKS


def received(sock):
    """All bytes that are still to be had from a connection that has ended."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while more := sock.recv(MIB):
            data += more
    return data


@pytest.mark.parametrize("patience_s", [1.0, pytest.param(30.0, marks=pytest.mark.slow)])
def test_f14_a_client_that_does_not_read_is_given_up(start, record_property, patience_s):
    """What it does not read waits up to the write buffer's size, then its connection ends.

    Others are served.
    """
    daemon = start(settings=f"[serving]\nwrite_timeout_s = {patience_s}\nmax_outstanding_utterances = 1")
    canary = Canary(daemon)
    alone_s = latency_s(canary)
    before, limit = daemon.resident_bytes(), ServingConfig().max_write_buffer_bytes
    with daemon.client() as client, daemon.client() as watcher:
        size = len(encode(client.ask(0, memfd(script(LONG)))[0]))
        assert LINES * size > 8 * limit
        recognised = Recognised(daemon, watcher)
        first = recognised.count
        ask(client, 1, script(LONG) * LINES)
        wait_until(recognised.rests, "the buffer is full")
        produced = (recognised.count - first) * size
        grown = daemon.resident_bytes() - before
        beside_s = latency_s(canary, rounds=10)
        hang_up = select.poll()
        hang_up.register(client.socket, 0)
        wait_until(lambda: hang_up.poll(0), "given up", 3 * patience_s + 30)
        took_s = time.monotonic() - recognised.since_s
        data = received(client.socket)
    reader = FrameReader(MAX_FRAME_BYTES)
    reader.feed(data)
    assert {message["type"] for message in reader.messages()} <= {"segment", "progress"}
    # The kernel had some of it, and one segment waited for room in the buffer.
    kept = (produced - len(data) - size) / MIB
    within(record_property, "kept for a client that does not read", kept, limit / MIB, "MiB", slack=1)
    within(record_property, "RSS grew by", grown / MIB, 16, "MiB", slack=1)
    assert took_s > patience_s / 2
    within(record_property, f"given up, of {patience_s:g} s, late by", took_s - patience_s, 1, "s")
    within(record_property, "canary meanwhile", beside_s / alone_s, 1.2, "x")
    idle(daemon)
    assert jobs(daemon)["cancelled"] == 1
    canary.check()


@pytest.mark.parametrize("source", ["fd", "stream"])
def test_f15_a_half_close_after_the_request_is_still_answered(daemon, source):
    """`echo | nc -N` style: everything asked in full is answered, then the daemon closes too."""
    wall = gate()
    content = script("first", {"say": "second", "engine_gate": wall})
    with daemon.client() as client:
        if source == "fd":
            ask(client, 1, content)
        else:
            client.transcribe(1, source="stream")
            client.send({"type": "audio", "id": 1, "data": content})
            client.send({"type": "end", "id": 1})
        client.socket.shutdown(socket.SHUT_WR)
        daemon.wait_engine_at(wall)
        daemon.open_gate(wall)
        messages = [message for message in client.until_closed() if message["type"] != "progress"]
        assert texts(messages) == ["first", "second"]
        assert messages[-1]["type"] == "done"


def test_f15_a_half_close_before_the_end_of_an_upload_is_a_disconnect(daemon):
    """What was not asked in full is dropped, what was is answered."""
    before = jobs(daemon)["cancelled"]
    with daemon.client() as client:
        client.transcribe(1, source="stream")
        client.send({"type": "audio", "id": 1, "data": script("x")})
        ask(client, 2, script("whole"))
        client.socket.shutdown(socket.SHUT_WR)
        messages = client.until_closed()
        assert [message["id"] for message in messages if message["type"] in TERMINAL] == [2]
    assert jobs(daemon)["cancelled"] == before + 1


def test_f15_a_hang_up_after_a_half_close_drops_the_work(daemon):
    """Nobody is left to hear the answer."""
    before, wall = jobs(daemon)["cancelled"], gate()
    with daemon.client() as client:
        ask(client, 1, script({"say": "x", "decode_gate": wall}))
        client.socket.shutdown(socket.SHUT_WR)
    idle(daemon)
    assert jobs(daemon)["cancelled"] == before + 1
