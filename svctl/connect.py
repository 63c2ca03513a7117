"""Finds the daemon's socket and connects to it, with a sentence for every way in which that fails.

Never imports socket, asyncio or pathlib, as every start of svctl would pay for it.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
import time

from svctl import wire
from svctl.client import Client, pause_s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SYSTEM_SOCKET = "/run/sensevoice/api.sock"
_MIN_CONNECT_S = 0.05
"""Even without patience a connect gets so long."""
_PASSING = ("too_many_connections", "shutting_down")
"""What a daemon says instead of a welcome that a moment later may be over."""


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


def connect(explicit: str, *, patience_s: float, environ: Mapping[str, str] = os.environ) -> Client:
    """A connection that has exchanged hellos.

    Waits up to `patience_s` seconds for a daemon that is loading (it accepts and answers later) or full.
    Raises WireError: `unavailable` without a daemon, `unsupported` for another major version, `forbidden`,
    `timeout`.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            client = _open(candidates(explicit, environ), environ, deadline)
            try:
                client.hello(deadline)
            except BaseException:
                client.close()
                raise
        except wire.WireError as error:
            wait_s = pause_s(error.retry_after_ms)
            if error.code not in _PASSING or time.monotonic() + wait_s > deadline:
                raise
            time.sleep(wait_s)
        else:
            return client


def _open(paths: list[str], environ: Mapping[str, str], deadline: float) -> Client:
    for path in paths:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        # a full backlog blocks connect(2); socket(7) SO_SNDTIMEO bounds that without a busy loop
        left = max(deadline - time.monotonic(), _MIN_CONNECT_S)
        sock.setsockopt(
            _socket.SOL_SOCKET, _socket.SO_SNDTIMEO, struct.pack("ll", int(left), int(left % 1 * 1e6))
        )
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            if error.errno == errno.EACCES:
                raise wire.WireError(
                    "forbidden", f"This user may not connect to {path}; its group may."
                ) from None
            if error.errno == errno.EAGAIN:
                raise wire.WireError("timeout", f"The daemon at {path} takes no more connections.") from None
            if error.errno is None or error.errno not in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
                raise wire.WireError(
                    "unavailable", f"The socket {path} cannot be used ({error.strerror or error})."
                ) from None
        else:
            return Client(sock, path)
    where = " or ".join(paths)
    raise wire.WireError(
        "unavailable", f"No daemon listens at {where}; start it with: {_start_command(paths[0], environ)}"
    )
