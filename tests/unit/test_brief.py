"""The brief codec against msgpack itself: it may leave all to the library, but never differ from it."""

from __future__ import annotations

import msgpack
import pytest
from harness.fake_server import done, segment
from hypothesis import given, settings
from hypothesis import strategies as st

from svctl import brief, framing, wire

HELLO = {"type": "hello", "major": 1, "minor": 0, "client": "svctl/0.1.0"}
TRANSCRIBE = {
    "type": "transcribe",
    "id": 1,
    "source": "fd",
    "label": "你好.wav",
    "language": "auto",
    "itn": True,
}
WELCOME = {"type": "welcome", "major": 1, "minor": 0, "server": "sensevoiced/0.1.0"}
STATUS = {"type": "status", "id": 1, "status": {"jobs": {"done": 70_000}, "jail": ["seccomp"], "rtf": 0.0}}
ERROR = {"type": "error", "id": None, "code": "busy", "message": "x" * 200, "retryable": False}

texts = st.text(st.characters(codec=None), max_size=40) | st.sampled_from(
    [n * "é" for n in (15, 16, 127, 128)]
)
scalars = texts | st.integers(-200, 300) | st.booleans() | st.none() | st.floats() | st.binary(max_size=9)
keys = texts | st.integers(0, 200)
numbers = st.floats(width=32) | st.integers(0, 2**64 - 1) | st.integers(-(2**63), 0)
values = st.recursive(
    scalars | numbers,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


def packed(message):
    """What the library makes of it, None where that is an error."""
    try:
        return msgpack.packb(message)
    except UnicodeEncodeError:
        return None


def unpacked(body):
    """What the library makes of it within the protocol's limits, None where that is an error."""
    try:
        return framing.decode(body)
    except wire.ProtocolError:
        return None


@pytest.mark.parametrize("message", [HELLO, {"type": "ping", "id": 1}, TRANSCRIBE, WELCOME, ERROR, {}])
def test_the_messages_of_a_start_are_brief(message):
    """What svctl says first, and what a ping is answered, needs no library in either direction."""
    body = brief.pack(message)
    assert body == msgpack.packb(message)
    assert brief.unpack(body) == message


@settings(max_examples=400, deadline=None)
@given(message=st.dictionaries(keys, values, max_size=17))
def test_what_is_packed_is_the_librarys_bytes(message):
    """Either None or byte for byte what msgpack packs, which is read as msgpack reads it."""
    body = brief.pack(message)
    assert body in (None, packed(message))
    if (library := packed(message)) is not None:
        assert repr(brief.unpack(library)) in (repr(None), repr(unpacked(library)))


@pytest.mark.parametrize(
    "message", [segment(1, 0, "你好 world"), done(1, 1, timings={"total_s": 0.125}), STATUS]
)
def test_the_answers_for_a_clip_are_brief(message):
    """What a transcript of a few words and a status are made of is read without the library."""
    assert repr(brief.unpack(msgpack.packb(message))) == repr(message)


@pytest.mark.parametrize("depth", [3, 9, 900])
def test_deep_nesting_is_left_to_the_library(depth):
    """No map that the protocol knows is deep, and Python's stack is not."""
    body = msgpack.packb({"a": None}).replace(b"\xc0", b"\x91" * depth + b"\xc0")
    assert (brief.unpack(body) is None) == (depth > 7)


@settings(max_examples=1_000, deadline=None)
@given(data=st.data())
def test_what_is_unpacked_is_the_librarys_map(data):
    """Whatever bytes come: None, or the map that the library reads, with its types and its order."""
    known = (HELLO, TRANSCRIBE, ERROR, WELCOME, segment(1, 0, "hi"), done(1, 1), STATUS)
    start = data.draw(st.sampled_from([msgpack.packb(message) for message in known]))
    body = bytearray(start)
    for _ in range(data.draw(st.integers(0, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = bytes(body[: data.draw(st.integers(0, len(body)))]) if data.draw(st.booleans()) else bytes(body)
    found = brief.unpack(body)
    if found is not None:
        assert repr(found) == repr(unpacked(body))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x81\xa1a",
        b"\x82\xa1a\x01",
        b"\x82\xa1a\x01\xa1a\x02",
        b"\x81\x01\x02",
        b"\x81\xa1a\xa2\xff\xfe",
        b"\x81\xa1a\xd9",
        b"\x81\xa1a\xd9\x05abc",
        b"\x80\x80",
        b"\x81\xa1a\xc1",
        b"\x81\xa1a\xcb\x00",
        b"\x81\xa1a\x91",
        b"\x81\xa1a\x81\x90\x01",
        b"\x90",
    ],
)
def test_every_mistake_is_left_to_the_library(body):
    """Cut, doubled, wrongly keyed and wrongly coded maps are not read, so that the error is the library's."""
    assert brief.unpack(body) is None
