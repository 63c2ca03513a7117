"""Divides what was said into subtitles: lines of a width that readers can follow, times from the words.

Pure functions. Imported only where --max-line-width asks for it: unicodedata is a megabyte of tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from unicodedata import combining, east_asian_width

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLOSING = frozenset("，。！？、；：”’）》」』】〉…,.!?;:)]}%")
"""What no line may begin with."""


class Cue(NamedTuple):
    """One subtitle: seconds, and its lines."""

    start: float
    end: float
    lines: tuple[str, ...]


class _Unit(NamedTuple):
    """What stays on one line: a word, or a character of a script without spaces, with what closes it."""

    text: str
    spaced: bool
    """A space before it, unless it begins a line."""
    start: float
    end: float


def columns(text: str) -> int:
    """The width on a screen: wide and full-width characters count twice, combining marks nothing."""
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def cues(segment: dict[str, Any], width: int, count: int | None, label: str = "") -> list[Cue]:
    """Divide a segment of the transcript into lines of up to `width` columns, `count` of them a cue.

    Without `count` the segment stays one cue. Each cue begins with its first word and ends with its last;
    the segment's own times are the outermost. `label` stands before the first line of each cue, which is
    longer than `width` only where that leaves no room for a character.
    """
    lines = list(_lines(_units(segment), width, count, columns(label)))
    size = count or len(lines) or 1
    found = []
    for first in range(0, len(lines), size):
        group = lines[first : first + size]
        start = segment["start"] if first == 0 else group[0][0].start
        end = segment["end"] if first + size >= len(lines) else group[-1][-1].end
        texts = [_joined(line) for line in group]
        found.append(Cue(start, max(start, end), (label + texts[0], *texts[1:])))
    return found


def _units(segment: dict[str, Any]) -> list[_Unit]:
    text = segment["text"].strip()
    found: list[_Unit] = []
    at = 0
    for word in segment["words"]:
        place = text.find(word["word"], at)
        if place < 0 or text[at:place].strip():
            break  # these are not the words of this text
        spaced = place > at
        at = place + len(word["word"])
        unit = _Unit(word["word"], spaced, word["start"], word["end"])
        if found and not spaced and _CLOSING.issuperset(unit.text):
            last = found.pop()
            unit = _Unit(last.text + unit.text, last.spaced, last.start, unit.end)
        found.append(unit)
    if rest := text[at:].strip():
        start = found[-1].end if found else segment["start"]
        found += [_Unit(part, True, start, segment["end"]) for part in rest.split()]
    return found


def _lines(units: list[_Unit], width: int, count: int | None, indent: int) -> Iterator[list[_Unit]]:
    """Fill lines; every `count`-th, or the first alone, begins a cue and has `indent` columns less."""
    line: list[_Unit] = []
    narrow = max(1, width - indent)
    room, used, number = narrow, 0, 0
    for unit in units:
        for part in _cut(unit, narrow):
            needed = columns(part.text) + (part.spaced and bool(line))
            if line and used + needed > room:
                yield line
                line, used, number = [], 0, number + 1
                room = narrow if count and number % count == 0 else width
                needed = columns(part.text)
            line.append(part)
            used += needed
    if line:
        yield line


def _cut(unit: _Unit, width: int) -> Iterator[_Unit]:
    """The unit whole where a line can hold it, else in pieces that fit."""
    if columns(unit.text) <= width:
        yield unit
        return
    piece, spaced = "", unit.spaced
    for character in unit.text:
        if piece and columns(piece + character) > width:
            yield _Unit(piece, spaced, unit.start, unit.end)
            piece, spaced = "", False
        piece += character
    yield _Unit(piece, spaced, unit.start, unit.end)


def _joined(line: list[_Unit]) -> str:
    return "".join((" " if unit.spaced and at else "") + unit.text for at, unit in enumerate(line))
