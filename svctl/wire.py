"""The protocol: messages, framing, limits and error codes; sans-IO, must import msgpack only, and that late.

A frame is a u32 big-endian length and one msgpack map. The map's `type` names the message; the tables below
name its fields. Messages stay plain dicts: a dataclass per message would cost every start of `svctl` the
import of `dataclasses` and `inspect`.

    Exception
     +- WireError            code, sentence, retryable: all that the daemon and svctl can say went wrong
         +- ProtocolError    the peer broke the framing or the shape of a message

Unknown keys are ignored, unknown messages answered `unsupported`, so that a newer minor version can talk to
an older one.
"""

from __future__ import annotations

from svctl import brief

TYPE_CHECKING = False  # typing costs 2 ms of every start; type checkers take this name for typing's
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Message = dict[str, Any]

VERSION_MAJOR = 1
VERSION_MINOR = 1

MAX_HELLO_BYTES = 64 * 2**10
"""Largest frame before the peer has said hello, and of any request but `audio` after it: a stranger cannot
make the daemon hold more."""
MAX_FRAME_BYTES = 2**20
"""Largest frame afterwards. A segment of 30 s is about 10 KiB; audio comes in pieces of `MAX_AUDIO_BYTES`."""
MAX_AUDIO_BYTES = 256 * 2**10
"""Largest `data` of one `audio` message: 8 s of 16-bit PCM, small enough to interleave with others."""
MAX_ARRAY, MAX_MAP, MAX_STR_BYTES = 4_096, 64, 64 * 2**10
"""Ceilings inside one frame; msgpack's own are 100 MiB."""
MAX_LABEL_CHARS = 4_096
"""PATH_MAX: a label is the path as the user typed it."""
CHANNELS = ("mix", "split", *map(str, range(1, 17)))
"""What becomes of a recording's channels: their mean, each for itself, or one of them."""
MAX_POSITION_S = 864_000
"""Ten days: `start` and `duration` beyond any recording."""
MAX_JOBS, MAX_JOB_LABEL_CHARS = 500, 256
"""Of the answer to `jobs`: in UTF-8 at its longest it fits a frame."""
MAX_ID = 2**53
"""Request ids are exact in every language's numbers."""
MAX_VERSION = 2**16
"""Of a major or a minor number: no protocol has had as many."""
MAX_CLIENT_CHARS = 256
"""What a program calls itself, with its version."""

LANGUAGES = ("auto", "zh", "en", "yue", "ja", "ko")
"""What a request may ask for; `auto` lets the model decide. An unknown language is refused."""
SOURCES = ("fd", "path", "stream")

HEADER_BYTES = 4
"""A frame's length, big-endian. Not by way of struct, whose import would be 2 % of a ping."""
_BRIEF_BYTES = 512
"""Bodies up to here are tried without msgpack: a welcome, a pong, an error."""

ERRORS: dict[str, tuple[bool, int, str]] = {
    # code: (worth trying again unchanged, exit status of svctl after sysexits.h, meaning)
    "protocol": (False, 76, "the peer sent what is not this protocol"),
    "frame_too_large": (False, 76, "a frame is longer than the limit in force"),
    "unsupported": (False, 69, "unknown message, or a protocol version that this side does not speak"),
    "invalid_request": (False, 64, "a field is missing, of the wrong type, or outside its range"),
    "bad_input": (False, 65, "the audio cannot be read"),
    "too_long": (False, 65, "the audio is longer than a limit"),
    "not_found": (False, 66, "the file does not exist or cannot be opened"),
    "forbidden": (False, 77, "this user may not ask for that"),
    "busy": (True, 75, "the daemon has as much work as it accepts; retry_after_ms says when to come back"),
    "too_many_connections": (True, 75, "the daemon has as many connections as it accepts"),
    "timeout": (True, 75, "a deadline passed"),
    "shutting_down": (True, 75, "the daemon is stopping"),
    "cancelled": (False, 130, "the client asked for it"),
    "unavailable": (True, 69, "no daemon answers, or the connection broke"),
    "internal": (False, 70, "a defect of the daemon; its log has the details"),
    "config": (False, 78, "a setting cannot be used"),
}
"""The only table of codes: whether to retry, and the exit status, follow from the code alone."""


class WireError(Exception):
    """What one side tells the other when something cannot be done: a stable code and one sentence."""

    def __init__(
        self, code: str, message: str, *, request: int | None = None, retry_after_ms: int | None = None
    ) -> None:
        """`request` is the id of the request it answers, None for the whole connection."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.request = request
        self.retry_after_ms = retry_after_ms

    @property
    def retryable(self) -> bool:
        """Whether the same request can succeed later; False for codes of a newer minor version."""
        return ERRORS.get(self.code, (False, 70, ""))[0]

    @property
    def exit_status(self) -> int:
        """Exit status of `svctl`, after sysexits.h; 70 for codes of a newer minor version."""
        return ERRORS.get(self.code, (False, 70, ""))[1]

    def to_message(self) -> Message:
        """The `error` event that carries this."""
        return {
            "type": "error",
            "id": self.request,
            "code": self.code,
            "message": self.message,
            "retryable": self.retryable,
            "retry_after_ms": self.retry_after_ms,
        }


class ProtocolError(WireError):
    """Bytes or shapes that are not this protocol; `fatal`: the framing is lost, the connection must end."""

    def __init__(self, code: str, message: str, *, request: int | None = None, fatal: bool = True) -> None:
        """Framing errors are fatal, there is no resynchronising; shape errors are not."""
        super().__init__(code, message, request=request)
        self.fatal = fatal


_REQUIRED = object()

# field: (accepted types, default or _REQUIRED, check)
# check: (lowest, highest), the allowed values, the longest length, or None
_ID = ((int,), _REQUIRED, (0, MAX_ID))
REQUESTS: dict[str, dict[str, tuple[Any, Any, Any]]] = {
    "hello": {
        "major": ((int,), _REQUIRED, (0, MAX_VERSION)),
        "minor": ((int,), _REQUIRED, (0, MAX_VERSION)),
        "client": ((str,), "", MAX_CLIENT_CHARS),
    },
    "transcribe": {
        "id": _ID,
        "source": ((str,), _REQUIRED, SOURCES),
        "label": ((str,), "", MAX_LABEL_CHARS),
        "path": ((str,), "", MAX_LABEL_CHARS),
        "language": ((str,), "auto", LANGUAGES),
        "itn": ((bool,), True, None),
        "vad": ((bool,), True, None),
        "channels": ((str,), "mix", CHANNELS),
        "start": ((int, float), 0, (0, MAX_POSITION_S)),
        "duration": ((int, float), 0, (0, MAX_POSITION_S)),
    },
    "audio": {"id": _ID, "data": ((bytes,), _REQUIRED, MAX_AUDIO_BYTES)},
    "end": {"id": _ID},
    "cancel": {"id": _ID},
    "status": {"id": _ID},
    "ping": {"id": _ID},
    "reload": {"id": _ID},
    "jobs": {"id": _ID},
    "drop": {"id": _ID, "job": ((int,), _REQUIRED, (1, MAX_ID))},
}
"""Client to daemon. Ids are the client's, unique among its unfinished requests of one connection."""

SINCE = {"jobs": 1, "drop": 1, "channels": 1, "start": 1, "duration": 1}
"""The minor version that brought a request, or a field of `transcribe`, where it is not 0."""

_NUMBER = (int, float)
EVENTS: dict[str, dict[str, tuple[Any, Any, Any]]] = {
    "welcome": {
        "major": ((int,), _REQUIRED, None),
        "minor": ((int,), _REQUIRED, None),
        "server": ((str,), "", None),
    },
    "progress": {
        "id": _ID,
        "decoded_s": (_NUMBER, _REQUIRED, None),
        "recognised_s": (_NUMBER, _REQUIRED, None),
    },
    "segment": {
        "id": _ID,
        "index": ((int,), _REQUIRED, None),
        "start": (_NUMBER, _REQUIRED, None),
        "end": (_NUMBER, _REQUIRED, None),
        "language": ((str,), _REQUIRED, None),
        "language_score": (_NUMBER, _REQUIRED, None),
        "emotion": ((str,), _REQUIRED, None),
        "emotion_score": (_NUMBER, _REQUIRED, None),
        "event": ((str,), _REQUIRED, None),
        "event_score": (_NUMBER, _REQUIRED, None),
        "itn": ((bool,), True, None),
        "text": ((str,), _REQUIRED, None),
        "raw": ((str,), "", None),
        "channel": ((int,), 0, None),
        "words": ((list,), (), None),
    },
    "done": {
        "id": _ID,
        "duration": (_NUMBER, _REQUIRED, None),
        "segments": ((int,), _REQUIRED, None),
        "truncated": ((bool,), False, None),
        "model": ((str,), _REQUIRED, None),
        "timings": ((dict,), {}, None),
    },
    "error": {
        "id": ((int, type(None)), None, None),
        "code": ((str,), _REQUIRED, None),
        "message": ((str,), _REQUIRED, None),
        "retryable": ((bool,), False, None),
        "retry_after_ms": ((int, type(None)), None, None),
    },
    "status": {"id": _ID, "status": ((dict,), _REQUIRED, None)},
    "pong": {"id": _ID},
    "reloaded": {"id": _ID, "message": ((str,), "", None)},
    "jobs": {"id": _ID, "jobs": ((list,), _REQUIRED, None)},
    "dropped": {"id": _ID},
}
"""Daemon to client. Every `transcribe` ends with exactly one `done` or one `error` that carries its id."""


def check(message: Message, table: dict[str, dict[str, tuple[Any, Any, Any]]]) -> Message:
    """The message with its defaults filled in and unknown keys dropped.

    Raises ProtocolError, not fatal: `unsupported` for an unknown type, `invalid_request` for a field that
    does not fit.
    """
    kind = message.get("type")
    request = message.get("id")
    if type(request) is not int or not 0 <= request <= MAX_ID:
        request = None
    if not isinstance(kind, str):
        raise ProtocolError("protocol", "The message has no type.", request=request)
    fields = table.get(kind)
    if fields is None:
        raise ProtocolError(
            "unsupported", f"There is no message of type {kind[:40]!r}.", request=request, fatal=False
        )
    checked: Message = {"type": kind}
    for name, (types, default, limit) in fields.items():
        value = message.get(name, default)
        # bool is an int to isinstance, but `id: true` is a mistake
        if value is _REQUIRED or (value is not default and type(value) not in types):
            wanted = " or ".join(t.__name__ for t in types)
            what = "needs" if value is _REQUIRED else "has a wrong type in"
            raise ProtocolError(
                "invalid_request", f"{kind} {what} {name} ({wanted}).", request=request, fatal=False
            )
        if limit is not None and value is not default:
            _check_limit(kind, name, value, limit, request)
        checked[name] = value
    return checked


def _check_limit(kind: str, name: str, value: Any, limit: Any, request: int | None) -> None:
    if isinstance(limit, int):
        problem = f"is longer than {limit}" if len(value) > limit else ""
    elif isinstance(limit[0], str):
        problem = f"is {value[:40]!r}; it takes one of {', '.join(limit)}" if value not in limit else ""
    else:
        problem = f"is outside {limit[0]}..{limit[1]}" if not limit[0] <= value <= limit[1] else ""
    if problem:
        raise ProtocolError("invalid_request", f"{name} of {kind} {problem}.", request=request, fatal=False)


def encode(message: Message) -> bytes:
    """One frame. Raises ProtocolError `frame_too_large` above `MAX_FRAME_BYTES`."""
    body = brief.pack(message)
    if body is None:
        import msgpack  # noqa: PLC0415 - see `load_codec`

        body = msgpack.packb(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError("frame_too_large", f"A message of {len(body)} bytes exceeds {MAX_FRAME_BYTES}.")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def load_codec() -> None:
    """Import msgpack now, where there is time for it, and not when it is first needed.

    It is not imported with this module, because it takes a third as long as Python itself takes to start.
    """
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
    if not flat and len(body) <= _BRIEF_BYTES and (read := brief.unpack(bytes(body))) is not None:
        return read
    import msgpack  # noqa: PLC0415 - see `load_codec`

    try:
        message = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_one_map() if flat else _unique,
            list_hook=_refuse_array if flat else None,
            max_array_len=0 if flat else MAX_ARRAY,
            max_map_len=MAX_MAP,
            max_str_len=MAX_STR_BYTES,
            max_bin_len=MAX_AUDIO_BYTES,
            max_ext_len=0,
            ext_hook=_refuse_ext,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        # UnicodeDecodeError and msgpack's own errors for limits, depth and trailing bytes are ValueErrors
        raise ProtocolError("protocol", f"A frame is not valid msgpack ({type(error).__name__}).") from None
    if not isinstance(message, dict):
        raise ProtocolError("protocol", "A frame does not hold a map.")
    return message


class FrameReader:
    """Bytes in, whole frames out; the same verdict however the bytes are cut."""

    def __init__(self, max_frame_bytes: int = MAX_HELLO_BYTES, *, requests: bool = False) -> None:
        """`max_frame_bytes` may be raised once the peer has said hello.

        `requests` is the daemon's side: only flat maps, and only `audio` above `MAX_HELLO_BYTES`.
        """
        self.max_frame_bytes = max_frame_bytes
        self._requests = requests
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
            raise ProtocolError(
                "frame_too_large", f"A frame of {length} bytes exceeds the limit of {self.max_frame_bytes}."
            )
        end = HEADER_BYTES + length
        if len(self._buffer) < end:
            return None
        body = bytes(memoryview(self._buffer)[HEADER_BYTES:end])
        del self._buffer[:end]
        message = decode(body, flat=self._requests)
        if self._requests and length > MAX_HELLO_BYTES and message.get("type") != "audio":
            raise ProtocolError(
                "frame_too_large",
                f"A frame of {length} bytes is no audio, and {MAX_HELLO_BYTES} is the limit of all else.",
            )
        return message

    def messages(self) -> Iterator[Message]:
        """All complete messages that are there; see `next`."""
        while (message := self.next()) is not None:
            yield message
