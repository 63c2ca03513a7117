"""The brief codec against msgpack itself: it may leave all to the library, but never differ from it."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svctl import brief, wire

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
ERROR = {"type": "error", "id": None, "code": "busy", "message": "x" * 200, "retryable": False}

texts = st.text(st.characters(codec=None), max_size=40) | st.sampled_from(
    [n * "é" for n in (15, 16, 127, 128)]
)
scalars = texts | st.integers(-200, 300) | st.booleans() | st.none() | st.floats() | st.binary(max_size=9)
keys = texts | st.integers(0, 200)
values = scalars | st.lists(st.integers(0, 9), max_size=3) | st.dictionaries(keys, st.booleans(), max_size=2)


def packed(message):
    """What the library makes of it, None where that is an error."""
    try:
        return msgpack.packb(message)
    except UnicodeEncodeError:
        return None


def unpacked(body):
    """What `wire.decode` makes of it with the library alone, None where that is an error."""
    original, brief.unpack = brief.unpack, lambda _: None
    try:
        return wire.decode(body)
    except wire.ProtocolError:
        return None
    finally:
        brief.unpack = original


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


@settings(max_examples=1_000, deadline=None)
@given(data=st.data())
def test_what_is_unpacked_is_the_librarys_map(data):
    """Whatever bytes come: None, or the map that the library reads, with its types and its order."""
    start = data.draw(st.sampled_from([brief.pack(m) for m in (HELLO, TRANSCRIBE, ERROR, WELCOME)]))
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
    ],
)
def test_every_mistake_is_left_to_the_library(body):
    """Cut, doubled, wrongly keyed and wrongly coded maps are not read, so that the error is the library's."""
    assert brief.unpack(body) is None
