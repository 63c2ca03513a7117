"""Owns how tables, and the lines of what was aimed at, look on a page of 110 columns; knows no workload."""

from __future__ import annotations

import textwrap
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.records import Failure

WIDTH = 110
"""Columns that a page shows without wrapping."""
NONE = "none"
"""In the place of the first figure of somebody who has none."""


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table; `notes` are sentences below it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Markdown whose columns also line up in a terminal: the first to the left, figures to the right."""
        lines = [f"### {self.title}", ""]
        if self.rows:
            cells = [self.header, *self.rows]
            widths = [max(3, *(columns(row[i]) for row in cells)) for i in range(len(self.header))]
            left = [i == 0 or any(_wordy(row[i]) for row in self.rows) for i in range(len(self.header))]
            rule = [
                "-" * w if at_left else "-" * (w - 1) + ":" for w, at_left in zip(widths, left, strict=True)
            ]
            lines += [_line(self.header, widths, left), _line(rule, widths, left)]
            lines += [_line(row, widths, left) for row in self.rows]
            lines.append("")
        for note in self.notes:
            lines += [*textwrap.wrap(note, WIDTH), ""]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that was aimed at: what was found, and whether it holds (None: it was not measured)."""

    line: int
    """Its number in the list of what is aimed at."""
    aim: str
    found: str
    held: bool | None

    @property
    def verdict(self) -> str:
        """In words."""
        return "not measured" if self.held is None else "held" if self.held else "NOT HELD"


def failures(found: Sequence[Failure], header: Sequence[str]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Rows for those without figures, and the sentences that go below the table."""
    named = dict.fromkeys(failure.contender for failure in found)
    rows = [(name or "(all)", NONE, *[""] * (len(header) - 2)) for name in named]
    sentences = dict.fromkeys((failure.contender, failure.sentence) for failure in found)
    return rows, [f"{name or 'All of it'}: not measured: {sentence}" for name, sentence in sentences]


def targets_table(targets: Sequence[Target]) -> Table:
    """All of them, by number."""
    rows = tuple((str(t.line), t.aim, t.found, t.verdict) for t in sorted(targets, key=lambda t: t.line))
    return Table("What was aimed at", ("", "aim", "found", ""), rows)


def target(line: int, aim: str, value: float | None, *, most: float, form: str = "{:.2f}") -> Target:
    """A figure that may be `most` at the most."""
    found = "-" if value is None else form.format(value)
    return Target(line, aim, found, None if value is None else value <= most)


def least_target(line: int, aim: str, value: float | None, *, least: float, form: str = "{:.2f} x") -> Target:
    """A figure that should reach `least`."""
    found = "-" if value is None else form.format(value)
    return Target(line, aim, found, None if value is None else value >= least)


def seconds(value: float | None) -> str:
    """A duration with three significant digits, in the unit that suits it."""
    if value is None:
        return "-"
    if value < 0.9995e-1:
        return f"{significant(value * 1000)} ms"
    return f"{significant(value)} s"


def significant(value: float) -> str:
    """Three significant digits without an exponent, and no more digits than the number has above one."""
    if not value:
        return "0"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    places = max(0, 3 - whole) if whole else 3 if abs(value) >= 0.01 else 4
    return f"{value:,.{places}f}"


def mebibytes(value: float | None) -> str:
    """Bytes as MiB."""
    return "-" if value is None else f"{value / 2**20:,.0f} MiB"


def times(value: float | None) -> str:
    """A ratio."""
    return "-" if value is None else f"{value:.2f} x"


def columns(text: str) -> int:
    """Columns that a terminal needs for it: two for wide characters."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _line(cells: Sequence[str], widths: Sequence[int], left: Sequence[bool]) -> str:
    padded = (
        cell + " " * (width - columns(cell)) if at_left else " " * (width - columns(cell)) + cell
        for cell, width, at_left in zip(cells, widths, left, strict=True)
    )
    return f"| {' | '.join(padded)} |"


def _wordy(cell: str) -> bool:
    """Whether a cell holds words, and not a figure with its unit."""
    return cell not in ("", NONE) and not (cell[0].isdigit() or cell[0] in "-+<>~")
