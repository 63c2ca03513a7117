"""msgpack of brief maps, for a ping or a clip: importing the library takes longer than reading those by hand.

A part of the format and never another one: None leaves a map, or bytes, to the library, and a test holds the
two together. Imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_PAIRS, _MAX_TEXT_BYTES, _MAX_SHORT_TEXT_BYTES, _MAX_NUMBER = 15, 255, 31, 127
"""What fixmap, str 8, fixstr and positive fixint hold."""
_FIXMAP, _FIXARRAY, _FIXSTR, _LAST_FIXSTR, _STR8 = 0x80, 0x90, 0xA0, 0xBF, 0xD9
_FLOAT, _NUMBER = 0xCB, 0xCC
_KINDS = {
    # first byte: what follows, and the bytes of its value or length
    **{_NUMBER + power: (_NUMBER, 2**power) for power in range(4)},
    _STR8: (_FIXSTR, 1),
    0xDA: (_FIXSTR, 2),
    0xDC: (_FIXARRAY, 2),
    0xDE: (_FIXMAP, 2),
}
_MAX_ITEMS, _MAX_DEPTH = 64, 8
"""Of maps and arrays that are read; the protocol's own limits are no smaller."""
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
    """The map in these bytes, where that is all of them and what it holds is known here."""
    try:
        value, end = _value(body, 0, _MAX_DEPTH)
    except (IndexError, ValueError):  # cut, or unknown; UnicodeDecodeError is a ValueError
        return None
    return value if type(value) is dict and end == len(body) else None


def _value(body: bytes, at: int, depth: int) -> tuple[Any, int]:
    """The value that begins at a byte, and where the next one does; IndexError and ValueError as above."""
    head = body[at]
    at += 1
    if head <= _MAX_NUMBER:
        return head, at
    if head in _CONSTANTS:
        return _CONSTANTS[head], at
    if head == _FLOAT:
        return _double(_cut(body, at, 8)), at + 8
    kind, size = _KINDS.get(head, (head, 0))
    if size:  # bytes of a number or a length
        number = int.from_bytes(_cut(body, at, size), "big")
        at += size
        if kind == _NUMBER:
            return number, at
    elif head > _LAST_FIXSTR:
        raise ValueError
    else:
        kind, number = (_FIXSTR, head & 0x1F) if head >= _FIXSTR else (head & 0xF0, head & 0x0F)
    if kind == _FIXSTR:
        return _cut(body, at, number).decode(), at + number
    if not depth or number > _MAX_ITEMS:
        raise ValueError
    items = []
    for _ in range(number if kind == _FIXARRAY else 2 * number):
        item, at = _value(body, at, depth - 1)
        items.append(item)
    return items if kind == _FIXARRAY else _mapping(items), at


def _mapping(items: list[Any]) -> dict[str, Any]:
    keys = items[::2]
    if not all(type(key) is str for key in keys) or len(set(keys)) != len(keys):
        raise ValueError
    return dict(zip(keys, items[1::2], strict=True))


def _cut(body: bytes, at: int, size: int) -> bytes:
    if at + size > len(body):
        raise IndexError
    return body[at : at + size]


def _double(data: bytes) -> float:
    """An IEEE 754 double without struct, whose import would cost more; ValueError for the odd ones."""
    bits = int.from_bytes(data, "big")
    if not bits:
        return 0.0
    exponent = bits >> 52 & 0x7FF
    if exponent in (0, 0x7FF):  # -0, subnormal, infinite, no number
        raise ValueError
    value = float(bits & (1 << 52) - 1 | 1 << 52) * 2.0 ** (exponent - 1075)
    return -value if bits >> 63 else value
