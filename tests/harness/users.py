"""Other users on this machine, and what lets them reach a daemon of the test's."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import pytest

NOBODY, SOMEBODY = 65534, 65533
"""Two users who are neither root nor anybody in particular; the kernel does not ask for names."""
FOR_ALL = 'socket_mode = "0666"\n'
"""The setting that lets every user connect."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@contextlib.contextmanager
def public_folder():
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def let_in(daemon):
    """Let every user reach the socket of a daemon in a public folder."""
    for folder in (daemon.folder, daemon.socket.parent):
        folder.chmod(0o755)
    return daemon
