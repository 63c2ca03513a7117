"""The client for programs: `svctl.Client`, which blocks. Not imported by the command line.

>>> with Client() as client:                                    # doctest: +SKIP
...     transcript = client.transcribe("call.wav")
...     print(transcript.language, transcript.text)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from svctl import wire
from svctl.connect import connect
from svctl.connection import error_of
from svctl.options import PATIENCE_S
from svctl.pipeline import Pipeline
from svctl.recording import source_of
from svctl.results import segment_of, transcript_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from types import TracebackType

    from svctl.recording import Audio
    from svctl.results import Segment, Transcript
    from svctl.sources import Source
    from svctl.wire import Message


class Wishes(TypedDict, total=False):
    """What a transcription may be asked for, with the meanings and defaults of `svctl transcribe`."""

    language: str
    itn: bool
    vad: bool
    channels: str
    start_s: float
    duration_s: float


class Client:
    """One connection to the daemon, for one thread; use it in a `with` block.

    What goes wrong is raised as svctl.Error, whose `code` is stable (PROTOCOL.md) and whose message is one
    sentence.
    """

    def __init__(self, socket: str | os.PathLike[str] = "", *, patience_s: float = PATIENCE_S) -> None:
        """Connect to `socket`, else to where `svctl` would look.

        A daemon that is loading or full is asked again for `patience_s` seconds, here and in every request.
        """
        self._patience_s = patience_s
        self._socket = os.fspath(socket)
        self._connection = connect(self._socket, patience_s=patience_s, answer_s=patience_s)

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
        """Which daemon answers, such as `sensevoiced/0.1.0`."""
        return self._connection.server

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

        Leaving the loop early cancels what is left. One at a time: the connection is busy until it ends.
        """
        fields = fields_of(**wishes)
        source = source_of(audio, rate, label)
        for event in self._events(source, fields, timeout_s):
            if event["type"] == "segment":
                yield segment_of(event)

    def status(self) -> dict[str, Any]:
        """What the daemon runs, holds and has done: `status` of PROTOCOL.md."""
        answer = self._connection.call("status", "status", patience_s=self._patience_s)
        status: dict[str, Any] = answer["status"]
        return status

    def ping(self) -> None:
        """Return when the daemon has answered."""
        self._connection.call("ping", "pong", patience_s=self._patience_s)

    def reload(self) -> str:
        """Let the daemon read its settings again; what came of it, in a sentence."""
        message: str = self._connection.call("reload", "reloaded", patience_s=self._patience_s)["message"]
        return message

    def close(self) -> None:
        """End the connection; what is unfinished is dropped."""
        self._connection.close()

    def _events(
        self, source: Source, fields: dict[str, Any], timeout_s: float | None
    ) -> Generator[Message, None, None]:
        try:
            for name in fields:
                self._connection.needs(name)
        except wire.WireError:
            os.close(source.descriptor)
            raise
        one = Pipeline(_One(source), fields, patience_s=self._patience_s, timeout_s=timeout_s)
        one.begin(self._connection)
        finished = False
        try:
            for _, event in one.run():
                finished = event["type"] in ("done", "error")
                if event["type"] == "error":
                    raise error_of(event)
                yield event
        finally:
            if not finished:
                self._connection.cancel_all()


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
    for seconds in (start_s, duration_s):
        if not 0 <= seconds <= wire.MAX_POSITION_S:
            raise ValueError(f"{seconds!r} is no number of seconds from 0 to {wire.MAX_POSITION_S}")
    newer = {"channels": channels, "start": start_s, "duration": duration_s}
    # left out where they say nothing: a daemon of protocol 1.0 does not know them
    asked = {name: value for name, value in newer.items() if value not in ("mix", 0)}
    return {"language": language, "itn": itn, "vad": vad, **asked}
