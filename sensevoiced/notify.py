"""Talks to systemd: sd_notify messages, the watchdog's interval, descriptors handed over.

Standard library only, and no state but the socket.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

log = logging.getLogger(__name__)

FIRST_FD = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""

ENVIRONMENT = (
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
)
"""Meant for this process alone; a child that had them would take itself for the service."""

PATIENCE_S = 5.0
"""For messages that decide what the manager takes us for: its queue holds some ten messages and may be full.
Signs of life come again, and are dropped instead."""
_MAX_FDS = 4_096
"""More than systemd passes to anybody: above it LISTEN_FDS is a mistake, and no reason to make a list that
long."""
_MAX_STATUS_CHARS = 200


class Notifier:
    """Tells the service manager about our state; without a manager every message is dropped."""

    def __init__(self, address: str | None) -> None:
        """`address` is NOTIFY_SOCKET: a path, or `@name` for the abstract namespace.

        Anything else is ignored.
        """
        self._socket: socket.socket | None = None
        if not address or address[0] not in "/@":
            return
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            channel.connect("\0" + address[1:] if address[0] == "@" else address)
        except OSError as error:
            log.warning("the service manager cannot be notified: %s", error)
            channel.close()
        else:
            self._socket = channel

    def send(self, *assignments: str, patience_s: float = 0.0) -> None:
        """Send `KEY=value` assignments in one message.

        A manager that does not read within `patience_s` misses it; meanwhile the caller is blocked.
        """
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.settimeout(patience_s)
                # Names of files may be any bytes, and what goes to systemd is UTF-8.
                self._socket.send("\n".join(assignments).encode(errors="backslashreplace"))

    def status(self, sentence: str) -> None:
        """One line for `systemctl status`."""
        self.send(_status(sentence))

    def loading(self, sentence: str, extend_s: float) -> None:
        """Still starting: ask for `extend_s` more seconds before the start counts as failed."""
        self.send(f"EXTEND_TIMEOUT_USEC={round(extend_s * 1e6)}", _status(sentence))

    def ready(self, sentence: str) -> None:
        """Serving, after the start or after a reload."""
        self.send("READY=1", _status(sentence), patience_s=PATIENCE_S)

    def reloading(self) -> None:
        """Reading the settings again; must be followed by `ready`.

        The clock is the one sd_notify(3) asks for.
        """
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.send("RELOADING=1", f"MONOTONIC_USEC={now_us}", patience_s=PATIENCE_S)

    def stopping(self, sentence: str) -> None:
        """No new work from here on."""
        self.send("STOPPING=1", _status(sentence), patience_s=PATIENCE_S)

    def watchdog(self) -> None:
        """Alive, and getting on with the work."""
        self.send("WATCHDOG=1")

    def close(self) -> None:
        """Give the socket back."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _status(sentence: str) -> str:
    # A line break would start an assignment of its own.
    return "STATUS=" + " ".join(sentence.split())[:_MAX_STATUS_CHARS]


def watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    """Seconds within which systemd wants a sign of life, or None where it wants none (of this process)."""
    wanted_of = environ.get("WATCHDOG_PID")
    if wanted_of is not None and wanted_of != str(os.getpid()):
        return None
    try:
        interval_s = int(environ.get("WATCHDOG_USEC", "0")) / 1e6
    except (ValueError, OverflowError):
        return None
    return interval_s if interval_s > 0 else None


def inherited(environ: Mapping[str, str]) -> list[tuple[int, str]] | None:
    """Descriptors that systemd handed to this very process, with their names.

    [] without any, None where the number makes no sense.

    See sd_listen_fds(3): LISTEN_PID of another process means that the variables leaked to us and are not
    ours.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    try:
        count = int(environ.get("LISTEN_FDS", "0"))
    except ValueError:
        return None
    if not 0 <= count <= _MAX_FDS:
        return None
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    return [(FIRST_FD + n, names[n] if n < len(names) else "") for n in range(count)]


def forget(environ: MutableMapping[str, str]) -> None:
    """Take everything of systemd's out of the environment, once it has been read."""
    for name in ENVIRONMENT:
        environ.pop(name, None)
