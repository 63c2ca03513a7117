"""The protocol: which messages there are, their fields, limits and error codes. Imports nothing.

A message is a map whose `type` names it; the tables below name its fields, and svctl.framing turns it into
bytes. Messages stay plain dicts: a dataclass per message would cost every start of `svctl` the import of
`dataclasses` and `inspect`.

    Exception
     +- WireError            code, sentence, retryable: all that the daemon and svctl can say went wrong
         +- ProtocolError    the peer broke the framing or the shape of a message

Unknown keys are ignored, unknown messages answered `unsupported`, so that a newer minor version can talk to
an older one.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing costs 2 ms of every start; type checkers take this name for typing's
if TYPE_CHECKING:
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
ROOM = "room"
"""What `waits_for` of `progress` is for a request that svctl will send again; no daemon says so itself."""

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

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it says, for pools of processes: its subclasses are made of other arguments."""
        return _remade, (type(self), self.message, vars(self))

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


def _remade(kind: type[WireError], message: str, facts: dict[str, Any]) -> WireError:
    error = kind.__new__(kind, message)
    vars(error).update(facts)
    return error


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
        "waits_for": ((str,), "", None),
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
