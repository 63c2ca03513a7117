"""What svctl writes: sentences on standard error, text that cannot drive a terminal. Imports only os."""

from __future__ import annotations

import os

STDIN, STDOUT, STDERR = 0, 1, 2
CANNOT_CREATE, IO_ERROR = 73, 74
"""EX_CANTCREAT and EX_IOERR of sysexits.h: the two that no daemon can cause, and so no wire code has."""


class OutputError(Exception):
    """The output cannot be written; `status` is the exit status."""

    def __init__(self, message: str, status: int) -> None:
        """`message` is one sentence."""
        super().__init__(message)
        self.status = status


def printable(text: str) -> str:
    """The text on one line: control characters, escapes and direction overrides are shown, not obeyed."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\u3000" else _escape(c) for c in text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte of a name that is not UTF-8 (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def encoded(text: str) -> bytes:
    """UTF-8 whatever the locale; what UTF-8 cannot hold (bytes of a file name) is escaped."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return "".join(_escape(c) if "\ud800" <= c <= "\udfff" else c for c in text).encode()


def say(sentence: str) -> None:
    """One line on standard error, safe on a terminal whatever a file name holds."""
    write_stderr(f"svctl: {printable(sentence)}\n")


def write_stderr(text: str) -> None:
    """Write it as it is; a closed standard error is no reason to stop."""
    try:
        os.write(STDERR, encoded(text))
    except OSError:
        return


def write_stdout(data: bytes) -> None:
    """Write all of it. Raises BrokenPipeError for a reader that has gone, OutputError for everything else."""
    while data:
        try:
            data = data[os.write(STDOUT, data) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"Standard output cannot be written: {error.strerror}.", IO_ERROR) from None


def columns_of(descriptor: int) -> int:
    """The width of a terminal, 80 where it does not say."""
    try:
        return os.get_terminal_size(descriptor).columns or 80
    except OSError:
        return 80


def in_colour(when: str, descriptor: int) -> bool:
    """Whether to colour what goes to a descriptor: `always`, `never`, or `auto`, on terminals that can.

    NO_COLOR (https://no-color.org) and TERM=dumb say no to `auto`.
    """
    if when != "auto":
        return when == "always"
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
    return wanted and os.isatty(descriptor)


def claim_standard_descriptors() -> None:
    """Fill closed descriptors 0 to 2: no socket takes an output's place, and using them stays an error."""
    for descriptor in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open("/dev/null", os.O_WRONLY if descriptor == STDIN else os.O_RDONLY)
