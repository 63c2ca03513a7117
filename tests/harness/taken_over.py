"""A front-end child that runs the Python in a recording instead of decoding it: one that was taken over.

All the rest is the real child's: start, limits, jail, rehearsals. Arguments after the first name parts of
jail.py that are to fail as where the kernel lacks them. The program finds in its namespace what an intruder
would have at hand; what it leaves in `answer` comes back as the refusal's sentence.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time

from sensevoiced.frontend import jail, job, worker
from sensevoiced.jobs import JobError

MARK = b"#!taken over\n"
"""What begins a program."""
MAX_PROGRAM_BYTES = 16 * 2**10

decode = job.stream


def stream(frontend, recording, sock, *, part, vad):
    """Run what is a program, and decode the rest."""
    try:
        program = os.pread(recording, MAX_PROGRAM_BYTES, 0)
    except OSError:
        program = b""
    if not program.startswith(MARK):
        return decode(frontend, recording, sock, part=part, vad=vad)
    modules = (ctypes, errno, fcntl, mmap, os, resource, signal, socket, struct, threading, time)
    found = {
        "libc": ctypes.CDLL(None, use_errno=True),
        "checked": checked,
        "parent": int(sys.argv[1]),
        "recording": recording,
        "sock": sock,
    }
    found |= {module.__name__: module for module in modules}
    exec(compile(program, "program", "exec"), found)
    raise JobError("bad_input", found["answer"])


def checked(result):
    """Raise what a C function failed with."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "failed")
    return result


def lacking():
    """Stand for a part of the jail on a kernel that does not have it."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


if __name__ == "__main__":
    job.stream = stream
    for name in sys.argv[2:]:
        setattr(jail, name, lacking)
    worker.main()
