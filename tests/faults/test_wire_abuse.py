"""Section A of the abuse table: what strangers may write to the socket."""

from __future__ import annotations

import contextlib
import os
import random
import socket

import msgpack
import pytest
from harness.daemon import script
from harness.wire_client import WireClient, frame, memfd, texts

from svctl.wire import MAX_FRAME_BYTES, MAX_HELLO_BYTES, encode

HELLO = {"type": "hello", "major": 1, "minor": 0}
MIB = 2**20


def only_error(messages):
    """Code of the one error that a connection ended with."""
    (error,) = messages
    assert error["type"] == "error"
    assert error["id"] is None
    return error["code"]


def test_f01_a_frame_that_claims_4_gib_is_refused_at_once(daemon):
    """The header alone ends the connection, and nothing is reserved for the body."""
    before = daemon.peak_bytes()
    with daemon.client(hello=False) as client:
        client.send_raw(b"\xff\xff\xff\xff")
        assert only_error(client.until_closed()) == "frame_too_large"
    assert daemon.peak_bytes() - before < MIB


@pytest.mark.parametrize(("greeted", "length"), [(False, MAX_HELLO_BYTES + 1), (True, MAX_FRAME_BYTES + 1)])
def test_f02_each_phase_has_its_limit(daemon, greeted, length):
    """64 KiB before hello, 1 MiB after: one more is refused at the header."""
    with daemon.client(hello=greeted) as client:
        client.send_raw(length.to_bytes(4, "big"))
        assert only_error(client.until_closed()) == "frame_too_large"


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


@pytest.mark.parametrize("sent", [b"", encode(HELLO)[:1], encode(HELLO)[:9]])
def test_f03_who_never_says_hello_is_cut_off(daemon, sent):
    """Nothing, half a header, half a body: the deadline is the same, and counted."""
    before = daemon.status()["connections_closed"].get("timeout", 0)
    with daemon.client(hello=False) as client:
        client.send_raw(sent)
        assert only_error(client.until_closed()) == "timeout"
    assert daemon.status()["connections_closed"]["timeout"] == before + 1


@pytest.mark.parametrize("sent", [b"\x00", encode({"type": "ping", "id": 1})[:-1]])
def test_f03_a_frame_has_to_be_completed_in_time(daemon, sent):
    """After hello a frame's first byte starts its clock; 16 such peers at once keep nobody waiting."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(daemon.client()) for _ in range(16)]
        for client in clients:
            client.send_raw(sent)
        with daemon.client() as other:
            assert other.ping()["type"] == "pong"
        for client in clients:
            assert only_error(client.until_closed()) == "timeout"


def test_f04_random_bytes_end_their_connection_and_nothing_else(daemon):
    """1,000 seeded connections of noise: each gets at most one error, and is closed."""
    noise = random.Random(4)
    for _ in range(1000):
        with daemon.client(hello=noise.random() < 0.5) as client:
            with contextlib.suppress(ConnectionError):
                client.send_raw(noise.randbytes(noise.randint(1, 300)))
                client.socket.shutdown(socket.SHUT_WR)
            assert len(client.until_closed()) <= 1


BOMBS = {
    "100,000 nested arrays": b"\x91" * 60_000,
    "a map of 4 G entries": b"\xdf\xff\xff\xff\xff",
    "an array of 4 G entries": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "a list in a ping": b"\x83\xa4type\xa4ping\xa2id\x01\xa1a\x91\x01",
    "60,000 empty lists in a ping": b"\x83\xa4type\xa4ping\xa2id\x01\xa1a"
    + (b"\xdc\x00\x0f" + (b"\xdc\x0f\xa0" + b"\x90" * 4_000) * 15),
    "a map in a ping": b"\x83\xa4type\xa4ping\xa2id\x01\xa1a\x81\xa1b\x01",
    "an extension type": b"\x81\xa1a\xc7\x00\x05",
    "a timestamp": b"\x81\xa1a\xd6\xff\x00\x00\x00\x00",
    "an int key": b"\x81\x01\x02",
    "a key twice": b"\x82\xa1a\x01\xa1a\x02",
    "text that is not UTF-8": b"\x81\xa1a\xa2\xff\xfe",
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.parametrize("greeted", [False, True])
def test_f05_bombs_are_refused_without_effort(daemon, body, greeted):
    """One `protocol` error, and the memory of one frame at most."""
    before = daemon.peak_bytes()
    with daemon.client(hello=greeted) as client:
        client.send_raw(frame(body))
        assert only_error(client.until_closed()) == "protocol"
    assert daemon.peak_bytes() - before < 16 * MIB


SURVIVED = {
    "no such message": ({"type": "sing", "id": 5}, "unsupported", 5),
    "no id": ({"type": "ping"}, "invalid_request", None),
    "an id that is no number": ({"type": "ping", "id": "five"}, "invalid_request", None),
    "an id that is a bool": ({"type": "ping", "id": True}, "invalid_request", None),
    "a huge id": ({"type": "ping", "id": 2**60}, "invalid_request", None),
    "no source": ({"type": "transcribe", "id": 5}, "invalid_request", 5),
    "an unknown language": (
        {"type": "transcribe", "id": 5, "source": "fd", "language": "zn"},
        "invalid_request",
        5,
    ),
    "a label of 64 KiB": (
        {"type": "transcribe", "id": 5, "source": "fd", "label": "x" * 65_000},
        "invalid_request",
        5,
    ),
    "source fd without a descriptor": ({"type": "transcribe", "id": 5, "source": "fd"}, "invalid_request", 5),
    "a relative path": (
        {"type": "transcribe", "id": 5, "source": "path", "path": "a.wav"},
        "invalid_request",
        5,
    ),
    "a path that is not there": (
        {"type": "transcribe", "id": 5, "source": "path", "path": "/nowhere/a.wav"},
        "not_found",
        5,
    ),
    "a path with a zero byte": (
        {"type": "transcribe", "id": 5, "source": "path", "path": "/a\0b"},
        "not_found",
        5,
    ),
    "audio before transcribe": ({"type": "audio", "id": 5, "data": b"x"}, "invalid_request", 5),
    "end before transcribe": ({"type": "end", "id": 5}, "invalid_request", 5),
    "audio as text": ({"type": "audio", "id": 5, "data": "x"}, "invalid_request", 5),
}


@pytest.mark.parametrize(("message", "code", "request_id"), SURVIVED.values(), ids=SURVIVED.keys())
def test_f06_a_wrong_request_costs_itself_only(daemon, message, code, request_id):
    """The documented code with the request's id, and the connection goes on."""
    with daemon.client() as client:
        client.send(message)
        error = client.receive()
        assert (error["type"], error["code"], error["id"]) == ("error", code, request_id)
        assert client.ping()["type"] == "pong"


FATAL = {
    "two hellos": [HELLO],
    "no type": [{"id": 1}],
    "an id that is still in use": [
        {"type": "transcribe", "id": 5, "source": "stream"},
        {"type": "transcribe", "id": 5, "source": "stream"},
    ],
}


@pytest.mark.parametrize("messages", FATAL.values(), ids=FATAL.keys())
def test_f06_what_both_sides_cannot_read_alike_ends_the_connection(daemon, messages):
    """One `protocol` error without an id, then the end."""
    with daemon.client() as client:
        for message in messages:
            client.send(message)
        assert only_error(client.until_closed()) == "protocol"


def test_f06_anything_before_hello_ends_the_connection(daemon):
    """Even a ping."""
    with daemon.client(hello=False) as client:
        client.send({"type": "ping", "id": 1})
        assert only_error(client.until_closed()) == "protocol"


def test_f06_end_twice_and_audio_after_end_end_the_request(daemon):
    """One terminal event, `invalid_request`, where the request is unfinished; the connection lives."""
    for extra in ({"type": "end", "id": 5}, {"type": "audio", "id": 5, "data": b"x"}):
        gate = f"never-{extra['type']}"
        with daemon.client() as client:
            client.transcribe(5, source="stream")
            client.send({"type": "audio", "id": 5, "data": script({"say": "x", "decode_gate": gate})})
            client.send({"type": "end", "id": 5})
            client.send(extra)
            (error,) = client.events(5)
            assert error["code"] == "invalid_request"
            assert client.ping()["type"] == "pong"


def test_f06_the_rest_of_a_failed_upload_is_no_mistake(daemon):
    """Audio and end that cross the error are ignored: exactly one terminal event."""
    with daemon.client() as client:
        client.transcribe(5, source="stream", language="zn")
        for _ in range(10):
            client.send({"type": "audio", "id": 5, "data": b"x" * 1000})
        client.send({"type": "end", "id": 5})
        (error,) = client.events(5)
        assert error["code"] == "invalid_request"
        client.send({"type": "ping", "id": 6})
        assert client.receive() == {"type": "pong", "id": 6}


def test_f07_versions(daemon):
    """Another minor version is served; another major one is refused with both named."""
    with daemon.client(hello=False) as client:
        client.send({"type": "hello", "major": 1, "minor": 99, "new": "wish"})
        welcome = client.receive()
        assert (welcome["type"], welcome["major"], welcome["minor"]) == ("welcome", 1, 0)
    for major in (0, 2):
        with daemon.client(hello=False) as client:
            client.send({"type": "hello", "major": major, "minor": 3})
            (error,) = client.until_closed()
            assert error["code"] == "unsupported"
            assert f"{major}.3" in error["message"]
            assert "1.0" in error["message"]


def test_requests_may_follow_the_hello_at_once(daemon):
    """Hello, a request and its descriptor in one go are answered in one go; behind a bad hello nothing is."""
    source = memfd(script("found"))
    for major, answers in ((1, ["welcome", "segment", "done"]), (2, ["error"])):
        with daemon.client(hello=False) as client:
            client.send({**HELLO, "major": major})
            client.transcribe(1, source)
            client.socket.shutdown(socket.SHUT_WR)
            found = client.until_closed()
            assert [event["type"] for event in found] == answers
            assert found[-1].get("id") == (1 if major == 1 else None)
    os.close(source)


def test_f08_frames_cut_anywhere_and_200_in_one_write_are_the_same(daemon):
    """Where the bytes are cut makes no difference, one by one or all at once."""
    data = encode(HELLO) + encode({"type": "ping", "id": 1})
    for cut in range(1, len(data)):
        with daemon.client(hello=False) as client:
            client.send_raw(data[:cut])
            client.send_raw(data[cut:])
            assert [client.receive()["type"] for _ in range(2)] == ["welcome", "pong"]
    with daemon.client() as client:
        client.send_raw(b"".join(encode({"type": "ping", "id": n}) for n in range(200)))
        assert [client.receive()["id"] for _ in range(200)] == list(range(200))


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


def test_f26_a_label_cannot_write_to_the_log(start):
    """Line breaks and terminal sequences are shown escaped, and a long label is cut."""
    daemon = start(settings='log_level = "debug"')
    label = "-i.wav\n<0>forged \x1b[31mred\u202e " + "x" * 4000
    with WireClient(daemon.socket) as client:
        assert client.ask(1, memfd(script("x")), label=label)[-1]["type"] == "done"
    log = daemon.text()
    assert "\\n<0>forged \\x1b[31mred\\u202e" in log
    assert "\x1b" not in log
    assert max(len(line) for line in log.splitlines()) < 300
