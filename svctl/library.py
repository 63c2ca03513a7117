"""The client for programs: `svctl.Client`, which blocks. Not imported by the command line.

>>> with Client() as client:
...     transcript = client.transcribe("call.wav")
...     print(transcript.language, transcript.text)
en hello world
"""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from svctl import wire
from svctl.connect import connect
from svctl.connection import error_of
from svctl.options import PATIENCE_S
from svctl.pipeline import Pipeline
from svctl.recording import source_of
from svctl.results import segment_of, transcript_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import TracebackType

    from svctl.connection import Connection
    from svctl.recording import Audio
    from svctl.results import Segment, Transcript
    from svctl.sources import Source
    from svctl.wire import Message


_MAX_RESTING = 8
"""Connections kept for the next requests: each costs the daemon a few KiB, and a new one 0.3 ms."""


class Wishes(TypedDict, total=False):
    """What a transcription may be asked for, with the meanings and defaults of `svctl transcribe`."""

    language: str
    itn: bool
    vad: bool
    channels: str
    start_s: float
    duration_s: float


class Client:
    """The daemon, for a program; use it in a `with` block, or close it.

    Threads may share one. Every request has a connection to itself, and those that rest are used again; where
    the daemon has ended one, as it does when it restarts or was not asked for five minutes, and in a process
    that was forked, there is a new one. What goes wrong is raised as svctl.Error, whose `code` is stable
    (PROTOCOL.md) and whose message is one sentence.
    """

    def __init__(self, socket: str | os.PathLike[str] = "", *, patience_s: float = PATIENCE_S) -> None:
        """Connect to `socket`, else to where `svctl` would look.

        A daemon that is loading or full is asked again for `patience_s` seconds, here and in every request.
        """
        self._patience_s = patience_s
        self._socket = os.fspath(socket)
        self._process = os.getpid()
        self._closed = False
        self._server = ""
        self._heard_s = 0.0
        """When the daemon last said something of a recording, on the monotonic clock."""
        self._resting: list[Connection] = []
        self._busy: set[Connection] = set()
        self._give_back(self._connected())

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    @property
    def server(self) -> str:
        """Which daemon answered last, such as `sensevoiced/0.1.0`."""
        return self._server

    def transcribe(
        self,
        audio: Audio,
        *,
        rate: int | None = None,
        label: str | None = None,
        timeout_s: float | None = None,
        **wishes: Unpack[Wishes],
    ) -> Transcript:
        """Transcribe one recording.

        `audio` is a path, an open binary file, the bytes of a file, or an array of samples with its `rate`
        (see svctl.recording); `label` is its name for the daemon's log. After `timeout_s` seconds the request
        is cancelled and Error `timeout` raised; None waits. `wishes` are the keywords that Wishes names.
        """
        fields = fields_of(**wishes)
        source = source_of(audio, rate, label)
        events: list[Message] = []
        done: Message | None = None
        for event in self._events(source, fields, timeout_s):
            if event["type"] == "segment":
                events.append(event)
            elif event["type"] == "done":
                done = event
        assert done is not None  # noqa: S101 - _events ends with it, or raises
        return transcript_of(source.label, events, done)

    def segments(
        self,
        audio: Audio,
        *,
        rate: int | None = None,
        label: str | None = None,
        timeout_s: float | None = None,
        **wishes: Unpack[Wishes],
    ) -> Iterator[Segment]:
        """Give the segments of one recording as they are recognised; arguments as of `transcribe`.

        Leaving the loop early cancels what is left.
        """
        # checked here: a generator's own first lines run only when somebody asks for what it gives
        return self._segments(partial(source_of, audio, rate, label), fields_of(**wishes), timeout_s)

    def _segments(
        self, opened: Callable[[], Source], fields: dict[str, Any], timeout_s: float | None
    ) -> Iterator[Segment]:
        for event in self._events(opened(), fields, timeout_s):
            if event["type"] == "segment":
                yield segment_of(event)

    def status(self) -> dict[str, Any]:
        """What the daemon runs, holds and has done: `status` of PROTOCOL.md."""
        status: dict[str, Any] = self._call("status", "status")["status"]
        return status

    def ping(self) -> None:
        """Return when the daemon has answered."""
        self._call("ping", "pong")

    def reload(self) -> str:
        """Let the daemon read its settings again; what came of it, in a sentence."""
        message: str = self._call("reload", "reloaded")["message"]
        return message

    def close(self) -> None:
        """End all connections; what is unfinished is dropped, and whoever waits for it is told so."""
        self._closed = True
        while self._resting:
            self._resting.pop().close()
        for connection in list(self._busy):
            connection.hang_up()

    def _call(self, kind: str, answer: str) -> Message:
        with self._taken() as connection:
            return connection.call(kind, answer, patience_s=self._patience_s)

    def _events(
        self, source: Source, fields: dict[str, Any], timeout_s: float | None
    ) -> Generator[Message, None, None]:
        ends_s = None if timeout_s is None else time.monotonic() + timeout_s
        # threads share us: while the daemon works on others of ours it is not stuck
        one = Pipeline(
            _One(source),
            fields,
            patience_s=self._patience_s,
            ends_s=ends_s,
            heard_s=lambda: self._heard_s,
        )
        try:
            with self._taken(ends_s) as connection:
                for name in fields:
                    connection.needs(name)
                one.begin(connection)
                finished = False
                try:
                    for _, event in one.run():
                        finished = event["type"] in ("done", "error")
                        if event["type"] == "error":
                            raise error_of(event)
                        self._heard_s = time.monotonic()
                        yield event
                finally:
                    if not finished:
                        connection.cancel_all()
        finally:
            if source.descriptor >= 0:  # Pipeline closes what it was answered
                os.close(source.descriptor)
                source.descriptor = -1

    @contextlib.contextmanager
    def _taken(self, ends_s: float | None = None) -> Iterator[Connection]:
        """A connection for one request, that nobody else uses meanwhile; a new one is there at `ends_s`."""
        connection = self._rested() or self._connected(ends_s)
        self._busy.add(connection)
        try:
            yield connection
        except (wire.WireError, GeneratorExit):
            self._give_back(connection)
            raise
        except BaseException:
            # Ctrl-C, say, which may have come in the middle of a message
            self._busy.discard(connection)
            connection.close()
            raise
        else:
            self._give_back(connection)

    def _connected(self, ends_s: float | None = None) -> Connection:
        if self._closed:
            raise wire.WireError("unavailable", "The client is closed.")
        patience_s = self._patience_s
        if ends_s is not None:
            patience_s = min(patience_s, ends_s - time.monotonic())
        connection = connect(self._socket, patience_s=patience_s)
        self._server = connection.server
        return connection

    def _rested(self) -> Connection | None:
        """One that is there and still good; nothing has been sent over the others, which are closed."""
        if self._process != os.getpid():  # forked: they are the parent's, who uses them
            self._process = os.getpid()
            self._resting, self._busy = [], set()
        while self._resting:
            connection = self._resting.pop()
            if _is_usable(connection):
                return connection
            connection.close()
        return None

    def _give_back(self, connection: Connection) -> None:
        self._busy.discard(connection)
        if _is_usable(connection) and len(self._resting) < _MAX_RESTING and not self._closed:
            self._resting.append(connection)
        else:
            connection.close()


def _is_usable(connection: Connection) -> bool:
    """Whether a connection without a request can take one; what came for one that was left is dropped."""
    try:
        connection.pump()
    except wire.WireError:
        return False
    while connection.take() is not None:
        pass
    return not (connection.ended or connection.closing or connection.backlog_bytes)


class _One:
    """One recording, as Pipeline asks for names."""

    descriptor = -1

    def __init__(self, source: Source) -> None:
        self._source: Source | None = source

    def next(self) -> Source | None:
        """The recording, once."""
        source, self._source = self._source, None
        return source


def fields_of(
    *,
    language: str = "auto",
    itn: bool = True,
    vad: bool = True,
    channels: str = "mix",
    start_s: float = 0.0,
    duration_s: float = 0.0,
) -> dict[str, Any]:
    """The options of a request; ValueError for what no daemon takes."""
    for what, allowed in ((language, wire.LANGUAGES), (channels, wire.CHANNELS)):
        if what not in allowed:
            raise ValueError(f"{what!r} is not one of {', '.join(allowed)}")
    # numpy's numbers are numbers too
    start_s, duration_s = float(start_s), float(duration_s)
    for seconds in (start_s, duration_s):
        if not 0 <= seconds <= wire.MAX_POSITION_S:
            raise ValueError(f"{seconds!r} is no number of seconds from 0 to {wire.MAX_POSITION_S}")
    newer = {"channels": channels, "start": start_s, "duration": duration_s}
    # left out where they say nothing: a daemon of protocol 1.0 does not know them
    asked = {name: value for name, value in newer.items() if value not in ("mix", 0)}
    return {"language": language, "itn": itn, "vad": vad, **asked}
