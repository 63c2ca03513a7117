"""Obtains the one listening socket, inherited or our own, and gives it back at the end.

Never accepts and never unlinks what it did not bind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sensevoiced.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

API_NAME = "api"
"""FileDescriptorName= that picks our socket where systemd hands over several."""

_PROBE_TIMEOUT_S = 1.0
_GROUP_BITS = 0o070
_PEERCRED = struct.Struct("3i")


class ListenError(Exception):
    """The socket cannot be had; the message is one sentence that says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the kernel knows it."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket) -> Peer:
    """Who connected (SO_PEERCRED, see unix(7)).

    Taken at connect time, and not to be forged without privilege.
    """
    return Peer(
        *_PEERCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    )


class Listener:
    """A listening Unix stream socket and what has to be undone when it is closed."""

    def __init__(
        self, sock: socket.socket, *, lock: int | None = None, bound: os.stat_result | None = None
    ) -> None:
        """`bound` identifies the file we made, `lock` is the descriptor that keeps other daemons away."""
        sock.setblocking(False)
        self.socket = sock
        self.address: str = sock.getsockname()
        self._lock = lock
        self._bound = bound

    @property
    def own(self) -> bool:
        """Whether we bound it; an inherited socket outlives us and keeps queueing connections."""
        return self._bound is not None

    def close(self) -> None:
        """Stop listening; remove the socket file if it is still the one that we made."""
        self.socket.close()
        if self._bound is not None:
            with contextlib.suppress(OSError):
                found = os.lstat(self.address)
                if (found.st_dev, found.st_ino) == (self._bound.st_dev, self._bound.st_ino):
                    os.unlink(self.address)  # noqa: PTH108 - the address may be abstract, and is no Path
            self._bound = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def inherit(descriptors: Sequence[tuple[int, str]]) -> Listener:
    """Take over what systemd passed.

    Raises ConfigError unless exactly one of it is a listening Unix stream socket meant for us.
    """
    chosen = (
        [fd for fd, name in descriptors if name == API_NAME]
        if len(descriptors) > 1
        else [fd for fd, _ in descriptors]
    )
    if len(chosen) != 1:
        raise ConfigError(
            f"systemd handed over {len(descriptors)} sockets, {len(chosen)} of them named {API_NAME!r}: "
            f"use one ListenStream=, or FileDescriptorName={API_NAME} on the right one."
        )
    fd = chosen[0]
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        raise ConfigError(f"LISTEN_FDS promises descriptor {fd}, which is not open.") from None
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"Descriptor {fd}, handed over through LISTEN_FDS, is not a socket.")
    for other, _ in descriptors:
        with contextlib.suppress(OSError):
            os.set_inheritable(other, False)
    sock = socket.socket(fileno=fd)
    listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM or not listening:
        sock.detach()
        raise ConfigError(
            f"Descriptor {fd}, handed over through LISTEN_FDS, is no listening "
            "Unix stream socket: ListenStream=/path, Accept=no."
        )
    return Listener(sock)


def bind(path: Path, mode: int, backlog: int) -> Listener:
    """Make the socket at `path`, taking over only a stale one of our own.

    Raises ListenError where a daemon lives there, where something else occupies the path, or where its folder
    would let others replace it; ConfigError where the path cannot be a socket's.
    """
    path = path.absolute()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    lock = None
    try:
        _prepare_folder(path.parent, mode)
        _socket_at(path)  # before the lock file: a mistyped path leaves nothing behind
        lock = _lock(path)
        _clear(path)
        # The mode before bind is that of the file it makes: there is no moment in which it is open to all.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(str(path))
        bound = os.lstat(path)
        sock.listen(backlog)
        path.chmod(mode)
    except (OSError, ListenError) as error:
        sock.close()
        if lock is not None:
            os.close(lock)
        if isinstance(error, ListenError):
            raise
        if error.errno is None:  # what Python itself says of a path longer than sun_path
            raise ConfigError(
                f"The socket's path is too long ({len(os.fsencode(path))} bytes, 107 at most): {path}"
            ) from None
        raise ListenError(f"Cannot listen at {path}: {error.strerror}.") from None
    return Listener(sock, lock=lock, bound=bound)


def _prepare_folder(folder: Path, socket_mode: int) -> None:
    if not folder.exists():
        folder.mkdir(mode=0o750 if socket_mode & _GROUP_BITS else 0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise ListenError(f"{folder} is not a folder.")
    if found.st_uid not in (0, os.geteuid()):
        raise ListenError(
            f"{folder} belongs to uid {found.st_uid}, who could put another socket in place of ours."
        )
    others = "everybody" if found.st_mode & stat.S_IWOTH else "its group"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX:
        raise ListenError(
            f"{folder} may be written by {others}, who could put another socket in our place: chmod go-w it."
        )


def _lock(path: Path) -> int:
    """Hold `.<name>.sensevoiced.lock` beside the socket: of two daemons only one goes on to probe and bind.

    The file stays: removing it would let a third daemon lock a new one while a second holds the old.
    """
    name = path.with_name(f".{path.name}.sensevoiced.lock")
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise ListenError(f"Another sensevoiced is running at {path}.") from None
        raise
    return fd


def _socket_at(path: Path) -> os.stat_result | None:
    """The socket that is at `path`, if any. Raises ListenError for everything else that is there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenError(f"{path} exists and is not a socket; remove it, or choose another --socket.")
    return found


def _clear(path: Path) -> None:
    """Remove a stale socket of ours. Raises ListenError for everything else that is there."""
    found = _socket_at(path)
    if found is None:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        outcome = probe.connect_ex(str(path))
    if outcome == errno.ENOENT:
        return
    if outcome != errno.ECONNREFUSED:
        raise ListenError(f"A server is listening at {path} already.")
    if found.st_uid != os.geteuid():
        raise ListenError(f"{path} is a stale socket of uid {found.st_uid}; its owner has to remove it.")
    log.info("removing the stale socket %s", path)
    path.unlink()
