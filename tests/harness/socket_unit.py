"""Plays a socket unit: keeps a listening socket whatever becomes of a daemon, and hands it to the next."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import pytest
from harness.daemon import DaemonProcess

ACTIVATE = Path(__file__).with_name("activate.py")
NAME = "sensevoiced.socket"
"""What systemd calls a descriptor where FileDescriptorName= says nothing."""

needs_socket_activate = pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is not installed"
)


class SocketUnit:
    """A listening socket of our own, as PID 1 keeps it, and daemons started on it."""

    def __init__(self, folder, name=NAME):
        self.path = folder / "kept.sock"
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(self.path))
        self.listening.listen(16)
        self.listening.set_inheritable(True)
        self._name = name

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listening.close()

    def start(self, folder, *, on_demand=False, wrapper=(), environ=(), **options):
        """Start a daemon on the socket: at once, or through systemd-socket-activate at the first connection.

        That program replaces itself with the daemon, so it cannot keep the socket; but it takes one over that
        it was given (systemd-socket-activate(1)), and so the same socket goes from daemon to daemon.
        """
        hand_over = [sys.executable, str(ACTIVATE), str(self.listening.fileno()), self._name]
        if on_demand:
            # It passes PATH and HOME on, and what is named.
            named = [f"--setenv={name}" for name in ("OMP_NUM_THREADS", *dict(environ))]
            hand_over += ["systemd-socket-activate", f"--fdname={self._name}", *named]
        daemon = DaemonProcess(
            folder,
            wrapper=[*hand_over, *wrapper],
            pass_fds=[self.listening.fileno()],
            environ=environ,
            ready=options.pop("ready", not on_demand),
            **options,
        )
        daemon.socket = self.path
        return daemon


def pending(path):
    """Connections to a listening socket that nobody has accepted yet (SS_CONNECTING in /proc/net/unix)."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return sum(len(line) > 7 and line[7] == str(path) and line[5] == "02" for line in lines)
