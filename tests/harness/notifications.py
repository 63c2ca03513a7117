"""The service manager's end of sd_notify(3)."""

from __future__ import annotations

import socket
import threading


class Notifications:
    """A notification socket in `folder`; every message is read as it comes, and kept in order."""

    def __init__(self, folder):
        self.path = str(folder / "notify.sock")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._messages = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def messages(self):
        """All messages so far, each a list of assignments."""
        return [*self._messages]

    def count(self, assignment):
        return sum(line.startswith(assignment) for message in self.messages() for line in message)

    def close(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
            ours.sendto(b"", self.path)
        self._thread.join()
        self._socket.close()

    def _read(self):
        while data := self._socket.recv(4096):
            self._messages.append(data.decode().split("\n"))
