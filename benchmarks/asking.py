"""Asks our daemon as its users do, with the product's own client, and hears when it says READY=1."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from benchmarks.contender import Answer, ContenderError
from svctl.wire import WireError

if TYPE_CHECKING:
    from pathlib import Path

    from svctl.connection import Connection

    Message = dict[str, Any]

ANSWER_S = 3600.0
"""Longest answer, after which something is taken to be stuck."""


class Asking:
    """One client of a burst."""

    def __init__(self, client: Connection) -> None:
        """Own the connection."""
        self._client = client

    def one(self, clip: Path) -> None:
        """Have one clip answered."""
        ask(self._client, clip)

    def close(self) -> None:
        """End the connection."""
        self._client.close()


class Notified:
    """The service manager's end of NOTIFY_SOCKET: when READY=1 came."""

    def __init__(self, path: Path) -> None:
        """Listen at `path`."""
        self.path = path
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0.2)
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._at_s = 0.0
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def ready(self, timeout_s: float) -> float:
        """The time of READY=1 by time.perf_counter()."""
        if not self._ready.wait(timeout_s):
            raise ContenderError("the daemon answered and did not say READY=1")
        return self._at_s

    def close(self) -> None:
        """Stop listening."""
        self._ended.set()
        self._thread.join()
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _listen(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in self._socket.recv(4096).split(b"\n") and not self._ready.is_set():
                    self._at_s = time.perf_counter()
                    self._ready.set()


def ask(client: Connection, clip: Path) -> tuple[Answer, Message]:
    """Send one recording and take its events; the answer's text is FunASR's `text` of each segment."""
    began = time.perf_counter()
    descriptor = os.open(clip, os.O_RDONLY | os.O_CLOEXEC)
    try:
        request = client.request("transcribe", descriptor, source="fd", label=clip.name)
        texts: list[str] = []
        while True:
            event = client.take()
            if event is None:
                client.wait(ANSWER_S)
            elif event.get("id") not in (request, None):
                continue
            elif event["type"] == "segment":
                texts.append(event["raw"])
            elif event["type"] == "error":
                raise ContenderError(f"{event['code']}: {event['message']}")
            elif event["type"] == "done":
                return Answer(time.perf_counter() - began, " ".join(texts)), event
    except WireError as error:
        raise ContenderError(error.message) from error
    finally:
        os.close(descriptor)
