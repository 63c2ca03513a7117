"""The verb `transcribe`: which files, in which format, to which output, with which exit status.

Never imports click: this is the hot path.
"""

from __future__ import annotations

import os

from svctl import client, formats, options, pipeline, sources, wire
from svctl.terminal import (
    CANNOT_CREATE,
    STDERR,
    STDIN,
    STDOUT,
    encoded,
    printable,
    say,
    write_stderr,
    write_stdout,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from svctl.folder import Folder
    from svctl.options import Values
    from svctl.sources import Source
    from svctl.wire import Message

_PIPE_BYTES = 4_096
"""PIPE_BUF: a pipe that polls writable takes so much without blocking."""
_CLEAR = "\r\x1b[K"
"""Back to the start of the line, and the line empty (ECMA-48 EL)."""


_SINGLE = ("srt", "vtt", "tsv")
"""Formats of one recording: two in one stream, or a heading between them, are no such file any more."""


def _only_one(values: Values) -> str:
    """Why this run takes one recording only, or ""."""
    form = values["format"]
    return (
        f"-f {form} holds one recording; several need -o FOLDER, which gets a file for each."
        if form in _SINGLE and not values["output"]
        else ""
    )


def prepare(values: Values, names: list[str]) -> Folder | None:
    """What can be known before the daemon is asked: whether the words fit together, and where `-o` writes.

    Raises WireError `invalid_request`, and OutputError for a folder that cannot be written.
    """
    if values["timestamps"] and values["format"] != "text":
        raise wire.WireError(
            "invalid_request", f"-t goes with -f text; -f {values['format']} has no use for it."
        )
    if len(names) > 1 and _only_one(values):
        raise wire.WireError("invalid_request", _only_one(values))
    if not values["output"]:
        return None
    from svctl.folder import Folder  # noqa: PLC0415 - pathlib costs more than the rest of svctl

    return Folder(values["output"], values["format"], names)


def run(connection: client.Client, values: Values, names: list[str], folder: Folder | None) -> int:
    """Transcribe, print, and return the exit status: 0, or that of the first recording that failed.

    `folder` is what `prepare` gave. Raises WireError when the connection fails, OutputError and
    BrokenPipeError when the output does.
    """
    fields = {"language": values["language"], "itn": values["itn"], "vad": values["vad"]}
    run_names = sources.Names(names, STDIN if values["null"] else -1, only_one=_only_one(values))
    line = pipeline.Pipeline(connection, fields, patience_s=options.patience_s("transcribe", values))
    printer = _Printer(connection, values, folder, several=values["null"] or len(names) > 1)
    status = 0
    for source, event in line.run(run_names):
        failed = printer.event(source, event)
        status = status or failed
    printer.end()
    return status


class _Printer:
    """Writes recordings one after the other; what needs no whole recording appears segment by segment."""

    def __init__(
        self, connection: client.Client, values: Values, folder: Folder | None, *, several: bool
    ) -> None:
        self._connection = connection
        self._format: str = values["format"]
        self._tags: str = values["tags"]
        self._timestamps: bool = values["timestamps"]
        self._folder = folder
        self._several = several
        self._quiet: bool = values["quiet"]
        self._progress: bool = values["progress"] and os.isatty(STDERR)
        self._progress_shown = False
        self._streams = self._folder is None and (
            self._format == "raw" or (self._format == "text" and self._tags != "emoji")
        )
        self._segments: list[Message] = []
        self._begun = 0
        self._headed = False

    def event(self, source: Source, event: Message) -> int:
        """Write what can be written now; returns the exit status of a recording that has failed, else 0."""
        kind = event["type"]
        if kind == "progress":
            self._show_progress(source, event)
        elif kind == "segment":
            self._segment(source, event)
        elif kind in ("done", "error"):
            self._clear_progress()
            status = self._done(source, event) if kind == "done" else self._failed(source, event)
            self._segments = []
            self._headed = False
            return status
        return 0

    def end(self) -> None:
        """Close what spans all recordings: the array of -f json."""
        if self._several and self._format == "json" and self._folder is None:
            self._write_all("]\n" if self._begun else "[]\n")

    def _segment(self, source: Source, event: Message) -> None:
        if not self._streams:
            self._segments.append(event)
        elif self._format == "raw":
            self._write(event["raw"] + "\n", source)
        else:
            self._write(formats.segment_line(event, self._tags, timestamps=self._timestamps), source)

    def _done(self, source: Source, event: Message) -> int:
        if event["truncated"] and not self._quiet:
            say(f"{source.label}: the recording is damaged or broke off; this is what could be read of it.")
        if not event["segments"] and not self._quiet:
            say(f"{source.label}: no speech was found.")
        if self._streams:
            self._write("", source)
            return 0
        whole = formats.transcript(source.label, self._segments, event)
        if self._format == "text":
            text = formats.text_lines(whole, self._tags, timestamps=self._timestamps)
        else:
            text = formats.WHOLE[self._format](whole)
        if self._folder is None:
            self._write(text, source)
            return 0
        problem = self._folder.write(source.name, text)
        if problem:
            say(f"{source.label}: {problem}")
        return CANNOT_CREATE if problem else 0

    def _failed(self, source: Source, event: Message) -> int:
        error = source.error or client.error_of(event)
        say(error.message if source.error is not None else f"{source.label}: {error.message}")
        if self._format in ("json", "jsonl") and self._folder is None:
            self._write(
                formats.WHOLE[self._format](formats.failure(source.label, error.code, error.message)), source
            )
        return error.exit_status

    def _show_progress(self, source: Source, event: Message) -> None:
        if self._progress:
            self._progress_shown = True
            write_stderr(
                f"{_CLEAR}{printable(source.label)}: {event['recognised_s']:.0f}/{event['decoded_s']:.0f} s"
            )

    def _clear_progress(self) -> None:
        if self._progress_shown:
            self._progress_shown = False
            write_stderr(_CLEAR)

    def _write(self, text: str, source: Source) -> None:
        # what tells several recordings apart: an array for json, headings as head(1) writes them for people
        self._clear_progress()
        if self._several and not self._headed:
            if self._format == "json":
                text = (",\n" if self._begun else "[\n") + text
            elif self._format not in ("jsonl", "raw", *_SINGLE):
                text = ("\n" if self._begun else "") + f"==> {printable(source.label)} <==\n" + text
            self._begun += 1
        self._headed = True
        self._write_all(text)

    def _write_all(self, text: str) -> None:
        data = encoded(text)
        for start in range(0, len(data), _PIPE_BYTES):
            # the daemon drops a client that does not read: take events in while a pager holds us back
            self._connection.wait_writable(STDOUT)
            write_stdout(data[start : start + _PIPE_BYTES])
