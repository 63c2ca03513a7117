"""Writes transcripts into a folder (`svctl transcribe -o`), each file whole or not at all.

Imported only where a folder is asked for: pathlib costs more than the rest of svctl.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from svctl import wire
from svctl.options import EXTENSIONS
from svctl.terminal import CANNOT_CREATE, IO_ERROR, STDIN, OutputError, encoded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from svctl.sources import Source

_DEVICE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_ABSENT = (0, 0)
"""Device and inode of no file."""
_PART = (".svctl-", ".part")
"""How the name of a file begins and ends that is still being written; its writer has a lock (flock) on it.

The lock, unlike a process id, says to every container with this folder whether the writer lives.
"""


THERE, TWICE = "were there already", "named twice"
"""Why a recording is left out, as the summary of a run counts them."""


class TakenError(wire.WireError):
    """The place of a transcript is taken; svctl says so itself, and so the protocol has no code for it."""

    exit_status = CANNOT_CREATE

    def __init__(self, sentence: str) -> None:
        """`sentence` says by what, and what to do."""
        super().__init__("exists", sentence)


class Folder:
    """The files of one run; no transcript of the run replaces another, nor a recording."""

    def __init__(
        self, path: str, forms: tuple[str, ...], recordings: list[str], *, force: bool, skip_existing: bool
    ) -> None:
        """`forms` are of options.FORMATS and give the extensions; `recordings` are the names known so far.

        Transcripts that are there already are replaced with `force`, left alone with `skip_existing`, and
        else a mistake. Makes the folder. Raises OutputError when it cannot be made, or not be written.
        """
        self._path = Path(path)
        self._forms = forms
        self._force = force
        self._skip_existing = skip_existing
        self._claimed: dict[Path, tuple[int, int]] = {}
        """By whose recording a place is taken in this run."""
        self._kept: set[Path] = set()
        self._tidied: set[Path] = set()
        self._recordings = {_identity(name) for name in recordings}
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if isinstance(error, FileExistsError):
                raise OutputError(f"{path} is not a folder.", CANNOT_CREATE) from None
            status = IO_ERROR if error.errno in _DEVICE_ERRORS else CANNOT_CREATE
            raise OutputError(f"The folder {path} cannot be made: {error.strerror}.", status) from None
        if not os.access(self._path, os.W_OK | os.X_OK):
            raise OutputError(f"This user may not write into the folder {path}.", CANNOT_CREATE)

    def claim(self, source: Source) -> str:
        """Keep the places of a recording's transcripts for it, or say why it is left out: THERE or TWICE.

        Where a place cannot be had, the source gets the error.
        """
        recording = _identity(source.name)
        self._recordings.add(recording)
        paths = [self._file(source.place, form) for form in self._forms]
        if path := next((path for path in paths if path in self._claimed), None):
            if recording == self._claimed[path] != _ABSENT:
                return TWICE
            source.error = TakenError(
                f"{source.label}: {path} holds the transcript of another recording of this run; "
                "take another -o for it, or -r on a folder that holds both."
            )
            return ""
        # A folder of that name stays in the way whatever is asked for: writing says so.
        there = {path for path in paths if os.path.lexists(path) and not path.is_dir()}
        sentence = next(filter(None, map(self._of_a_recording, paths)), "")
        if there and not sentence and not (self._force or self._skip_existing):
            sentence = f"{min(there)} exists; --force replaces it, --skip-existing leaves it."
        if sentence:
            source.error = TakenError(f"{source.label}: {sentence}")
            return ""
        self._claimed.update(dict.fromkeys(paths, recording))
        if self._skip_existing:
            self._kept |= there
        return THERE if self._skip_existing and len(there) == len(paths) else ""

    def write(self, place: str, form: str, text: str) -> str:
        """Write one transcript into its place; returns why it cannot be written, else "".

        Raises OutputError when none can: the device is full or broken.
        """
        path = self._file(place, form)
        if path in self._kept:
            return ""
        if problem := self._of_a_recording(path):
            return problem
        if not self._force and os.path.lexists(path) and not path.is_dir():
            # it was not when the place was claimed: another run writes into this folder
            return "" if self._skip_existing else f"{path} has appeared since this run began, and is kept."
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent not in self._tidied:
                self._tidied.add(path.parent)
                _tidy(path.parent)
            _write_whole(path, encoded(text))
        except OSError as error:
            sentence = f"{path} cannot be written: {error.strerror}."
            if error.errno in _DEVICE_ERRORS:
                raise OutputError(sentence, IO_ERROR) from None
            return sentence
        return ""

    def _file(self, place: str, form: str) -> Path:
        return self._path / f"{place}.{EXTENSIONS.get(form, form)}"

    def _of_a_recording(self, path: Path) -> str:
        """Why a transcript may not go there, "" where it may: names that came later are looked at again."""
        target = _identity(os.fspath(path))
        if target != _ABSENT and target in self._recordings:
            return f"{path} is a recording of this run and is not replaced by a transcript."
        return ""


def _write_whole(path: Path, data: bytes) -> None:
    """Put a file in its place at once, by way of one beside it; raises OSError."""
    while True:
        # a short name of its own: the longest name that a transcript may have leaves no room for more
        part = path.parent / os.urandom(8).hex().join(_PART)
        try:
            with part.open("xb") as file:  # x: never through a link that somebody has laid
                with contextlib.suppress(OSError):  # without locks `_tidy` gets none either, and leaves it
                    fcntl.flock(file, fcntl.LOCK_EX)
                if not os.fstat(file.fileno()).st_nlink:
                    continue  # another run tidied up before the lock was had
                file.write(data)
                file.flush()
                part.replace(path)
                return
        finally:
            part.unlink(missing_ok=True)


def _tidy(folder: Path) -> None:
    """Remove what was being written when its writer was killed."""
    begins, ends = _PART
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for name in [one.path for one in entries if one.name.startswith(begins) and one.name.endswith(ends)]:
            _remove_ownerless(name)


def _remove_ownerless(name: str) -> None:
    with contextlib.suppress(OSError):  # somebody else's, or gone already
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name)  # noqa: PTH108 - beside os.open
        finally:
            os.close(descriptor)


def _identity(name: str) -> tuple[int, int]:
    """Device and inode, the same by whatever name or link; (0, 0) for what is not there."""
    try:
        status = os.fstat(STDIN) if name == "-" else os.stat(name)  # noqa: PTH116 - a name may hold a NUL
    except (OSError, ValueError):
        return _ABSENT
    return status.st_dev, status.st_ino
