"""Closing descriptors that came from others; must import nothing but the standard library."""

from __future__ import annotations

import contextlib
import os
import threading


def close_later(fd: int) -> None:
    """Close a stranger's descriptor off the loop.

    Any close of a FUSE file, and the last one of a socket that lingers, may block.
    """
    try:
        threading.Thread(target=_close, args=(fd,), name="close", daemon=True).start()
    except RuntimeError:
        # No thread can be started (a limit, or the interpreter ends), and a descriptor must not be lost.
        _close(fd)


def _close(fd: int) -> None:
    # What a file system has to say at a close concerns writers; the descriptor is gone in any case.
    with contextlib.suppress(OSError):
        os.close(fd)
