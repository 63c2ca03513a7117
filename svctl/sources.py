"""Where recordings come from: files by name, standard input, and lists of names that arrive on it.

Never reads audio, and never blocks: opening a FIFO or reading a terminal would.
"""

from __future__ import annotations

import os
import select
import stat
from collections import deque

from svctl import wire
from svctl.terminal import STDIN

_NAMES_BYTES = 64 * 2**10
"""One read of a list of names: a pipe's default capacity."""


class Source:
    """One recording: a descriptor, and whether its bytes are streamed or it is passed itself.

    A source that could not be opened carries its `error` instead, to be told at its place in the order.
    """

    __slots__ = ("descriptor", "error", "label", "name", "streamed")

    def __init__(
        self, name: str, descriptor: int = -1, *, streamed: bool = False, error: wire.WireError | None = None
    ) -> None:
        """`descriptor` is owned."""
        self.name = name
        self.label = label(name)
        self.descriptor = descriptor
        self.streamed = streamed
        self.error = error


def label(name: str) -> str:
    """The name as the wire can carry it: valid UTF-8, no longer than the protocol's limit."""
    return os.fsencode(name).decode("utf-8", "replace")[: wire.MAX_LABEL_CHARS]


def open_source(name: str) -> Source:
    """Open a file by name, or standard input for `-`; never blocks, and never raises: see Source.error."""
    try:
        if name == "-":
            return _open_stdin()
        # O_NONBLOCK: opening a FIFO without a writer would wait for one
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return _refused(name, f"{name} cannot be opened: {reason}.")
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return Source(name, descriptor)
    os.close(descriptor)
    kind = "is a folder" if stat.S_ISDIR(mode) else "is a pipe" if stat.S_ISFIFO(mode) else "is a device"
    remedy = (
        "name the files in it"
        if stat.S_ISDIR(mode)
        else "stream it through standard input: svctl transcribe - < FILE"
    )
    return _refused(name, f"{name} {kind} and not a regular file; {remedy}.")


def _open_stdin() -> Source:
    mode = os.fstat(STDIN).st_mode
    if stat.S_ISDIR(mode):
        return _refused("-", "Standard input is a folder.")
    if os.isatty(STDIN):
        return _refused("-", "Standard input is a terminal; redirect a file or a pipe into it.")
    # the daemon reads a passed file from its start, so a file that is read half already is streamed
    passed = stat.S_ISREG(mode) and os.lseek(STDIN, 0, os.SEEK_CUR) == 0
    return Source("-", os.dup(STDIN), streamed=not passed)


def _refused(name: str, sentence: str) -> Source:
    return Source(name, error=wire.WireError("not_found", sentence))


class Names:
    """The file names of a run: those of the command line, or NUL-terminated ones from a descriptor."""

    def __init__(self, names: list[str], descriptor: int = -1) -> None:
        """`descriptor` is read to its end, without ever blocking a transcript that is ready."""
        self._names = deque(names)
        self._partial = b""
        self.descriptor = descriptor
        """What to wait for when no name is there; -1 once all names are known."""

    def next(self) -> str | None:
        """The next name, or None when none is left or none is there yet.

        Raises WireError `not_found` when names cannot be read.
        """
        while not self._names and self.descriptor >= 0 and _is_readable(self.descriptor):
            try:
                data = os.read(self.descriptor, _NAMES_BYTES)
            except OSError as error:
                raise wire.WireError(
                    "not_found", f"Standard input cannot be read: {error.strerror}."
                ) from None
            *names, self._partial = (self._partial + data).split(b"\0")
            if not data:
                names, self.descriptor = [self._partial], -1  # a last name without its NUL
            self._names.extend(os.fsdecode(name) for name in names if name)
        return self._names.popleft() if self._names else None


def _is_readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
