"""Messages as bytes: frames cut from a stream whole, and the msgpack in them, within the protocol's limits.

A frame is a u32 big-endian length and one msgpack map. Sans-IO; may import msgpack only, and that late, as it
takes a third as long as Python itself takes to start.
"""

from __future__ import annotations

from svctl import brief, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from svctl.wire import Message

HEADER_BYTES = 4
"""A frame's length, big-endian. Not by way of struct, whose import would be 2 % of a ping."""
_BY_HAND_BYTES = 4_096
"""Of a connection's first events: reading so much of them by hand is quicker than to import msgpack."""


def encode(message: Message) -> bytes:
    """One frame. Raises ProtocolError `frame_too_large` above `MAX_FRAME_BYTES`."""
    body = brief.pack(message)
    if body is None:
        import msgpack  # noqa: PLC0415 - see `load_codec`

        body = msgpack.packb(message)
    if len(body) > wire.MAX_FRAME_BYTES:
        raise wire.ProtocolError(
            "frame_too_large", f"A message of {len(body)} bytes exceeds {wire.MAX_FRAME_BYTES}."
        )
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def load_codec() -> None:
    """Import msgpack now, where there is time for it, and not when it is first needed."""
    import msgpack  # noqa: F401, PLC0415


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a key stands twice")
    if bytes in map(type, mapping):  # strict_map_key refuses all others
        raise ValueError("a key is no string")
    return mapping


def _one_map() -> Callable[[list[tuple[Any, Any]]], dict[Any, Any]]:
    """A hook that lets one map pass; inner maps are complete before the outer one."""
    seen = False

    def hook(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        nonlocal seen
        if seen:
            raise ValueError("a map inside a request")
        seen = True
        return _unique(pairs)

    return hook


def _refuse_array(items: list[Any]) -> Any:
    """Refuse empty arrays too, which `max_array_len` lets pass."""
    raise ValueError(f"an array of {len(items)}")


def _refuse_ext(code: int, data: bytes) -> Any:
    """Refuse extension types of no length too, which `max_ext_len` lets pass."""
    raise ValueError(f"extension type {code} of {len(data)} bytes")


def decode(body: bytes | bytearray | memoryview, *, flat: bool = False) -> Message:
    """One frame's map. Raises ProtocolError for what is not msgpack within the limits, or not a map.

    `flat` refuses arrays and inner maps at the first one: no request holds any, and a frame of a million
    empty ones would cost its reader a third of a second and seventy times its size.
    """
    import msgpack  # noqa: PLC0415 - see `load_codec`

    try:
        message = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_one_map() if flat else _unique,
            list_hook=_refuse_array if flat else None,
            max_array_len=0 if flat else wire.MAX_ARRAY,
            max_map_len=wire.MAX_MAP,
            max_str_len=wire.MAX_STR_BYTES,
            max_bin_len=wire.MAX_AUDIO_BYTES,
            max_ext_len=0,
            ext_hook=_refuse_ext,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        # UnicodeDecodeError and msgpack's own errors for limits, depth and trailing bytes are ValueErrors
        raise wire.ProtocolError(
            "protocol", f"A frame is not valid msgpack ({type(error).__name__})."
        ) from None
    if not isinstance(message, dict):
        raise wire.ProtocolError("protocol", "A frame does not hold a map.")
    return message


class FrameReader:
    """Bytes in, whole frames out; the same verdict however the bytes are cut."""

    def __init__(self, max_frame_bytes: int = wire.MAX_HELLO_BYTES, *, requests: bool = False) -> None:
        """`max_frame_bytes` may be raised once the peer has said hello.

        `requests` is the daemon's side: only flat maps, and only `audio` above `MAX_HELLO_BYTES`.
        """
        self.max_frame_bytes = max_frame_bytes
        self._requests = requests
        self._by_hand = 0 if requests else _BY_HAND_BYTES
        self._buffer = bytearray()

    @property
    def partial(self) -> bool:
        """Whether a frame has begun and is not complete: its deadline runs."""
        return bool(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add received bytes."""
        self._buffer += data

    def next(self) -> Message | None:
        """The next message, unchecked by the tables, or None until more comes. Raises ProtocolError."""
        if len(self._buffer) < HEADER_BYTES:
            return None
        length = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
        if length > self.max_frame_bytes:
            raise wire.ProtocolError(
                "frame_too_large", f"A frame of {length} bytes exceeds the limit of {self.max_frame_bytes}."
            )
        end = HEADER_BYTES + length
        if len(self._buffer) < end:
            return None
        body = bytes(memoryview(self._buffer)[HEADER_BYTES:end])
        del self._buffer[:end]
        message = None
        if length <= self._by_hand:
            self._by_hand -= length
            message = brief.unpack(body)
        if message is None:
            message = decode(body, flat=self._requests)
        if self._requests and length > wire.MAX_HELLO_BYTES and message.get("type") != "audio":
            sentence = (
                f"A frame of {length} bytes is no audio, and {wire.MAX_HELLO_BYTES} is the limit of others."
            )
            raise wire.ProtocolError("frame_too_large", sentence)
        return message

    def messages(self) -> Iterator[Message]:
        """All complete messages that are there; see `next`."""
        while (message := self.next()) is not None:
            yield message
