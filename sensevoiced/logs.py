"""Logging to stderr: one line a record, in journald's or a terminal's form.

Nothing a client says can forge or flood a line.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_SHOWN_CHARS = 120
"""A label may be 4 KiB: enough of it to recognise a file by."""

_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.NOTSET, 7))
"""syslog(3) numbers of sd-daemon(3)'s line prefixes."""


def shown(text: str) -> str:
    """A client's text for a log line.

    Cut short, and without anything that a terminal or a line-wise reader would act on.
    """
    cut = text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in cut)


class _JournalFormatter(logging.Formatter):
    """`<6>message`: journald adds time and unit; every line of a traceback carries the priority too."""

    def format(self, record: logging.LogRecord) -> str:
        number = next(number for level, number in _PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{number}>{line}" for line in super().format(record).splitlines())


def start(level: str, environ: Mapping[str, str]) -> None:
    """Log to stderr from here on. Replaces what libraries have set up."""
    handler = logging.StreamHandler(sys.stderr)
    if environ.get("JOURNAL_STREAM"):
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        line = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"
        handler.setFormatter(logging.Formatter(line, datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    set_level(level)


def set_level(level: str) -> None:
    """Change how much of our own is logged; libraries stay at warnings."""
    logging.getLogger("sensevoiced").setLevel(level.upper())


def end() -> None:
    """Write out what is left; where that cannot be, give it up, so that the exit status stays what it is.

    The interpreter tries the same once more at its end, and would end with 120 (Py_FinalizeEx).
    """
    try:
        sys.stderr.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)
