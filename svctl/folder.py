"""Writes transcripts into a folder (`svctl transcribe -o`), each file whole or not at all.

Imported only where a folder is asked for: pathlib costs more than the rest of svctl.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from svctl.terminal import CANNOT_CREATE, IO_ERROR, STDIN, OutputError, encoded

_EXTENSIONS = {"text": "txt", "plain": "txt", "raw": "txt"}
_DEVICE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_ABSENT = (0, 0)
"""Device and inode of no file."""


class Folder:
    """The files of one run; no transcript of the run replaces another, nor a recording."""

    def __init__(self, path: str, form: str, recordings: list[str]) -> None:
        """`form` is one of options.FORMATS and gives the extension; `recordings` are the names known so far.

        Makes the folder. Raises OutputError when it cannot be made, or not be written.
        """
        self._path = Path(path)
        self._extension = _EXTENSIONS.get(form, form)
        self._written: set[Path] = set()
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

    def write(self, name: str, text: str) -> str:
        """Write the transcript of the recording `name`; returns why that one cannot be written, else "".

        Raises OutputError when none can: the device is full or broken.
        """
        stem = Path(name).stem if name != "-" else "stdin"
        path = self._path / f"{stem}.{self._extension}"
        if path in self._written:
            return f"{path} holds the transcript of another recording of this run."
        self._recordings.add(_identity(name))
        target = _identity(os.fspath(path))
        if target != _ABSENT and target in self._recordings:
            return f"{path} is a recording of this run and is not replaced by a transcript."
        self._written.add(path)
        # its own short name: the longest name that a transcript may have leaves no room for more
        temporary = self._path / f".svctl-{os.getpid()}.part"
        try:
            try:
                temporary.unlink(missing_ok=True)
                with temporary.open("xb") as file:  # x: never through a link that somebody has laid
                    file.write(encoded(text))
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            sentence = f"{path} cannot be written: {error.strerror}."
            if error.errno in _DEVICE_ERRORS:
                raise OutputError(sentence, IO_ERROR) from None
            return sentence
        return ""


def _identity(name: str) -> tuple[int, int]:
    """Device and inode, the same by whatever name or link; (0, 0) for what is not there."""
    try:
        status = os.fstat(STDIN) if name == "-" else os.stat(name)  # noqa: PTH116 - a name may hold a NUL
    except (OSError, ValueError):
        return _ABSENT
    return status.st_dev, status.st_ino
