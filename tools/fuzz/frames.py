"""The frame reader's target: any bytes are messages or one ProtocolError, the same wherever they are cut.

Must never import sockets, nor the fuzzer.
"""

from __future__ import annotations

import random
import zlib
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from svctl import framing, wire
from tools.fuzz import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Verdict = tuple[list[dict[str, Any]], tuple[str, bool, str] | None]

MAX_BYTES = 768
"""Two brief frames, or one that is too long to be read without msgpack; each byte is also fed alone."""
DICTIONARY = (*wire.REQUESTS, *wire.EVENTS, "type", "id", "source", "stream", "data", "major", "minor")
"""Words the fuzzer may put in."""
MAX_SENTENCE_CHARS = 400


def verdict(data: bytes, cuts: Iterable[int] = (), *, requests: bool) -> Verdict:
    """The messages in `data` and what ends them, when it is fed in pieces.

    As a connection reads: the limit is that of a stranger until the first message. An error is its code,
    whether it is fatal, and its sentence.
    """
    reader = framing.FrameReader(requests=requests)
    found: list[dict[str, Any]] = []
    try:
        for start, end in pairwise([0, *cuts, len(data)]):
            reader.feed(data[start:end])
            for message in reader.messages():
                found.append(message)
                reader.max_frame_bytes = wire.MAX_FRAME_BYTES
    except wire.ProtocolError as error:
        return found, (error.code, error.fatal, error.message)
    return found, None


def settled(message: dict[str, Any], table: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """What the tables make of a message; None where they refuse it, which has to be done properly."""
    try:
        checked = wire.check(message, table)
    except wire.ProtocolError as error:
        require(error.code in ("protocol", "unsupported", "invalid_request"), "check's codes are its own")
        require(error.fatal == (error.code == "protocol"), "only a message without a type is fatal")
        is_sentence(error.message)
        return None
    require(repr(wire.check(checked, table)) == repr(checked), "a checked message passes unchanged")
    return checked


def is_sentence(text: str) -> None:
    """Require one line of bearable length."""
    require(0 < len(text) <= MAX_SENTENCE_CHARS and text.endswith("."), "an error is one sentence")
    require(text.isprintable(), "nothing in an error steers a terminal")


def again(message: dict[str, Any]) -> None:
    """Require that what was read can be written, and is read alike."""
    try:
        frame = framing.encode(message)
    except ValueError as error:
        # msgpack reads lists in lists twice as deep as it writes them; nobody writes what was read
        require("recursion limit" in str(error), "what was read can be written")
        return
    found, ended = verdict(frame, requests=False)
    require(ended is None and repr(found) == repr([message]), "what was read is read again alike")


def check_stream(data: bytes, *, by_byte: bool = True) -> None:
    """Require all that holds of any bytes; cut at random, and `by_byte`."""
    cuts = random.Random(zlib.crc32(data))
    some = sorted(cuts.randint(0, len(data)) for _ in range(cuts.randint(1, 6)))
    for requests, table in ((True, wire.REQUESTS), (False, wire.EVENTS)):
        whole = verdict(data, requests=requests)
        for pieces in (some, range(1, len(data))) if by_byte else (some,):
            require(repr(verdict(data, pieces, requests=requests)) == repr(whole), "cuts change nothing")
        messages, ended = whole
        if ended is not None:
            code, fatal, sentence = ended
            require(code in ("protocol", "frame_too_large") and fatal, "a lost framing ends the connection")
            is_sentence(sentence)
        for message in messages:
            settled(message, table)
            again(message)


def check(data: bytes) -> None:
    """Look at an input as a stream, and as the body of one frame: few random lengths fit their body."""
    check_stream(data)
    check_stream(len(data).to_bytes(framing.HEADER_BYTES, "big") + data, by_byte=False)


def make_check() -> Callable[[bytes], None]:
    """Give the function that is fuzzed."""
    framing.load_codec()
    return check


def seeds() -> dict[str, bytes]:
    """Each message, made by the protocol's own code, with its header and without, and a conversation."""
    word = {"word": "hello", "start": 0.25, "end": 0.5}
    samples: dict[type, object] = {int: 1, str: "text", bool: True, bytes: b"audio", float: 0.5}
    samples |= {list: [word], dict: {"total_s": 1.5, "deep": {"list": [1, None]}}, type(None): None}
    found = {}
    for side, table in (("request", wire.REQUESTS), ("event", wire.EVENTS)):
        for kind, fields in table.items():
            message = {"type": kind}
            for name, (types, _default, limit) in fields.items():
                chosen = limit and isinstance(limit, tuple) and isinstance(limit[0], str)
                message[name] = limit[-1] if chosen else samples[types[-1]]
            found[f"{side}-{kind}"] = framing.encode(message)
    long = {"type": "segment", "id": 300, "text": "長い" * 60, "words": [word] * 5}
    found["event-long"] = framing.encode(long)
    found |= {f"body-of-{name}": data[framing.HEADER_BYTES :] for name, data in found.items()}
    found["conversation"] = b"".join(found[f"request-{kind}"] for kind in ("hello", "transcribe", "end"))
    return found
