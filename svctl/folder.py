"""Writes transcripts into a folder (`svctl transcribe -o`), each file whole or not at all.

Imported only where a folder is asked for: pathlib costs more than the rest of svctl.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from svctl.terminal import CANNOT_CREATE, IO_ERROR, OutputError, encoded

_EXTENSIONS = {"text": "txt", "plain": "txt", "raw": "txt"}
_DEVICE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class Folder:
    """The files of one run; no transcript of the run replaces another."""

    def __init__(self, path: str, form: str) -> None:
        """`form` is one of options.FORMATS and gives the extension."""
        self._path = Path(path)
        self._extension = _EXTENSIONS.get(form, form)
        self._written: set[Path] = set()

    def write(self, name: str, text: str) -> str:
        """Write the transcript of the recording `name`; returns why not where another one is there, else "".

        Raises OutputError when the folder cannot be written.
        """
        stem = Path(name).stem if name != "-" else "stdin"
        path = self._path / f"{stem}.{self._extension}"
        if path in self._written:
            return f"{path} holds the transcript of another recording of this run."
        self._written.add(path)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(encoded(text))
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            status = IO_ERROR if error.errno in _DEVICE_ERRORS else CANNOT_CREATE
            raise OutputError(f"{path} cannot be written: {error.strerror}.", status) from None
        return ""
