"""Writes what `svctl transcribe` is answered: to standard output as it comes, or into a folder.

Imported only once the daemon is at work.
"""

from __future__ import annotations

from svctl import formats
from svctl.connection import error_of
from svctl.objects import failure, transcript
from svctl.options import SINGLE_FORMATS
from svctl.options import formats as formats_of
from svctl.terminal import CANNOT_CREATE, STDERR, STDOUT, encoded, in_colour, printable, say, write_stdout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from svctl.connection import Connection
    from svctl.folder import Folder
    from svctl.options import Values
    from svctl.progress import Progress
    from svctl.sources import Source
    from svctl.wire import Message

_PIPE_BYTES = 4_096
"""PIPE_BUF: a pipe that polls writable takes so much without blocking."""


class Printer:
    """Writes recordings one after the other; what needs no whole recording appears as it is recognised."""

    def __init__(
        self,
        connection: Connection,
        values: Values,
        folder: Folder | None,
        progress: Progress,
        *,
        several: bool,
        counts: bool,
    ) -> None:
        """`folder` is where `-o` writes; `several` asks for what tells recordings apart.

        `counts` asks for a summary of the run.
        """
        self._connection = connection
        self._forms = formats_of(values)
        self._format = self._forms[0]
        self._style = formats.Style(
            values["tags"],
            timestamps=values["timestamps"],
            words=values["words"],
            max_line_width=values["max_line_width"],
            max_line_count=values["max_line_count"],
        )
        self._folder = folder
        self._several = several
        self._counts = counts
        self._quiet: bool = values["quiet"]
        self._progress = progress
        # beside --force it would leave out what was there before this run
        self._goes_on = "" if values["force"] else "; --skip-existing goes on"
        self._colour = folder is None and in_colour(values["color"], STDOUT)
        # turns of several channels are put into their order of time at the end
        self._grows = (
            self._folder is None
            and values["channels"] != "split"
            and self._format in formats.GROWING
            and (self._format != "text" or self._style.tags != "emoji")
        )
        self._growing = self._begin()
        self._segments: list[Message] = []
        self._begun = 0
        self._headed = False
        self._transcribed = self._failures = 0

    def event(self, source: Source, event: Message) -> int:
        """Write what can be written now; returns the exit status of a recording that has failed, else 0."""
        kind = event["type"]
        if self._progress.shows:
            self._wait_for(STDERR)  # a terminal may be stopped (Ctrl-S)
        if kind == "progress":
            self._progress.show(source.label, event)
        elif kind == "segment":
            self._segment(source, event)
        elif kind in ("done", "error"):
            self._progress.clear()
            status = self._done(source, event) if kind == "done" else self._failed(source, event)
            self._transcribed += not status
            self._failures += bool(status)
            self._progress.ended(event["duration"] if kind == "done" else 0.0)
            self._segments = []
            self._growing = self._begin()
            self._headed = False
            return status
        return 0

    def end(self, left_out: Mapping[str, int]) -> None:
        """Close what spans all recordings, the array of -f json, and sum the run up.

        `left_out` is how many recordings were not transcribed, by why.
        """
        if self._several and self._format == "json" and self._folder is None:
            self._write_all("]\n" if self._begun else "[]\n")
        if (
            self._counts
            and not self._quiet
            and self._transcribed + self._failures + sum(left_out.values()) > 1
        ):
            self._sum_up(left_out)

    def broke_off(self, total: int | None, left_out: Mapping[str, int]) -> None:
        """Sum up what a run into a folder has done before it broke off, and say how it goes on."""
        if self._folder is None or not self._counts or self._quiet:
            return
        if self._transcribed + self._failures or left_out:
            say(f"{self._tally(left_out, total)}{self._goes_on}.")

    def _sum_up(self, left_out: Mapping[str, int]) -> None:
        audio = f"{self._progress.audio_s:.0f} s of audio in {self._progress.took_s:.1f} s"
        say(f"{self._tally(left_out)}; {audio}.")

    def _tally(self, left_out: Mapping[str, int], total: int | None = None) -> str:
        transcribed = f"{self._transcribed} of {total}" if total else f"{self._transcribed}"
        counts = [f"{transcribed} transcribed", f"{self._failures} failed"]
        counts += [f"{number} {why}" for why, number in left_out.items()]
        return ", ".join(counts)

    def _begin(self) -> formats.Growing:
        return formats.Growing(self._format, self._style, colour=self._colour)

    def _segment(self, source: Source, event: Message) -> None:
        if self._grows:
            self._write(self._growing.add(event), source)
        else:
            self._segments.append(event)

    def _done(self, source: Source, event: Message) -> int:
        if event["truncated"] and not self._quiet:
            damaged = "the recording is damaged or broke off; this is what could be read of it."
            self._say(f"{source.label}: {damaged}")
        if not event["segments"] and not self._quiet:
            self._say(f"{source.label}: no speech was found.")
        if self._grows:
            self._write(self._growing.end(), source)
            return 0
        whole = transcript(source.label, self._segments, event)
        if self._folder is None:
            self._write(formats.rendered(self._format, whole, self._style), source)
            return 0
        status = 0
        for form in self._forms:
            if problem := self._folder.write(source.place, form, formats.rendered(form, whole, self._style)):
                self._say(f"{source.label}: {problem}")
                status = CANNOT_CREATE
        return status

    def _failed(self, source: Source, event: Message) -> int:
        error = source.error or error_of(event)
        self._say(error.message if source.error is not None else f"{source.label}: {error.message}")
        if self._format in ("json", "jsonl") and self._folder is None:
            self._write(
                formats.rendered(self._format, failure(source.label, error.code, error.message), self._style),
                source,
            )
        return error.exit_status

    def _write(self, text: str, source: Source) -> None:
        # what tells several recordings apart: an array for json, headings as head(1) writes them for people
        self._progress.clear()
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
            self._wait_for(STDOUT)
            write_stdout(data[start : start + _PIPE_BYTES])

    def _say(self, sentence: str) -> None:
        self._wait_for(STDERR)
        say(sentence)

    def _wait_for(self, descriptor: int) -> None:
        """Wait for room where a person may hold us back for hours, while more is wanted of the daemon."""
        if self._several or self._connection.unfinished:
            self._connection.wait_writable(descriptor)
