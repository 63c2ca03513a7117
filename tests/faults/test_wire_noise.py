"""F04: bytes that are no protocol at all, and bytes that nearly are."""

from __future__ import annotations

import contextlib
import random
import socket
import time

import pytest
from harness.wire_client import frame

from svctl.framing import FrameReader, encode
from svctl.wire import ERRORS, EVENTS, MAX_FRAME_BYTES, REQUESTS, ProtocolError, WireError, check


def counts(some, all_of_them):
    """A test's number of rounds: some in every run, all where slow tests are asked for."""
    return pytest.mark.parametrize("count", [some, pytest.param(all_of_them, marks=pytest.mark.slow)])


@counts(1_000, 10_000)
def test_f04_random_bytes_end_their_connection_and_nothing_else(daemon, count, record_property):
    """Seeded noise, bare or in a frame of the right length, before hello or after it.

    Each connection gets one error at most, and is closed.
    """
    noise, errors = random.Random(4), 0
    began_s = time.monotonic()
    for _ in range(count):
        with daemon.client(hello=noise.random() < 0.5) as client:
            sent = noise.randbytes(noise.randint(1, 300))
            with contextlib.suppress(ConnectionError):
                client.send_raw(frame(sent) if noise.random() < 0.5 else sent)
                client.socket.shutdown(socket.SHUT_WR)
            found = client.until_closed()
        assert len(found) <= 1
        assert all((message["type"], message["id"]) == ("error", None) for message in found)
        errors += len(found)
    took_s = time.monotonic() - began_s
    record_property("figure", f"{count:,} connections of noise in {took_s:.1f} s, {errors:,} errors")


MESSAGES = (
    {"type": "hello", "major": 1, "minor": 0, "client": "test"},
    {"type": "transcribe", "id": 1, "source": "fd", "label": "通话.wav", "language": "yue", "vad": False},
    {"type": "audio", "id": 1, "data": b"RIFF\x00\xff" * 9},
    {"type": "end", "id": 2**53},
    {"type": "progress", "id": 300, "decoded_s": 61.5, "recognised_s": 30.25},
    {"type": "segment", "id": 1, "index": 70_000, "words": [{"word": "你", "start": 0.41, "end": 0.65}] * 2},
    WireError("busy", "Too much.", request=-40, retry_after_ms=250).to_message(),
    {"type": "status", "id": 1, "status": {"queue": {"jobs": 2**40}, "gpu": None, "backend": "x" * 40}},
)
FRAMES = [encode(message) for message in MESSAGES]


def mutated(chance):
    """A valid frame with something wrong in it, most often under a header of the right length."""
    body = bytearray(chance.choice(FRAMES)[4:])
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(body) + 1)
        match chance.randrange(5):
            case 0:
                body[at : at + 1] = chance.randbytes(1)
            case 1:
                body[at:at] = chance.randbytes(chance.randint(1, 4))
            case 2:
                del body[at : at + chance.randint(1, 4)]
            case 3:
                other = chance.choice(FRAMES)[4:]
                body[at:] = other[chance.randrange(len(other)) :]
            case 4:
                body[at : at + 1] = chance.choice(
                    b"\x80\x8f\x90\xc1\xc4\xc7\xc9\xd6\xd9\xdb\xdd\xdf"
                ).to_bytes()
    data = bytearray(frame(bytes(body)))
    if chance.random() < 0.2:
        data[chance.randrange(4)] = chance.randrange(256)
    if chance.random() < 0.1:
        del data[chance.randrange(len(data)) :]
    return bytes(data) + chance.choice((b"", chance.choice(FRAMES)))


def verdict(data, step, *, requests):
    """The messages in some bytes, and the code of the error that ends them, fed in so many at a time."""
    reader, found = FrameReader(MAX_FRAME_BYTES, requests=requests), []
    try:
        for at in range(0, len(data), step):
            reader.feed(data[at : at + step])
            found.extend(reader.messages())
    except ProtocolError as error:
        return found, error.code
    return found, None


@counts(5_000, 100_000)
def test_f04_mutated_frames_have_one_verdict_however_they_are_cut(count, record_property):
    """Valid frames with bytes changed, put in, taken out and spliced, as either side reads them.

    Only ProtocolError comes of it, and the same whole as byte by byte; what passes for a message is taken or
    refused by the tables.
    """
    chance = random.Random(100)
    accepted, refused = 0, 0
    for n in range(count):
        data, requests = mutated(chance), bool(n % 2)
        found, code = verdict(data, MAX_FRAME_BYTES, requests=requests)
        # by their texts, as a NaN is not equal to itself
        assert repr(verdict(data, 1, requests=requests)) == repr((found, code)), data.hex()
        assert code is None or code in ERRORS
        refused += code is not None
        for message in found:
            try:
                check(message, REQUESTS if requests else EVENTS)
            except ProtocolError as error:
                assert error.code in ERRORS  # noqa: PT017 - both outcomes are right
            else:
                accepted += 1
    assert accepted > count / 50
    assert refused > count / 4
    record_property("figure", f"{count:,} mutated frames: {refused:,} refused, {accepted:,} still messages")
