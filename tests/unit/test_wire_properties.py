"""What holds of all messages and of all bytes, and not only of the examples in test_wire.py."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from svctl import framing, wire
from svctl.framing import FrameReader, encode
from svctl.wire import ERRORS, EVENTS, MAX_ID, REQUESTS, WireError, check
from tools.fuzz import frames

BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Machines that test are busy: slowness says nothing of the property."""
TABLES = {"requests": REQUESTS, "events": EVENTS}
MAX_INT = 2**64 - 1
"""What msgpack writes."""

texts = st.text(max_size=40)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), MAX_INT) | st.floats() | texts | st.binary(max_size=40)
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
"""What msgpack holds, within the limits of decode."""
values: dict[type, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), MAX_INT),
    float: st.floats(),
    bool: st.booleans(),
    str: texts,
    bytes: st.binary(max_size=40),
    list: st.lists(trees, max_size=4),
    dict: st.dictionaries(texts, trees, max_size=4),
    type(None): st.none(),
}
ids = st.integers(0, MAX_ID)


def _allowed(types, limit):
    if isinstance(limit, tuple) and isinstance(limit[0], str):
        return st.sampled_from(limit)
    if isinstance(limit, tuple):
        return st.integers(*limit)
    if isinstance(limit, int):
        filler = "x" if str in types else b"x"
        long = st.sampled_from([limit - 1, limit]).map(lambda size: filler * size)
        return values[types[0]] | long
    return st.one_of([values[kind] for kind in types])


@st.composite
def messages(draw, table):
    """A message that its table allows; what has a default may be absent."""
    kind = draw(st.sampled_from(sorted(table)))
    message: dict[str, Any] = {"type": kind}
    for name, (types, default, limit) in table[kind].items():
        if default is wire._REQUIRED or draw(st.booleans()):
            message[name] = draw(_allowed(types, limit))
    return message


def read(data, *, requests):
    """All messages in the bytes; the end of the last is the end of the bytes."""
    reader = FrameReader(wire.MAX_FRAME_BYTES, requests=requests)
    reader.feed(data)
    found = list(reader.messages())
    assert not reader.partial
    return found


@pytest.mark.parametrize("side", TABLES)
@settings(BUSY, max_examples=200)
@given(data=st.data())
def test_whatever_the_tables_allow_survives_the_wire(side, data):
    """A message arrives as it was sent, and passes the check with its defaults filled in."""
    table = TABLES[side]
    sent = data.draw(messages(table))
    (received,) = read(encode(sent), requests=side == "requests")
    assert repr(received) == repr(sent)
    assert repr(check(received, table)) == repr(check(sent, table))


@settings(BUSY, max_examples=60)
@given(
    sent=st.lists(messages(REQUESTS), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 3_000), max_size=6),
)
def test_requests_in_a_row_arrive_in_a_row_wherever_they_are_cut(sent, cuts):
    """One write or many: the same messages, and nothing left over."""
    data = b"".join(map(encode, sent))
    found, ended = frames.verdict(data, sorted(min(cut, len(data)) for cut in cuts), requests=True)
    if ended is None:
        assert repr(found) == repr(sent)
    else:
        # only the limit before the first message stands between a sender and its reader
        assert (found, ended[0]) == ([], "frame_too_large")
        assert len(encode(sent[0])) > wire.MAX_HELLO_BYTES


@settings(BUSY, max_examples=300)
@given(
    message=st.dictionaries(
        st.sampled_from(
            sorted({name for table in TABLES.values() for kind in table.values() for name in kind})
        )
        | texts,
        trees,
        max_size=8,
    ),
    kind=st.sampled_from(sorted({*REQUESTS, *EVENTS})) | scalars,
)
@example(message={"id": 10**400}, kind="ping")
@example(message={"id": 1, "path": "\ud800"}, kind="transcribe")
def test_f06_any_map_passes_or_is_refused_by_its_table(message, kind):
    """Either a message that passes again unchanged, or one sentence with a code of its own."""
    for table in TABLES.values():
        checked = frames.settled({**message, "type": kind}, table)
        if checked is not None:
            assert list(checked) == ["type", *table[kind]]


def _framed(body):
    return len(body).to_bytes(framing.HEADER_BYTES, "big") + body


@st.composite
def damaged(draw):
    """The bytes of a message with some of them changed, left out or doubled."""
    data = bytearray(encode(draw(messages(draw(st.sampled_from([REQUESTS, EVENTS])))))[:400])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


streams = st.lists(
    st.one_of(
        messages(REQUESTS).map(encode).filter(lambda data: len(data) < 2_000),
        trees.map(msgpack.packb).map(_framed),
        st.binary(max_size=60).map(_framed),
        damaged(),
        st.binary(max_size=20),
    ),
    max_size=4,
).map(b"".join)


@settings(BUSY, max_examples=300)
@given(data=streams)
@example(data=_framed(b"\x91" * 600 + b"\x01"))
@example(data=_framed(b"\x81\xa1a" + b"\x91" * 600 + b"\x01"))
def test_f04_any_stream_has_one_verdict_however_it_comes(data):
    """Messages, or messages and one fatal ProtocolError: whole, byte by byte and cut at random.

    Both as the daemon reads and as the client does; what was read can be written and read again.
    """
    frames.check_stream(data)


@settings(BUSY, max_examples=100)
@given(
    code=st.sampled_from(sorted(ERRORS)) | texts,
    sentence=texts,
    request=st.none() | ids,
    retry_after_ms=st.none() | st.integers(0, 10**6),
)
def test_any_error_survives_the_wire(code, sentence, request, retry_after_ms):
    """Known code or one of a newer version: the same code, sentence, id and time to come back."""
    error = WireError(code, sentence, request=request, retry_after_ms=retry_after_ms)
    (received,) = read(encode(error.to_message()), requests=False)
    assert check(received, EVENTS) == {"type": "error", "retryable": error.retryable} | {
        "id": request,
        "code": code,
        "message": sentence,
        "retry_after_ms": retry_after_ms,
    }
