"""A real file system of one file, which answers only when a test wants it to (fuse(4), linux/fuse.h).

So a test has what no pipe and no stub shows: system calls on a regular file that do not come back, in
processes that a signal may not even end. It is served by a process of its own: with its end, whatever that
was, all that waits for it is let go.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import stat
import struct
import subprocess
import sys
from pathlib import Path

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, INTERRUPT, DESTROY, BATCH_FORGET = (
    *(1, 2, 3, 14, 15, 18, 25, 26, 36, 38, 42),
)
"""Operations, under the kernel's numbers."""
_NO_REPLY = (FORGET, BATCH_FORGET, INTERRUPT)
_IN, _OUT = struct.Struct("=IIQQIIIHH"), struct.Struct("=IiQ")
_READ_IN = struct.Struct("=QQI")
_ROOT, _FILE = 1, 2
_VERSION = (7, 31)
_MAX_READ_BYTES, _MAX_WRITE_BYTES, _REQUEST_BYTES = 128 * 2**10, 4096, 64 * 2**10
_ASYNC_READ, _DIRECT_IO = 1, 1
_ENOSYS = 38
_MS_RDONLY_NOSUID_NODEV = 1 | 2 | 4
_MNT_DETACH = 2
USABLE = os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK)
UNUSABLE = "a file system that does not answer needs root and /dev/fuse"


class FuseFile:
    """One open file, `fd`, with `content`: in a `with` block, or until close().

    Operations on hold() wait for release(), READ only from offset `held_from` on. With `killable` a process
    that waits for a read can be ended, as on most file systems; without it, it cannot be before the read is
    answered. No folder shows the file system: it lives as long as the file is open.
    """

    def __init__(self, folder, content, *, held_from=0, killable=True):
        command = [sys.executable, __file__, os.fspath(folder), str(len(content)), str(held_from)]
        command.append("killable" if killable else "not killable")
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._server.stdin.write(content)
        assert self._server.stdout.readline() == b"mounted\n"
        try:
            self.fd = os.open(Path(folder) / "file", os.O_RDONLY)
        finally:
            _check(_libc.umount2(os.fsencode(folder), _MNT_DETACH))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def hold(self, *operations):
        """Let these wait from now on. With FLUSH start no process: it would close the file first."""
        self._ask("hold", *operations)

    @property
    def held(self):
        """How many operations wait for an answer."""
        return self._ask("held")

    def release(self):
        """Answer what waits, and whatever comes from now on; nothing where it has vanished."""
        if self._server.poll() is None:
            self._ask("release")

    def vanish(self):
        """End the file system without an answer: whoever waits, and whoever comes, gets an error."""
        self._server.communicate()

    def close(self):
        """Answer everything, and end the file system."""
        self.release()
        with contextlib.suppress(OSError):  # it has vanished
            os.close(self.fd)
        if self._server.poll() is None:
            self._server.communicate()

    def _ask(self, *words):
        self._server.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        return int(self._server.stdout.readline())


class Server:
    """Answers the kernel, and on standard input the test."""

    def __init__(self, device, content, *, held_from, killable):
        self._device = device
        self._content = content
        self._held_from = held_from
        self._killable = killable
        self._hold = frozenset()
        self._waiting = []

    def serve(self):
        """Until standard input ends."""
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        poll.register(0, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if 0 in ready:
                words = os.read(0, 4096).split()
                if not words:
                    return
                self._obey(*words)
            if self._device in ready:
                try:
                    self._handle(os.read(self._device, _REQUEST_BYTES))
                except FileNotFoundError:
                    continue  # called off before we took it
                except OSError:
                    poll.unregister(self._device)  # ENODEV: nobody has the file open any more

    def _obey(self, verb, *operations):
        if verb == b"hold":
            self._hold = frozenset(map(int, operations))
        elif verb == b"release":
            self._hold = frozenset()
            for waiting in self._waiting:
                self._reply(*waiting)
            self._waiting = []
        os.write(1, b"%d\n" % len(self._waiting))

    def _handle(self, request):
        _, operation, unique, node, *_ = _IN.unpack_from(request)
        if operation in _NO_REPLY:
            return
        arguments = request[_IN.size :]
        reply = (unique, *self._answer(operation, node, arguments))
        if operation in self._hold and (operation != READ or self._reaches(arguments)):
            self._waiting.append(reply)
        else:
            self._reply(*reply)

    def _reaches(self, arguments):
        _, offset, size = _READ_IN.unpack_from(arguments)
        return offset + size > self._held_from

    def _answer(self, operation, node, arguments):
        if operation == INIT:
            flags = _ASYNC_READ if self._killable else 0
            head = (*_VERSION, _MAX_READ_BYTES, flags, 0, 0, _MAX_WRITE_BYTES)
            return 0, struct.pack("=IIIIHHI40x", *head)
        if operation == LOOKUP:
            # Attributes are good for no time at all: each fstat asks again.
            return 0, struct.pack("=QQQQII", _FILE, 0, 3600, 0, 0, 0) + self._attributes(_FILE)
        if operation == GETATTR:
            return 0, struct.pack("=QII", 0, 0, 0) + self._attributes(node)
        if operation == OPEN:
            return 0, struct.pack("=QII", 0, 0 if self._killable else _DIRECT_IO, 0)
        if operation == READ:
            _, offset, size = _READ_IN.unpack_from(arguments)
            return 0, self._content[offset : offset + size]
        return (0 if operation in (FLUSH, RELEASE, DESTROY) else -_ENOSYS), b""

    def _attributes(self, node):
        mode = stat.S_IFDIR | 0o755 if node == _ROOT else stat.S_IFREG | 0o644
        size = 0 if node == _ROOT else len(self._content)
        return struct.pack("=QQQQQQ10I", node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _reply(self, unique, error, body):
        # OSError: whoever asked has been ended.
        with contextlib.suppress(OSError):
            os.write(self._device, _OUT.pack(_OUT.size + len(body), error, unique) + body)


_libc = ctypes.CDLL(None, use_errno=True)


def _check(status):
    if status != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main():
    """Mount on the folder that is the first argument, and serve what comes on standard input as its file."""
    folder, size, held_from, killable = sys.argv[1:]
    content = sys.stdin.buffer.raw.read(int(size))
    while len(content) < int(size):
        content += sys.stdin.buffer.raw.read(int(size) - len(content))
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    where = os.fsencode(folder)
    _check(_libc.mount(b"test", where, b"fuse", _MS_RDONLY_NOSUID_NODEV, options.encode()))
    try:
        os.write(1, b"mounted\n")
        Server(device, content, held_from=int(held_from), killable=killable == "killable").serve()
    finally:
        # Not there any more, but where the test died before it could hide it.
        _libc.umount2(where, _MNT_DETACH)


if __name__ == "__main__":
    main()
