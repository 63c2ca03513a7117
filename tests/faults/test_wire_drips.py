"""F03: peers that say nothing, or say it a byte at a time."""

from __future__ import annotations

import contextlib
import select
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness.abuse import latency_s, only_error
from harness.daemon import Canary
from harness.figures import within

from svctl.framing import encode

HELLO_S, FRAME_S = 5.0, 10.0
"""The defaults of hello_timeout_s and frame_timeout_s."""
DRIP_S = 1.0
"""Between two bytes of one peer."""
LATE_S = 1.0
PEERS_OF_A_KIND = 16
CLAIMED = (60_000).to_bytes(4, "big")
"""The header of a frame that nobody waits for."""

KINDS = {
    # kind: (whether it says hello, what it says at once, what it says byte by byte, its deadline)
    "says nothing": (False, b"", b"", HELLO_S),
    "drips its hello": (False, b"", encode({"type": "hello", "major": 1, "minor": 0}), HELLO_S),
    "drips a header": (True, b"", CLAIMED + bytes(300), FRAME_S),
    "drips a body": (True, CLAIMED + b"\x83", bytes(300), FRAME_S),
}


class Dripping:
    """A peer of one kind, from the start of its clock to its end."""

    def __init__(self, daemon, kind, scale):
        greets, at_once, drips, deadline_s = KINDS[kind]
        self.kind = kind
        self.deadline_s = deadline_s * scale
        self.began_s = time.monotonic()
        self.ended_s = None
        self.client = daemon.client(hello=greets)
        self._drips = [drips[n : n + 1] for n in range(len(drips))]
        if greets:
            self.began_s = time.monotonic()
        if at_once:
            self.client.send_raw(at_once)
        else:
            self.drip()

    def drip(self):
        """Say the next byte, heard or not."""
        if self._drips:
            with contextlib.suppress(ConnectionError):
                self.client.send_raw(self._drips.pop(0))


def drip_to_the_end(peers, every_s):
    """Let all of them drip until the daemon has given up each, and note when that was."""
    left = {peer.client.socket: peer for peer in peers}
    due_s = time.monotonic() + every_s
    while left:
        for sock in select.select(list(left), [], [], max(0.0, due_s - time.monotonic()))[0]:
            left.pop(sock).ended_s = time.monotonic()
        if time.monotonic() >= due_s:
            due_s += every_s
            for peer in left.values():
                peer.drip()


@pytest.mark.parametrize(
    "scale", [0.1, pytest.param(1.0, marks=pytest.mark.slow)], ids=["a tenth of the time", "in full"]
)
def test_f03_who_drips_is_cut_off_and_keeps_nobody_waiting(start, scale, record_property):
    """64 at once: each gets `timeout` when its deadline has passed, and is counted; others are served.

    Row changed: before hello there is one deadline, 5 s, whatever drips; after it a message has 10 s from its
    first byte, header or body.
    """
    settings = f"[serving]\nhello_timeout_s = {HELLO_S * scale}\nframe_timeout_s = {FRAME_S * scale}"
    daemon = start(settings=settings if scale < 1 else "")
    canary = Canary(daemon)
    rounds = 20 if scale < 1 else 300
    alone_s = latency_s(canary, rounds)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        peers = [Dripping(daemon, kind, scale) for kind in KINDS for _ in range(PEERS_OF_A_KIND)]
        for peer in peers:
            stack.enter_context(peer.client)
        dripping = pool.submit(drip_to_the_end, peers, DRIP_S * scale)
        beside_s = latency_s(canary, rounds)
        all_there = all(peer.ended_s is None for peer in peers)
        dripping.result()
        assert all(only_error(peer.client.until_closed()) == "timeout" for peer in peers)
    alone_s = (alone_s + latency_s(canary, rounds)) / 2
    assert daemon.status()["connections_closed"] == {"timeout": len(peers)}
    for kind in KINDS:
        late_s = [peer.ended_s - peer.began_s - peer.deadline_s for peer in peers if peer.kind == kind]
        assert min(late_s) >= 0, kind
        what = f"{kind}: given up behind its {KINDS[kind][3] * scale:g} s after"
        within(record_property, what, max(late_s), LATE_S, "s")
    if all_there:  # else they are past before the canary has sung, on a machine that is busy with others
        within(record_property, f"latency beside {len(peers)} of them", beside_s / alone_s, 1.2, "x")
    canary.check()


@pytest.mark.parametrize("sent", [b"\x00", encode({"type": "ping", "id": 1})[:-1]])
def test_f03_a_complete_frame_does_not_excuse_the_next(daemon, sent):
    """Each frame has its own clock: one that follows a whole one in the same bytes is cut off too."""
    with daemon.client() as client:
        client.send_raw(encode({"type": "ping", "id": 7}) + sent)
        assert client.receive() == {"type": "pong", "id": 7}
        assert only_error(client.until_closed()) == "timeout"
