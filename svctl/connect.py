"""Finds the daemon's socket and connects to it, with a sentence for every way in which that fails.

Never imports asyncio or pathlib, nor struct before it has to, as every start of svctl would pay for it.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from svctl import wire
from svctl.connection import Connection, pause_s, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SYSTEM_SOCKET = "/run/sensevoice/api.sock"
_MIN_CONNECT_S = 0.05
"""Even without patience a connect gets so long."""
_ABSENT_PAUSE_S = 0.05
"""Between two looks for a socket that is not there yet: a daemon takes seconds to start."""
_PASSING = ("too_many_connections", "shutting_down")
"""What a daemon says instead of a welcome that a moment later may be over."""


class _AbsentError(wire.WireError):
    """Nobody listens, and a moment later somebody may."""


def candidates(explicit: str, environ: Mapping[str, str]) -> list[str]:
    """Sockets to try, in order: the one that was named, else the user's daemon, then the system's."""
    named = explicit or environ.get("SENSEVOICE_SOCKET", "")
    if named:
        return [named]
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    return ([runtime + "/sensevoice/api.sock"] if runtime else []) + [SYSTEM_SOCKET]


def _start_command(path: str, environ: Mapping[str, str]) -> str:
    if path == SYSTEM_SOCKET:
        return "systemctl start sensevoiced.socket"
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if runtime and path == runtime + "/sensevoice/api.sock":
        return "systemctl --user start sensevoiced.socket"
    return f"sensevoiced --socket {path}"


def connect(
    explicit: str,
    *,
    patience_s: float,
    answer_s: float = 0.0,
    absent_s: float = 0.0,
    environ: Mapping[str, str] = os.environ,
    behind: Callable[[Connection], object] | None = None,
) -> Connection:
    """A connection that has exchanged hellos.

    `behind` sends what need not wait for the daemon's hello, over every connection that is tried: a
    daemon that turns a connection away does not look at it.

    Waits up to `patience_s` seconds for a daemon that is loading (it accepts and answers later) or full, and
    up to `absent_s` for one that does not listen yet; one that listens gets `answer_s` even without patience.
    Raises WireError: `unavailable` without a daemon, `unsupported` for another major version, `forbidden`,
    `timeout`.
    """
    began_s = time.monotonic()
    deadline = began_s + patience_s
    while True:
        try:
            answer_by = max(deadline, time.monotonic() + answer_s)
            client = _open(candidates(explicit, environ), environ, answer_by)
            try:
                client.hello()
                if behind is not None:
                    behind(client)
                client.welcomed(answer_by)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    client.cancel_all()  # what was sent behind the hello
                client.close()
                raise
        except _AbsentError:
            if time.monotonic() + _ABSENT_PAUSE_S > began_s + absent_s:
                raise
            time.sleep(_ABSENT_PAUSE_S)
        except wire.WireError as error:
            wait_s = pause_s(error.retry_after_ms)
            if error.code not in _PASSING or time.monotonic() + wait_s > deadline:
                raise
            time.sleep(wait_s)
        else:
            return client


def _open(paths: list[str], environ: Mapping[str, str], deadline: float) -> Connection:
    may_come = False
    for path in paths:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            try:
                sock.connect(path)
            except BlockingIOError:  # a full backlog
                _connect_slowly(sock, path, max(deadline - time.monotonic(), _MIN_CONNECT_S))
        except OSError as error:
            sock.close()
            if error.errno in (errno.EACCES, errno.ECONNREFUSED):
                _explain(path, refused=error.errno == errno.ECONNREFUSED)
            if error.errno == errno.EAGAIN:
                raise wire.WireError("timeout", f"The daemon at {path} takes no more connections.") from None
            if error.errno is None or error.errno not in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
                raise wire.WireError(
                    "unavailable", f"The socket {path} cannot be used ({error.strerror or error})."
                ) from None
            may_come = may_come or error.errno != errno.ENOTDIR
        else:
            return Connection(sock, path)
    where = " or ".join(paths)
    sentence = f"No daemon listens at {where}; start it with: {_start_command(paths[0], environ)}"
    raise (_AbsentError if may_come else wire.WireError)("unavailable", sentence)


def _connect_slowly(sock: socket.socket, path: str, left_s: float) -> None:
    """Wait for room in the backlog; socket(7) SO_SNDTIMEO bounds that without a busy loop."""
    import struct  # noqa: PLC0415 - see the first lines

    bound = struct.pack("ll", int(left_s), int(left_s % 1 * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bound)
    sock.setblocking(True)
    sock.connect(path)


def _explain(path: str, *, refused: bool) -> None:
    """Raise WireError for what connect(2) says EACCES or ECONNREFUSED of; a stale socket passes."""
    try:
        facts = os.stat(path)  # noqa: PTH116 - see the first lines
    except OSError as error:
        if refused or error.errno != errno.EACCES:
            return  # it has gone in between
        folder = path.rpartition("/")[0] or "."
        raise wire.WireError(
            "forbidden", f"This user may not look into {folder}, where the daemon's socket should be."
        ) from None
    if not stat.S_ISSOCK(facts.st_mode):
        raise wire.WireError("unavailable", f"{path} is not a socket.")
    if not refused:
        raise wire.WireError("forbidden", f"This user may not connect to {path}{_remedy(facts)}.")


def _remedy(facts: os.stat_result) -> str:
    """How a user gets to a socket that a group may use; "" where no group may, or only root's."""
    if not facts.st_mode & stat.S_IWGRP or not facts.st_gid:
        return ""
    import grp  # noqa: PLC0415 - only this sentence needs names
    import pwd  # noqa: PLC0415

    try:
        group, user = grp.getgrgid(facts.st_gid).gr_name, pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"; its group {facts.st_gid} may"
    return f"; its group may, which takes a new login after: sudo usermod -aG {group} {user}"
