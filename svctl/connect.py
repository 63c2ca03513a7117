"""Finds the daemon's socket and connects to it, with a sentence for every way in which that fails.

Never imports asyncio, pathlib or struct, as every start of svctl would pay for it.
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
    from collections.abc import Callable, Generator, Mapping
    from typing import TypedDict, Unpack

    Steps = Generator[tuple[Connection | None, float], None, Connection]

    class _How(TypedDict, total=False):
        patience_s: float
        answer_s: float
        absent_s: float
        environ: Mapping[str, str]
        behind: Callable[[Connection], object] | None


SYSTEM_SOCKET = "/run/sensevoice/api.sock"
_BACKLOG_PAUSE_S = 0.02
"""Between two tries at a daemon that is slow to accept; a blocking connect could not be called off."""
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


def connect(explicit: str, **how: Unpack[_How]) -> Connection:
    """A connection that has exchanged hellos, of `connecting`, which says what `how` can be; it blocks."""
    steps = connecting(explicit, **how)
    try:
        while True:
            connection, wait_s = next(steps)
            if connection is None:
                time.sleep(wait_s)
            else:
                connection.wait(wait_s)
    except StopIteration as end:
        connected: Connection = end.value
        return connected
    finally:
        steps.close()


def connecting(
    explicit: str,
    *,
    patience_s: float,
    answer_s: float = 0.0,
    absent_s: float = 0.0,
    environ: Mapping[str, str] = os.environ,
    behind: Callable[[Connection], object] | None = None,
) -> Steps:
    """Connect and exchange hellos, but for the waiting: a thread sleeps, an event loop does other work.

    Gives what to wait for and how many seconds at most: a connection that something arrives on, or None for
    nothing but time. To close it is to give up.

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
            client = yield from _open(candidates(explicit, environ), environ, answer_by)
            yield from _greeting(client, behind, answer_by)
        except _AbsentError:
            if time.monotonic() + _ABSENT_PAUSE_S > began_s + absent_s:
                raise
            wait_s = _ABSENT_PAUSE_S
        except wire.WireError as error:
            wait_s = pause_s(error.retry_after_ms)
            if error.code not in _PASSING or time.monotonic() + wait_s > deadline:
                raise
        else:
            return client
        yield None, wait_s


def _greeting(
    client: Connection, behind: Callable[[Connection], object] | None, deadline: float
) -> Generator[tuple[Connection | None, float], None, None]:
    try:
        client.hello()
        if behind is not None:
            behind(client)
        while not client.welcomed():
            yield client, client.left_s(deadline)
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
            client.cancel_all()  # what was sent behind the hello
        client.close()
        raise


def _open(paths: list[str], environ: Mapping[str, str], deadline: float) -> Steps:
    may_come = False
    for path in paths:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            while True:
                try:
                    sock.connect(path)
                    break
                except BlockingIOError:
                    if time.monotonic() + _BACKLOG_PAUSE_S > deadline:
                        raise
                yield None, _BACKLOG_PAUSE_S
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise
            _require_absence(path, error)
            may_come = may_come or error.errno != errno.ENOTDIR
        else:
            return Connection(sock, path)
    where = " or ".join(paths)
    sentence = f"No daemon listens at {where}; start it with: {_start_command(paths[0], environ)}"
    raise (_AbsentError if may_come else wire.WireError)("unavailable", sentence)


def _require_absence(path: str, error: OSError) -> None:
    """Raise WireError for what connect(2) says of a socket that is there; the next may be tried otherwise."""
    if error.errno in (errno.EACCES, errno.ECONNREFUSED):
        _explain(path, refused=error.errno == errno.ECONNREFUSED)
    if error.errno == errno.EAGAIN:
        raise wire.WireError("timeout", f"The daemon at {path} takes no more connections.") from None
    if error.errno is None or error.errno not in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
        raise wire.WireError(
            "unavailable", f"The socket {path} cannot be used ({error.strerror or error})."
        ) from None


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
