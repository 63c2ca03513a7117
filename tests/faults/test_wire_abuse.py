"""Section A of the abuse table: frames too large, cut anywhere, or full of what no message needs."""

from __future__ import annotations

import contextlib
import math
import os
import time

import msgpack
import pytest
from harness.abuse import Growth, only_error, unread_bytes
from harness.daemon import script, wait_until
from harness.figures import within
from harness.wire_client import TERMINAL, Closed, frame, memfd, texts

from svctl.framing import HEADER_BYTES, encode
from svctl.wire import MAX_FRAME_BYTES, MAX_HELLO_BYTES

HELLO = {"type": "hello", "major": 1, "minor": 0}
PHASES = pytest.mark.parametrize("greeted", [False, True], ids=["before hello", "after hello"])


@PHASES
def test_f01_a_frame_that_claims_4_gib_is_refused_at_once(daemon, greeted, record_property):
    """The header alone ends the connection, and nothing is reserved for the body."""
    with daemon.client(hello=greeted) as client, Growth(daemon) as growth:
        began_s = time.monotonic()
        client.send_raw(b"\xff\xff\xff\xff")
        assert only_error(client.until_closed()) == "frame_too_large"
        within(record_property, "refused and closed", time.monotonic() - began_s, 1.0, "s")
    assert growth.mib < 1
    record_property("figure", f"memory grew by {growth.bytes // 1024} KiB (limit 1024 KiB)")


@pytest.mark.parametrize(
    ("greeted", "length"),
    [(False, MAX_HELLO_BYTES + 1), (True, MAX_FRAME_BYTES + 1)],
    ids=["before hello", "after hello"],
)
def test_f02_each_phase_has_its_limit(daemon, greeted, length, record_property):
    """64 KiB before hello, 1 MiB after: one more is refused at the header, and the body is not read.

    As far as it came in the same bytes as its header: what else was sent is thrown away unread, which the
    kernel tells the sender, or was not even let out.
    """
    header, body = length.to_bytes(HEADER_BYTES, "big"), bytes(length)
    with daemon.client(hello=greeted) as client:
        client.send_raw(header)
        assert only_error(client.until_closed()) == "frame_too_large"
    with daemon.client(hello=greeted) as client, Growth(daemon) as growth:
        data, sent = header + body, 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < len(data):
                sent += client.socket.send(data[sent:])
        assert client.receive()["code"] == "frame_too_large"
        wait_until(lambda: sent < len(data) or told_of_unread_bytes(client), "the rest was not read")
    assert growth.mib < 1
    record_property(
        "figure", f"of {len(data)} bytes {sent} left the sender, memory grew {growth.bytes >> 10} KiB"
    )


def told_of_unread_bytes(client):
    """Say whether the kernel has told so, which it does once the other end is closed, and not just over."""
    try:
        client.socket.recv(1)
    except ConnectionResetError:
        return True
    return False


def test_f02_the_largest_frames_are_read(daemon):
    """Exactly the limit is allowed in both phases, even in one write."""
    with daemon.client(hello=False) as client:
        hello = {**HELLO, "padding": ""}
        hello["padding"] = "x" * (MAX_HELLO_BYTES - len(msgpack.packb(hello)) - 2)
        audio = {"type": "audio", "id": 1, **{f"p{n}": bytes(200_000) for n in range(5)}}
        audio["data"] = bytes(MAX_FRAME_BYTES - len(msgpack.packb(audio)) - 8)
        assert len(msgpack.packb(hello)) == MAX_HELLO_BYTES
        assert len(msgpack.packb(audio)) == MAX_FRAME_BYTES
        client.send_raw(encode(hello) + encode(audio))
        assert client.receive()["type"] == "welcome"
        assert client.receive()["code"] == "invalid_request"  # there is no upload of that id


def test_f02_only_audio_is_large(daemon):
    """Above 64 KiB no other request has a reason to be."""
    with daemon.client() as client:
        client.send({"type": "ping", "id": 1, "padding": bytes(MAX_HELLO_BYTES)})
        assert only_error(client.until_closed()) == "frame_too_large"


PING = b"\x83\xa4type\xa4ping\xa2id\x01\xa1a"
"""A ping with room for one value more."""
BOMBS = {
    "60,000 nested arrays": b"\x91" * 60_000,
    "20,000 nested maps": b"\x81\xa1a" * 20_000,
    "a map of 4 G entries": b"\xdf\xff\xff\xff\xff",
    "an array of 4 G entries": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "a string of 4 GiB": b"\x81\xa1a\xdb\xff\xff\xff\xff",
    "4 GiB of bytes": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "an extension type of 4 GiB": b"\x81\xa1a\xc9\xff\xff\xff\xff\x05",
    "a list in a ping": PING + b"\x91\x01",
    "60,000 empty lists in a ping": PING + b"\xdc\x00\x0f" + (b"\xdc\x0f\xa0" + b"\x90" * 4_000) * 15,
    "a map in a ping": PING + b"\x81\xa1b\x01",
    "an extension type": b"\x81\xa1a\xc7\x00\x05",
    "a timestamp": b"\x81\xa1a\xd6\xff\x00\x00\x00\x00",
    "a timestamp of a year that no calendar has": b"\x81\xa1a\xc7\x0c\xff\xff\xff\xff\xff" + b"\x7f" * 8,
    "an int key": b"\x81\x01\x02",
    "a nil key": b"\x81\xc0\x02",
    "a bytes key in a ping": b"\x83\xa4type\xa4ping\xa2id\x01\xc4\x01a\x02",
    "a list as a key": b"\x81\x91\x01\x02",
    "a key twice": b"\x82\xa1a\x01\xa1a\x02",
    "text that is not UTF-8": b"\x81\xa1a\xa2\xff\xfe",
    "a surrogate": b"\x81\xa1a\xa3\xed\xa0\x80",
    "65 keys": msgpack.packb({str(n): n for n in range(65)}),
    "bytes behind the map": b"\x80\x80",
    "the byte that means nothing": b"\xc1",
    "nothing": b"",
}
LARGE = {
    "100,000 nested arrays": b"\x91" * 100_000,
    "340,000 nested maps": b"\x81\xa1a" * 340_000,
    "a million empty lists": PING + b"\xdc\x00\xfa" + (b"\xdc\x0f\xa0" + b"\x90" * 4_000) * 250,
    "a million nils": PING + b"\xdd\x00\x0f\x42\x40" + b"\xc0" * 1_000_000,
}
"""Above 64 KiB, and so refused by their length alone before hello."""


@PHASES
def test_f05_bombs_are_refused_without_effort(daemon, greeted, record_property):
    """One `protocol` error each at once, with the memory of a frame or two at most.

    Row changed: before hello what is above 64 KiB is `frame_too_large`, as F02 has it.
    """
    slowest_s, largest_mib = 0.0, 0.0
    phase = "after hello" if greeted else "before hello"
    for name, body in {**BOMBS, **LARGE}.items():
        with daemon.client(hello=greeted) as client, Growth(daemon) as growth:
            began_s = time.monotonic()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused at the header
                client.send_raw(frame(body))
            code = only_error(client.until_closed())
            slowest_s = max(slowest_s, time.monotonic() - began_s)
        assert code == ("protocol" if greeted or name in BOMBS else "frame_too_large"), name
        assert growth.mib < 16, name
        largest_mib = max(largest_mib, growth.mib)
    within(record_property, f"slowest bomb {phase}", slowest_s * 1000, 100, "ms")
    record_property("figure", f"most memory for a bomb {phase}: {largest_mib:.1f} MiB (limit 16 MiB)")
    assert "RecursionError" not in daemon.text()


NUMBERS = (math.nan, math.inf, -math.inf, 2**64 - 1, -(2**63), 2**53 + 1, -1, 0.5)
"""None of them is an id, or a version."""


def test_f05_numbers_that_are_none_cost_their_request_only(daemon, record_property):
    """NaN, infinities and numbers beyond any field are `invalid_request` at once.

    Row changed: such a frame is well-formed, so it is its request that fails, and not the connection; before
    hello there is no other request, and the connection ends.
    """
    slowest_s = 0.0
    with daemon.client() as client:
        for number in NUMBERS:
            for kind in ("ping", "status", "transcribe", "audio", "end", "cancel", "reload"):
                began_s = time.monotonic()
                client.send({"type": kind, "id": number, "source": "stream", "data": b""})
                error = client.receive()
                slowest_s = max(slowest_s, time.monotonic() - began_s)
                assert (error["type"], error["code"], error["id"]) == ("error", "invalid_request", None), kind
        assert client.ping()["type"] == "pong"
    within(record_property, "slowest of odd numbers", slowest_s * 1000, 100, "ms")
    for number in NUMBERS:
        for field in ("major", "minor"):
            with daemon.client(hello=False) as client:
                client.send({**HELLO, field: number})
                assert only_error(client.until_closed()) == "invalid_request", number


def conversation(daemon, parts):
    """All events by request, of bytes that reach the daemon in these parts."""
    with daemon.client(hello=False) as client:
        for part in parts:
            client.send_raw(part)
            # Otherwise the kernel could join it with the next.
            wait_until(lambda: unread_bytes(client.socket) == 0, "the daemon has taken it")
        events = {}
        open_requests = {1, 2, 3}
        with contextlib.suppress(Closed):
            while open_requests:
                event = client.receive()
                event.pop("timings", None)
                if event["type"] in (*TERMINAL, "pong"):
                    open_requests.discard(event["id"])
                if event["type"] != "progress":
                    events.setdefault(event.get("id"), []).append(event)
        return events


def test_f08_a_conversation_cut_anywhere_is_the_same(daemon, record_property):
    """Hello, a streamed recording, a mistake and a ping: cut in two at every byte, and byte by byte."""
    sent = (
        HELLO,
        {"type": "transcribe", "id": 1, "source": "stream", "label": "a.wav"},
        {"type": "audio", "id": 1, "data": script("one", "two")},
        {"type": "end", "id": 1},
        {"type": "end", "id": 2},
        {"type": "ping", "id": 3},
    )
    data = b"".join(encode(message) for message in sent)
    whole = conversation(daemon, [data])
    assert texts(whole[1]) == ["one", "two"]
    assert [event["type"] for request in (None, 2, 3) for event in whole[request]] == [
        "welcome",
        "error",
        "pong",
    ]
    for cut in range(1, len(data)):
        assert conversation(daemon, [data[:cut], data[cut:]]) == whole, cut
    assert conversation(daemon, [data[n : n + 1] for n in range(len(data))]) == whole
    record_property("figure", f"the same at all {len(data) - 1} cuts, and byte by byte")


def test_f08_200_frames_in_one_write_are_answered_as_200_writes(daemon, record_property):
    """Pipelined in one write or one at a time: the same answers in the same order."""
    kinds = ("ping", "end", "sing", "audio", "ping")
    frames = [encode({"type": kinds[n % 5], "id": n, "data": b"x"}) for n in range(200)]

    def answers(parts):
        with daemon.client() as client:
            for part in parts:
                client.send_raw(part)
                wait_until(lambda: unread_bytes(client.socket) == 0, "the daemon has taken it")
            return [client.receive() for _ in range(200)]

    together = answers([b"".join(frames)])
    assert [answer["id"] for answer in together] == list(range(200))
    assert answers(frames) == together
    record_property("figure", "200 frames in one write: as in 200 writes")


def test_f08_requests_in_one_write_with_their_descriptor(daemon):
    """A descriptor finds its request among others in the same bytes."""
    with daemon.client() as client:
        client.send_raw(encode({"type": "ping", "id": 1}))
        source = memfd(script("found"))
        request = encode({"type": "transcribe", "id": 2, "source": "fd"})
        client.send_raw(request[:5], source)
        client.send_raw(request[5:] + encode({"type": "ping", "id": 3}))
        os.close(source)
        assert texts(client.events(2)) == ["found"]
