"""Writes what `svctl transcribe` is answered: to standard output as it comes, or into a folder.

Imported only once the daemon is at work.
"""

from __future__ import annotations

import os

from svctl import formats
from svctl.client import error_of
from svctl.options import SINGLE_FORMATS
from svctl.terminal import CANNOT_CREATE, STDERR, STDOUT, encoded, printable, say, write_stderr, write_stdout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from svctl.client import Client
    from svctl.folder import Folder
    from svctl.options import Values
    from svctl.sources import Source
    from svctl.wire import Message

_PIPE_BYTES = 4_096
"""PIPE_BUF: a pipe that polls writable takes so much without blocking."""
_CLEAR = "\r\x1b[K"
"""Back to the start of the line, and the line empty (ECMA-48 EL)."""


class Printer:
    """Writes recordings one after the other; what needs no whole recording appears segment by segment."""

    def __init__(self, connection: Client, values: Values, folder: Folder | None, *, several: bool) -> None:
        """`folder` is where `-o` writes; `several` asks for what tells recordings apart."""
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
        error = source.error or error_of(event)
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
            elif self._format not in ("jsonl", "raw", *SINGLE_FORMATS):
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
