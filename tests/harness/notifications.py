"""The service manager's end of sd_notify(3)."""

from __future__ import annotations

import itertools
import socket
import threading
import time


class Notifications:
    """A notification socket in `folder`; every message is read as it comes, and kept in order."""

    def __init__(self, folder):
        self.path = str(folder / "notify.sock")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._arrived = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def messages(self):
        """All messages so far, each a list of assignments."""
        return [message for _, message in [*self._arrived]]

    def count(self, assignment):
        return sum(line.startswith(assignment) for message in self.messages() for line in message)

    def times(self, assignment):
        """When messages with that assignment came, on the monotonic clock."""
        return [
            at for at, message in [*self._arrived] if any(line.startswith(assignment) for line in message)
        ]

    def silence_s(self, assignment):
        """Seconds since the last message with that assignment."""
        return time.monotonic() - self.times(assignment)[-1]

    def longest_gap_s(self, assignment):
        """Seconds between two messages with that assignment, at most."""
        return max(later - before for before, later in itertools.pairwise(self.times(assignment)))

    def values(self, name):
        """What `name` was set to, one after the other."""
        return [
            line.partition("=")[2]
            for message in self.messages()
            for line in message
            if line.startswith(f"{name}=")
        ]

    def close(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
            ours.sendto(b"", self.path)
        self._thread.join()
        self._socket.close()

    def _read(self):
        while data := self._socket.recv(4096):
            self._arrived.append((time.monotonic(), data.decode().split("\n")))
