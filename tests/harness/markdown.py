"""A Markdown page as tests compare it: its sections, with their prose, fenced blocks and table rows.

Knows of Markdown what this project's pages use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass
class Section:
    """What lies below one heading, by kind."""

    level: int
    title: str
    prose: list[str] = field(default_factory=list)
    blocks: list[tuple[str, list[str]]] = field(default_factory=list)
    """Language and lines of each fenced block."""
    rows: list[str] = field(default_factory=list)


def sections(text):
    """The sections of a Markdown text, in order; the lines before the first heading are a mistake."""
    found = []
    block = None
    for line in text.splitlines():
        if line.startswith("```"):
            if block is None:
                block = (line.removeprefix("```"), [])
                found[-1].blocks.append(block)
            else:
                block = None
        elif block is not None:
            block[1].append(line)
        elif heading := re.match(r"(#+) (.+)", line):
            found.append(Section(len(heading[1]), heading[2]))
        elif line.startswith("|"):
            found[-1].rows.append(line)
        else:
            found[-1].prose.append(line)
    assert block is None, "a fenced block has no end"
    return found


def cells(row):
    """The cells of a table row; a bar behind a backslash is inside one."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
