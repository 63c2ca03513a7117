"""Runs a command where nothing can be written: `python starved_disk.py full|read-only KEPT COMMAND...`.

In a mount namespace of its own, so that nothing stays mounted when the command ends; needs root. The folder
KEPT stays as it is, for sockets and settings. `read-only` makes every other file system read-only. `full`
puts a small file system without a free byte at KEPT/full and over the places where programs write
files of their own, and sends what the command says on standard error to a file there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

CLONE_NEWNS = 0x20000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
FULL_BYTES = 256 * 1024
COVERED = ("/tmp", "/var/tmp", "/var/cache", "/var/lib", "/dev/shm")
LOG = "log"

libc = ctypes.CDLL(None, use_errno=True)


def possible():
    """Whether such a namespace can be had here."""
    program = [sys.executable, __file__, "try", "/", "true"]
    return subprocess.run(program, stderr=subprocess.DEVNULL).returncode == 0


def check(result):
    """Raise what a call of libc failed with."""
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount(source, target, kind=None, flags=0, options=None):
    """Mount as the system call of that name does. Raises OSError."""
    check(libc.mount(source.encode(), str(target).encode(), kind, flags, options))


def apart():
    """Give this process mounts of its own."""
    check(libc.unshare(CLONE_NEWNS))
    mount("none", "/", flags=MS_REC | MS_PRIVATE)


def read_only(kept):
    """Make every file system read-only but `kept`."""
    mount(kept, kept, flags=MS_BIND)
    for line in Path("/proc/self/mounts").read_text().splitlines():
        place = line.split()[1].encode().decode("unicode_escape")
        if place != kept and not place.startswith(("/proc", "/sys")) and place not in ("/dev", "/dev/pts"):
            mount("none", place, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)


def full(kept):
    """Put the full file system in place."""
    folder = Path(kept) / "full"
    folder.mkdir()
    mount("tmpfs", folder, b"tmpfs", 0, f"size={FULL_BYTES},mode=1777".encode())
    # What the command needs may lie below one of the places that are covered: held open, it can be put back.
    names = {kept, sys.prefix, sys.base_prefix, str(Path(__file__).parents[2])}
    needed = {name: os.open(name, os.O_PATH) for name in sorted(names, key=len)}
    ours = os.open(folder, os.O_PATH)
    for place in filter(os.path.isdir, COVERED):
        mount(f"/proc/self/fd/{ours}", place, flags=MS_BIND)
    os.close(ours)
    for name, held in needed.items():
        if not Path(name).exists():
            Path(name).mkdir(parents=True)
            mount(f"/proc/self/fd/{held}", name, flags=MS_BIND | MS_REC)
        os.close(held)
    log = os.open(folder / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with (folder / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    os.dup2(log, 2)
    os.close(log)


def main():
    """Prepare, and become the command."""
    kind, kept, *command = sys.argv[1:]
    apart()
    if kind == "read-only":
        read_only(kept)
    elif kind == "full":
        full(kept)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
