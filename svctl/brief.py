"""msgpack of brief flat maps, for the messages of a ping: importing the library takes longer than those take.

A part of the format and never another one: None leaves a map, or bytes, to the library, and a test holds the
two together. Imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_PAIRS, _MAX_TEXT_BYTES, _MAX_SHORT_TEXT_BYTES, _MAX_NUMBER = 15, 255, 31, 127
"""What fixmap, str 8, fixstr and positive fixint hold."""
_FIXMAP, _FIXSTR, _STR8 = 0x80, 0xA0, 0xD9
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_CODES = {None: 0xC0, False: 0xC2, True: 0xC3}


def pack(message: dict[str, Any]) -> bytes | None:
    """The map as msgpack, where it holds only short texts, numbers below 128, booleans and None."""
    if len(message) > _MAX_PAIRS:
        return None
    packed = bytearray((_FIXMAP | len(message),))
    values: list[Any] = [value for pair in message.items() for value in pair]
    for value in values:
        kind = type(value)
        if kind is str:
            try:
                text = value.encode()
            except UnicodeEncodeError:
                return None  # a lone surrogate: every error is the library's
            size = len(text)
            if size > _MAX_TEXT_BYTES:
                return None
            packed += bytes((_FIXSTR | size,) if size <= _MAX_SHORT_TEXT_BYTES else (_STR8, size)) + text
        elif kind is int and 0 <= value <= _MAX_NUMBER:
            packed.append(value)
        elif value is None or kind is bool:
            packed.append(_CODES[value])
        else:
            return None
    return bytes(packed)


def unpack(body: bytes) -> dict[str, Any] | None:
    """The map in these bytes, where that is all of them and it holds no more than `pack` writes."""
    if not body or not _FIXMAP <= body[0] <= _FIXMAP | _MAX_PAIRS:
        return None
    values: list[Any] = []
    at = 1
    try:
        while at < len(body):
            head = body[at]
            at += 1
            if head <= _MAX_NUMBER:
                values.append(head)
            elif head in _CONSTANTS:
                values.append(_CONSTANTS[head])
            else:
                size = head - _FIXSTR
                if head == _STR8:
                    size = body[at]
                    at += 1
                elif not 0 <= size <= _MAX_SHORT_TEXT_BYTES:
                    return None
                text = body[at : at + size]
                if len(text) < size:
                    return None
                values.append(text.decode())
                at += size
    except (IndexError, UnicodeDecodeError):
        return None
    keys = values[::2]
    message = dict(zip(keys, values[1::2], strict=False))
    whole = len(values) == 2 * (body[0] - _FIXMAP) == 2 * len(message)
    return message if whole and all(type(key) is str for key in keys) else None
