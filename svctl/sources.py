"""Where recordings come from: files by name, standard input, and lists of names that arrive on it.

Never reads audio, and never blocks: opening a FIFO or reading a terminal would.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from svctl import wire
from svctl.terminal import STDIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Read = Callable[[int], bytes | None]

_NAMES_BYTES = 64 * 2**10
"""One read of a list of names: a pipe's default capacity."""
_MAX_AHEAD = 100_000
"""Names that are kept to know how many there are: 30 MiB. Whoever has more of them does without."""


# O_NONBLOCK: opening a FIFO without a writer would wait for one
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class NotAFileError(wire.WireError):
    """A folder, pipe, socket or device in the place of a recording.

    svctl says so itself, and so the protocol has no code for it.
    """

    exit_status = 72  # EX_OSFILE of sysexits.h: neither missing (66) nor unreadable (77)

    def __init__(self, sentence: str) -> None:
        """`sentence` says what it is and what to do instead."""
        super().__init__("not_a_file", sentence)


class Source:
    """One recording: a descriptor, and whether its bytes are streamed or it is passed itself.

    A source that could not be opened carries its `error` instead, to be told at its place in the order.
    """

    __slots__ = ("_read", "descriptor", "error", "label", "name", "place", "streamed")

    def __init__(
        self,
        name: str,
        descriptor: int = -1,
        *,
        streamed: bool = False,
        error: wire.WireError | None = None,
        read: Read | None = None,
    ) -> None:
        """`descriptor` is owned; `read` takes a stream's bytes where they are not only the descriptor's."""
        self.name = name
        self.place = place_of(name)
        """Where its transcript goes below `-o`, without the extension."""
        self.label = label(name)
        self.descriptor = descriptor
        self.streamed = streamed
        self.error = error
        self._read = read

    def read(self, size: int) -> bytes | None:
        """Up to so many bytes of a stream whose descriptor is readable; b"" at its end.

        None where somebody else has read them. Raises WireError `not_found`.
        """
        try:
            return self._read(size) if self._read is not None else os.read(self.descriptor, size)
        except BlockingIOError:
            return None
        except (OSError, ValueError) as error:  # ValueError: its owner has closed a file object
            reason = error.strerror if isinstance(error, OSError) else error
            shown = "Standard input" if self.name == "-" else self.label
            raise wire.WireError("not_found", f"{shown} cannot be read: {reason}.") from None


class Found:
    """One file that is named or lies below a folder, or a folder that is a `problem`."""

    __slots__ = ("name", "place", "problem")

    def __init__(self, name: str, place: str, problem: wire.WireError | None = None) -> None:
        """It is opened by its `name`; its transcript goes to `place` below `-o`, without the extension."""
        self.name = name
        self.place = place
        self.problem = problem


def place_of(name: str) -> str:
    """Where the transcript of a recording goes that was named itself: its own name, without its ending."""
    if name == "-":
        return "stdin"
    return stem_of(name.rstrip("/").rpartition("/")[2])


def stem_of(name: str) -> str:
    """A file's name without its ending; one that begins with its only point has none."""
    stem, point, _ = name.rpartition(".")
    return stem if point and stem else name


def label(name: str) -> str:
    """The name as the wire can carry it: no longer than the protocol's limit, and valid UTF-8.

    Bytes that are not UTF-8 become what messages show of them, so that two names stay two names in JSON.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")[: wire.MAX_LABEL_CHARS]


def open_source(name: str) -> Source:
    """Open a file by name, or standard input for `-`; never blocks, and never raises: see Source.error."""
    try:
        if name == "-":
            return _open_stdin()
        descriptor = os.open(name, _FLAGS)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return Source(name, error=not_opened(name, error))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return Source(name, descriptor)
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        sentence = f"{name} is a folder and not a regular file; -r takes the recordings in it."
    else:
        kind = "pipe" if stat.S_ISFIFO(mode) else "device"
        remedy = "stream it through standard input: svctl transcribe - < FILE"
        sentence = f"{name} is a {kind} and not a regular file; {remedy}."
    return Source(name, error=NotAFileError(sentence))


def open_list(name: str) -> int:
    """Open a list of names: a file, or a pipe such as a shell's <(...); raises WireError."""
    try:
        descriptor = os.open(name, _FLAGS)
    except (OSError, ValueError) as error:
        raise not_opened(name, error) from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
        return descriptor
    os.close(descriptor)
    raise NotAFileError(f"{name} is neither a file nor a pipe, and so no list of names.")


def not_opened(name: str, error: OSError | ValueError) -> wire.WireError:
    """Why a file or folder cannot be opened, with the code that decides the exit status."""
    number = error.errno if isinstance(error, OSError) else None
    # open(2) gives ENXIO for a socket, and for a device that is not there
    if number == errno.ENXIO and _is_socket(name):
        return NotAFileError(f"{name} is a socket and not a regular file.")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    code = "forbidden" if number in (errno.EACCES, errno.EPERM) else "not_found"
    shown = name or "''"
    return wire.WireError(code, f"{shown} cannot be opened: {reason}.")


def _is_socket(name: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(name).st_mode)  # noqa: PTH116 - pathlib costs more than all of this
    except OSError:
        return False  # it has gone in between


def _open_stdin() -> Source:
    # a folder cannot come here: Python itself does not start with one as its standard input
    mode = os.fstat(STDIN).st_mode
    if os.isatty(STDIN):
        sentence = "Standard input is a terminal; redirect a file or a pipe into it."
        return Source("-", error=NotAFileError(sentence))
    # the daemon reads a passed file from its start, so a file that is read half already is streamed
    passed = stat.S_ISREG(mode) and os.lseek(STDIN, 0, os.SEEK_CUR) == 0
    return Source("-", os.dup(STDIN), streamed=not passed)


if TYPE_CHECKING:
    from typing import Protocol

    class Recordings(Protocol):
        """What gives the recordings of a run one by one."""

        descriptor: int

        def next(self) -> Source | None:
            """See Names.next."""


class Names:
    """The recordings of a run: those that are named, or listed in a descriptor, and those below folders."""

    def __init__(
        self,
        names: list[str],
        descriptor: int = -1,
        *,
        ended_by: bytes = b"\0",
        below: Callable[[str], Iterator[Found]] | None = None,
        only_one: str = "",
    ) -> None:
        """`descriptor` is read to its end, without ever blocking a transcript that is ready.

        Each of its names is ended by `ended_by`; before a newline, a carriage return belongs to the end, as
        Windows writes lists. `below` gives the recordings below a folder; without it a
        folder is a mistake. `only_one` is the sentence for a second name where there is room for one.
        """
        self._names = iter(names)
        self._below = below
        self._found: Iterator[Found] = iter(())
        self._only_one = only_one
        self._seen = len(names)
        self._ended_by = ended_by
        self._partial = b""
        self._ahead: list[Found] = []
        self._given = 0
        self._all_found = False
        self.descriptor = descriptor
        """What to wait for when no name is there; -1 once all names are known."""

    @property
    def total(self) -> int | None:
        """How many recordings there are; None while a list or a folder may still bring more."""
        if self.descriptor < 0 and self._below is None:
            return self._seen
        return self._given + len(self._ahead) if self._all_found else None

    def next(self) -> Source | None:
        """The next recording, opened; None when none is left or none is there yet.

        Raises WireError: `not_found` when names cannot be read, `invalid_request` for one too many, and for
        what is no list.
        """
        found = self._ahead.pop(0) if self._ahead else self._find()
        if found is None:
            return None
        self._given += 1
        return _source_of(found)

    def look_ahead(self, until_s: float) -> None:
        """Count the recordings to come, till the monotonic time `until_s`; raises as `next` does.

        Nothing is opened, and no list is waited for.
        """
        while not self._all_found and len(self._ahead) < _MAX_AHEAD:
            found = self._find()
            if found is None:
                return
            self._ahead.append(found)
            if time.monotonic() >= until_s:
                return

    def _find(self) -> Found | None:
        while True:
            found = next(self._found, None)
            if found is not None:
                return found
            name = self._next_name()
            if name is None:
                self._all_found = self.descriptor < 0
                return None
            if self._below is None or name == "-" or not os.path.isdir(name):  # noqa: PTH112 - as everywhere here
                return Found(name, place_of(name))
            self._found = self._below(name)

    def _next_name(self) -> str | None:
        while (name := next(self._names, None)) is None and self.descriptor >= 0:
            if not _is_readable(self.descriptor):
                return None
            try:
                data = os.read(self.descriptor, _NAMES_BYTES)
            except OSError as error:
                raise wire.WireError(
                    "not_found", f"The list of names cannot be read: {error.strerror}."
                ) from None
            if self._ended_by == b"\n" and b"\0" in data:
                sentence = (
                    "The list of names holds NUL bytes: names that end so need -0, a recording is no list."
                )
                raise wire.WireError("invalid_request", sentence)
            *found, self._partial = (self._partial + data).split(self._ended_by)
            if not data:
                found, self.descriptor = [self._partial], -1  # a last name without its end
            added = [os.fsdecode(name) for name in map(self._bare, found) if name]
            self._names = iter(added)
            self._seen += len(added)
            # what is left over is a name too, be it cut
            if self._only_one and self._seen + bool(self._bare(self._partial) and self.descriptor >= 0) > 1:
                raise wire.WireError("invalid_request", self._only_one)
        return name

    def _bare(self, name: bytes) -> bytes:
        return name.removesuffix(b"\r") if self._ended_by == b"\n" else name


def _source_of(found: Found) -> Source:
    if found.problem is not None:
        return Source(found.name, error=found.problem)
    source = open_source(found.name)
    source.place = found.place
    return source


def _is_readable(descriptor: int) -> bool:
    import select  # noqa: PLC0415 - only names that come by a pipe need it

    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
