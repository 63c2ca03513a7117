"""One line on a terminal's standard error that says how far a run is; never written anywhere else.

Imported only once the daemon is at work.
"""

from __future__ import annotations

import os
import time

from svctl.terminal import STDERR, columns_of, printable, write_stderr
from svctl.wire import ROOM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from svctl.wire import Message

_CLEAR = "\r\x1b[K"
"""Back to the start of the line, and the line empty (ECMA-48 EL)."""
_EVERY_S = 0.1
"""Between two looks of the line; nobody reads faster. The daemon itself says nothing of brief recordings."""
_WAITS = {
    "model": "waits for the model to load",
    "process": "waits for a free process of the daemon",
    "share": "waits for your other recordings to end",
    ROOM: "waits for room in the daemon's queue",
}
"""What a recording that has not begun waits for, in words."""
_SHOWN_NAME = 40
"""Columns of a name; its end, because that tells recordings of one folder apart."""


class Progress:
    """Counts what has come and shows it; silent where standard error is no terminal."""

    def __init__(
        self, *, wanted: bool, total: Callable[[], int | None], under_way: Callable[[], tuple[float, float]]
    ) -> None:
        """`total` gives how many recordings there will be, None while nobody knows.

        `under_way` gives what is done of those that have not ended: recordings, and seconds of audio.
        """
        self.shows = wanted and os.isatty(STDERR)
        """Whether anything is ever written."""
        self._total = total
        self._under_way = under_way
        self._began_s = time.monotonic()
        self._shown_s = self._began_s - _EVERY_S
        self._visible = False
        self.finished = 0
        self.audio_s = 0.0
        """Of recordings that are finished."""

    @property
    def took_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began_s

    def ended(self, duration_s: float) -> None:
        """Count one recording, 0 seconds where it failed, and show the counts while more are to come."""
        self.finished += 1
        self.audio_s += duration_s
        self._shown_s = self._began_s - _EVERY_S  # the next one is news
        if self.shows and (total := self._total()) != self.finished:
            counted = f"{_of(self.finished, total)} done, {self.audio_s:.0f} s"
            self._draw(counted, total)

    def show(self, name: str, event: Message) -> None:
        """Show the line for the recording in hand, from its `progress` event."""
        now_s = time.monotonic()
        if not self.shows or now_s - self._shown_s < _EVERY_S:
            return
        self._shown_s = now_s
        total = self._total()
        shown = printable(name)
        end = _fitting(shown[::-1], _SHOWN_NAME)[::-1]
        shown = shown if end == shown else "…" + end[1:]
        far = f"{event['recognised_s']:.0f}/{event['decoded_s']:.0f} s"
        here = f"{shown}: {_WAITS.get(event.get('waits_for', ''), far)}"
        if total != 1:
            here = f"{_of(self.finished + 1, total)}  {here}"
        self._draw(here, total)

    def clear(self) -> None:
        """Leave an empty line to whatever is written next."""
        if self._visible:
            self._visible = False
            write_stderr(_CLEAR)

    def _draw(self, what: str, total: int | None) -> None:
        parts = [what]
        recordings, audio_s = self._under_way()
        audio_s += self.audio_s
        if (took_s := self.took_s) and audio_s:
            parts.append(f"{audio_s / took_s:.0f}x")
        done = self.finished + recordings
        if total and 1 <= done <= total:
            minutes, seconds = divmod(round(took_s / done * (total - done)), 60)
            hours, minutes = divmod(minutes, 60)
            parts.append(
                f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"
            )
        self._visible = True
        write_stderr(_CLEAR + _fitting("  ".join(parts), max(1, columns_of(STDERR) - 1)))


def _of(number: int, total: int | None) -> str:
    return f"{number}/{total}" if total else f"{number}"


def _fitting(text: str, width: int) -> str:
    """As much of the beginning as fits into so many columns: a line that wraps could not be cleared."""
    from svctl.subtitles import columns  # noqa: PLC0415 - brings unicodedata's tables

    while columns(text) > width:
        text = text[:-1]
    return text
