"""The protocol's framing, limits and tables, without any socket."""

from __future__ import annotations

import struct
import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svctl import brief
from svctl.framing import HEADER_BYTES, FrameReader, decode, encode
from svctl.wire import (
    EVENTS,
    MAX_AUDIO_BYTES,
    MAX_FRAME_BYTES,
    MAX_HELLO_BYTES,
    REQUESTS,
    ProtocolError,
    WireError,
    check,
)

HELLO = {"type": "hello", "major": 1, "minor": 0, "client": "test"}
TRANSCRIBE = {"type": "transcribe", "id": 1, "source": "fd", "label": "a.wav"}


def verdict(data, cuts=()):
    """The messages in `data`, and the code of the error that ends them, when it is fed in pieces."""
    reader, found = FrameReader(MAX_FRAME_BYTES), []
    start = 0
    try:
        for end in [*cuts, len(data)]:
            reader.feed(data[start:end])
            found.extend(reader.messages())
            start = end
    except ProtocolError as error:
        return found, error.code
    return found, None


def test_f08_a_stream_means_the_same_wherever_it_is_cut():
    """Every cut of two frames in two, and byte by byte, gives the messages of the whole."""
    data = encode(HELLO) + encode(TRANSCRIBE)
    whole = verdict(data)
    assert whole == ([HELLO, TRANSCRIBE], None)
    assert all(verdict(data, [cut]) == whole for cut in range(len(data)))
    assert verdict(data, range(1, len(data))) == whole


@pytest.mark.parametrize(("requests", "by_hand"), [(False, 4_096), (True, 0)])
def test_only_the_first_events_are_read_by_hand(monkeypatch, requests, by_hand):
    """So much that msgpack need not be imported for it; requests are all read within the daemon's limits."""
    read, ours = [], brief.unpack
    monkeypatch.setattr(brief, "unpack", lambda body: read.append(len(body)) or ours(body))
    frames = encode(HELLO) * 200
    reader = FrameReader(requests=requests)
    reader.feed(frames)
    assert list(reader.messages()) == [HELLO] * 200
    size = len(frames) // 200 - HEADER_BYTES
    assert read == [size] * (by_hand // size)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=6))
def test_f04_random_bytes_have_one_verdict_however_they_are_cut(data, cuts):
    """Whatever bytes come, cutting them elsewhere changes neither the messages nor the error."""
    usable = sorted(cut for cut in cuts if cut <= len(data))
    found, code = verdict(data, usable)
    whole_found, whole_code = verdict(data)
    assert repr((found, code)) == repr((whole_found, whole_code))


@pytest.mark.parametrize(
    ("limit", "length", "code"),
    [
        (MAX_HELLO_BYTES, MAX_HELLO_BYTES, None),
        (MAX_HELLO_BYTES, MAX_HELLO_BYTES + 1, "frame_too_large"),
        (MAX_FRAME_BYTES, MAX_FRAME_BYTES + 1, "frame_too_large"),
        (MAX_FRAME_BYTES, 0xFFFFFFFF, "frame_too_large"),
    ],
)
def test_f01_a_frame_is_refused_at_its_header(limit, length, code):
    """The length alone decides; not one byte of the body is waited for."""
    reader = FrameReader(limit)
    reader.feed(struct.pack(">I", length))
    if code is None:
        assert reader.next() is None
        return
    with pytest.raises(ProtocolError) as caught:
        reader.next()
    assert caught.value.code == code
    assert caught.value.fatal


BOMBS = {
    "100,000 nested arrays": b"\x91" * 100_000,
    "a map that claims 4 G entries": b"\xdf\xff\xff\xff\xff",
    "an array that claims 4 G entries": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "a string that claims 4 GiB": b"\x81\xa1a\xdb\xff\xff\xff\xff",
    "bytes that claim 4 GiB": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "an extension type": b"\x81\xa1a\xc7\x01\x05x",
    "an empty extension type": b"\x81\xa1a\xc7\x00\x05",
    "a timestamp": b"\x81\xa1a\xd6\xff\x00\x00\x00\x00",
    "an int key": b"\x81\x01\x02",
    "a list as a key": b"\x81\x91\x01\x02",
    "bytes as a key": b"\x81\xc4\x01a\x02",
    "a key twice": b"\x82\xa1a\x01\xa1a\x02",
    "a key twice, deep inside": b"\x81\xa1m\x82\xa1a\x01\xa1a\x02",
    "text that is not UTF-8": b"\x81\xa1a\xa2\xff\xfe",
    "bytes after the map": b"\x80\x80",
    "no map": b"\x93\x01\x02\x03",
    "nothing": b"",
    "half a map": b"\x82\xa1a\x01",
    "the unused type byte": b"\xc1",
    "too many entries": msgpack.packb({str(n): n for n in range(65)}),
    "too long an array": msgpack.packb({"a": [0] * 4097}),
    "too long a string": msgpack.packb({"a": "x" * (64 * 1024 + 1)}),
    "too many bytes": msgpack.packb({"a": bytes(256 * 1024 + 1)}),
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS.keys())
def test_f05_bombs_are_protocol_errors(body):
    """What is not a map within the limits is a fatal protocol error, not another exception."""
    with pytest.raises(ProtocolError) as caught:
        decode(body)
    assert caught.value.code == "protocol"
    assert caught.value.fatal


NOT_FLAT = {
    "an array of arrays": {"type": "ping", "id": 1, "a": [[]] * 4},
    "an empty array": {"type": "ping", "id": 1, "a": []},
    "a map": {"type": "ping", "id": 1, "m": {"k": 1}},
    "an empty map": {"type": "ping", "id": 1, "m": {}},
    "a million empty lists": {"type": "ping", "id": 1, "a": [[[]] * 4_000] * 256},
}


@pytest.mark.parametrize("message", NOT_FLAT.values(), ids=NOT_FLAT.keys())
def test_f05_the_daemon_reads_flat_maps_only_and_the_client_reads_all(message):
    """Requests hold no arrays and no inner maps, under whatever key; events do."""
    daemon, client = FrameReader(MAX_FRAME_BYTES, requests=True), FrameReader(MAX_FRAME_BYTES)
    for reader in (daemon, client):
        reader.feed(encode(message))
    assert client.next() == message
    with pytest.raises(ProtocolError) as caught:
        daemon.next()
    assert (caught.value.code, caught.value.fatal) == ("protocol", True)


def test_f05_of_a_bomb_only_the_beginning_is_decoded():
    """What is refused at its first array costs nothing of what stands behind it."""
    bomb = encode(NOT_FLAT["a million empty lists"])[4:]
    with pytest.raises(ProtocolError):
        decode(bomb, flat=True)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode(bomb, flat=True)
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()


def test_f02_large_requests_are_audio():
    """Above the limit before hello only `audio` is taken; the limit itself is for all."""
    reader = FrameReader(MAX_FRAME_BYTES, requests=True)
    ping = {"type": "ping", "id": 1, "padding": b""}
    ping["padding"] = bytes(MAX_HELLO_BYTES - len(encode(ping)) - 1 + 4)
    audio = {"type": "audio", "id": 1, "data": bytes(MAX_AUDIO_BYTES)}
    large = {**ping, "padding": ping["padding"] + b"x"}
    assert len(encode(ping)) - 4 == MAX_HELLO_BYTES
    reader.feed(encode(ping) + encode(audio) + encode(large))
    assert (reader.next(), reader.next()) == (ping, audio)
    with pytest.raises(ProtocolError) as caught:
        reader.next()
    assert caught.value.code == "frame_too_large"


@pytest.mark.parametrize(
    ("message", "code", "fatal"),
    [
        ({}, "protocol", True),
        ({"type": 5}, "protocol", True),
        ({"type": "sing", "id": 3}, "unsupported", False),
        ({"type": "ping"}, "invalid_request", False),
        ({"type": "ping", "id": True}, "invalid_request", False),
        ({"type": "ping", "id": -1}, "invalid_request", False),
        ({"type": "ping", "id": 2**53 + 1}, "invalid_request", False),
        ({"type": "ping", "id": 1.0}, "invalid_request", False),
        ({"type": "ping", "id": float("nan")}, "invalid_request", False),
        ({**TRANSCRIBE, "source": "url"}, "invalid_request", False),
        ({**TRANSCRIBE, "language": "zn"}, "invalid_request", False),
        ({**TRANSCRIBE, "itn": 1}, "invalid_request", False),
        ({**TRANSCRIBE, "label": "x" * 4097}, "invalid_request", False),
        ({**TRANSCRIBE, "label": b"bytes"}, "invalid_request", False),
        ({"type": "audio", "id": 1, "data": "text"}, "invalid_request", False),
        ({**HELLO, "major": 2**16 + 1}, "invalid_request", False),
    ],
)
def test_f06_wrong_shapes_have_their_code(message, code, fatal):
    """A message that does not fit the table gets the documented code, and only a lost framing is fatal."""
    with pytest.raises(ProtocolError) as caught:
        check(message, REQUESTS)
    assert (caught.value.code, caught.value.fatal) == (code, fatal)


def test_check_fills_defaults_and_drops_unknown_keys():
    """A newer client's extra key is no reason to refuse it."""
    checked = check({"type": "transcribe", "id": 7, "source": "stream", "wish": "more"}, REQUESTS)
    assert checked == {
        "type": "transcribe",
        "id": 7,
        "source": "stream",
        "label": "",
        "path": "",
        "language": "auto",
        "itn": True,
        "vad": True,
        "channels": "mix",
        "start": 0,
        "duration": 0,
    }


def test_an_error_survives_the_wire():
    """Code, sentence, request and time to come back arrive as they were sent."""
    error = WireError("busy", "Too much.", request=4, retry_after_ms=250)
    reader = FrameReader()
    reader.feed(encode(error.to_message()))
    message = check(reader.next(), EVENTS)
    assert message == {
        "type": "error",
        "id": 4,
        "code": "busy",
        "message": "Too much.",
        "retryable": True,
        "retry_after_ms": 250,
    }


def test_a_message_above_the_limit_is_not_sent():
    """The sender finds out before the receiver does."""
    with pytest.raises(ProtocolError, match="exceeds"):
        encode({"type": "x", "data": bytes(MAX_FRAME_BYTES)})


def test_a_frame_that_has_begun_is_partial():
    """The deadline of a frame runs from its first byte to its last."""
    reader = FrameReader()
    assert not reader.partial
    reader.feed(encode(HELLO)[:1])
    assert reader.partial
    reader.feed(encode(HELLO)[1:])
    assert reader.next() == HELLO
    assert not reader.partial
