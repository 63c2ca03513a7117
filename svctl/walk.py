"""Recordings below a folder (`svctl transcribe -r`): which files, in which order, and under which name.

Imported only where -r is given. Reads names, never a file.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from svctl.options import EXTENSIONS, FORMATS
from svctl.sources import Found, not_opened, stem_of
from svctl.wire import WireError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ENDINGS = frozenset(
    (
        *("wav", "wave", "flac", "mp3", "mp2", "ogg", "oga", "opus", "spx", "m4a", "m4b", "aac"),
        *("ac3", "amr", "aif", "aiff", "aifc", "au", "snd", "caf", "w64", "rf64", "wma", "mka"),
        *("3gp", "3gpp", "mp4", "m4v", "mov", "mkv", "webm", "avi", "ogv", "wmv", "asf"),
    )
)
"""What is taken for a recording without --glob; of a video its first audio stream is."""

TRANSCRIPTS = frozenset(EXTENSIONS.get(form, form) for form in FORMATS)
"""What svctl itself writes beside recordings: `--glob '*'` means none of it, `--glob '*.txt'` does."""


class Filter:
    """Which files are taken: --glob instead of the known endings, less --exclude.

    Transcripts are taken by a pattern that ends as they do, and by no wider one. A pattern with a slash is
    for the path below the folder that was named, another one for a name alone. A slash at the end of
    --exclude means folders only.
    """

    def __init__(self, globs: Sequence[str], excludes: Sequence[str]) -> None:
        """Take the patterns as the shell writes them."""
        self._globs = globs
        self._excludes = excludes

    def takes(self, name: str, below: str) -> bool:
        """Say whether a file is wanted."""
        if self._any(self._excludes, name, below):
            return False
        ending = name.rpartition(".")[2].lower()
        if not self._globs:
            return ending in ENDINGS
        globs = self._globs
        if ending in TRANSCRIPTS:
            globs = [pattern for pattern in globs if pattern.lower().endswith(f".{ending}")]
        return self._any(globs, name, below)

    @property
    def remedy(self) -> str:
        """What may be done where nothing was taken."""
        if not (self._globs or self._excludes):
            return "--glob takes files of other endings"
        words = [flag for flag, given in (("--glob", self._globs), ("--exclude", self._excludes)) if given]
        return f"look at the patterns of {' and '.join(words)}"

    def enters(self, name: str, below: str) -> bool:
        """Say whether a folder is looked into."""
        return not self._any([pattern.rstrip("/") for pattern in self._excludes], name, below)

    @staticmethod
    def _any(patterns: Sequence[str], name: str, below: str) -> bool:
        if not patterns:
            return False
        from fnmatch import fnmatchcase  # noqa: PLC0415 - imports re, which only a pattern has to pay for

        return any(fnmatchcase(below if "/" in pattern else name, pattern) for pattern in patterns)


def walk(root: str, wanted: Filter) -> Iterator[Found]:
    """Every wanted file below `root`, folder by folder in the order of their names, as they are come upon.

    Hidden files and folders are left out, and links to folders are not followed. Two recordings that differ
    in their ending only keep it in their `place`.
    """
    any_found = False
    # a stack of its own: trees may be deeper than Python's
    entered = [_entries(root, "", wanted)]
    while entered:
        found = next(entered[-1], None)
        if found is None:
            entered.pop()
        elif isinstance(found, Found):
            any_found = True
            yield found
        else:
            entered.append(_entries(*found, wanted))
    if not any_found:
        sentence = f"{root} holds no recording; {wanted.remedy}."
        yield Found(root, "", WireError("not_found", sentence))


def _entries(folder: str, below: str, wanted: Filter) -> Iterator[Found | tuple[str, str]]:
    """The files of one folder, and each of its folders with its path below the root."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if entry.name[:1] != "."), key=lambda one: one.name)
    except OSError as error:
        yield Found(folder, below.rstrip("/"), not_opened(folder, error))
        return
    files = [one for one in found if not _is_folder(one) and wanted.takes(one.name, below + one.name)]
    stems: dict[str, int] = {}
    for one in files:
        stem = stem_of(one.name)
        stems[stem] = stems.get(stem, 0) + 1
    taken = {one.name for one in files}
    for one in found:
        if one.name in taken:
            stem = stem_of(one.name)
            # a.wav.wav keeps its ending as well, lest it takes the place that a.wav has beside a.mp3
            alone = stems[stem] == 1 and stem not in taken
            yield Found(one.path, below + (stem if alone else one.name))
        elif one.is_dir(follow_symlinks=False) and wanted.enters(one.name, below + one.name):
            yield one.path, f"{below}{one.name}/"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; what is wrong with a link in a circle, opening it says."""
    try:
        return entry.is_dir()
    except OSError:
        return False
