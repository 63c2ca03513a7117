"""A raw client of the protocol that can do everything a client must not.

Blocking, with a deadline on every wait.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import struct

from svctl.framing import FrameReader, encode
from svctl.wire import MAX_FRAME_BYTES

TIMEOUT_S = 30.0
"""Only ever waited for in full where a test fails: machines that build and test are busy."""
TERMINAL = ("done", "error")


class Closed(Exception):
    """The daemon has closed the connection."""


class WireClient:
    """A connection to the daemon at `path`, or over a socket that is connected already."""

    def __init__(self, path, *, hello=True, timeout_s=TIMEOUT_S):
        if isinstance(path, socket.socket):
            self.socket = path
        else:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout_s)
        if self.socket is not path:
            self.socket.connect(str(path))
        self.reader = FrameReader(MAX_FRAME_BYTES)
        self.kept = []
        if hello:
            self.send({"type": "hello", "major": 1, "minor": 0, "client": "test"})
            assert self.receive()["type"] == "welcome"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, message, *fds):
        """Send one message, with descriptors on its first byte."""
        self.send_raw(encode(message), *fds)

    def send_raw(self, data, *fds):
        if fds:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            sent = self.socket.sendmsg([data], rights)
            data = data[sent:]
        if data:
            self.socket.sendall(data)

    def receive(self):
        """The next message. Raises Closed, or TimeoutError."""
        while (message := self.reader.next()) is None:
            try:
                data = self.socket.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                raise Closed
            self.reader.feed(data)
        return message

    def until_closed(self):
        """All messages up to the end of the connection."""
        messages = []
        with contextlib.suppress(Closed):
            while True:
                messages.append(self.receive())
        return messages

    def silent(self):
        """Whether nothing has arrived that was not received yet."""
        return self.reader.next() is None and not select.select([self.socket], [], [], 0)[0]

    def events(self, request):
        """All events of a request up to its terminal one; other requests' are kept for their turn.

        No `progress`.
        """
        found = []
        for message in [*self.kept]:
            if message.get("id") == request:
                self.kept.remove(message)
                found.append(message)
                if message["type"] in TERMINAL:
                    return found
        while not found or found[-1]["type"] not in TERMINAL:
            message = self.receive()
            if message["type"] == "progress":
                continue
            if message.get("id") == request:
                found.append(message)
            else:
                self.kept.append(message)
        return found

    def transcribe(self, request, fd=None, **fields):
        """Send a `transcribe` with a descriptor (kept open here), or with what `fields` say."""
        message = {"type": "transcribe", "id": request, "source": "fd", **fields}
        self.send(message, *([] if fd is None else [fd]))

    def ask(self, request, fd=None, **fields):
        """Transcribe and wait for all of it."""
        self.transcribe(request, fd, **fields)
        return self.events(request)

    def status(self, request=999_999):
        self.send({"type": "status", "id": request})
        while True:
            message = self.receive()
            if message["type"] == "status":
                return message["status"]
            self.kept.append(message)

    def ping(self, request=999_998):
        self.send({"type": "ping", "id": request})
        while True:
            message = self.receive()
            if message["type"] == "pong":
                return message
            self.kept.append(message)


def frame(body):
    """A frame around any bytes."""
    return struct.pack(">I", len(body)) + body


def texts(events):
    """Texts of the segments among some events."""
    return [event["text"] for event in events if event["type"] == "segment"]


def memfd(content):
    """A descriptor of a file in memory that holds `content`."""
    fd = os.memfd_create("source")
    os.write(fd, content)
    return fd
