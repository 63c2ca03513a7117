"""A scripted daemon for tests of svctl: the real wire over a real socket, and answers that the test chooses.

By default it "recognises" a recording by reading it as text: each line of the file becomes one segment, so
that a test sees whether the right bytes arrived by the right way. `script` replaces that for one test.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import threading

from svctl import framing, wire

SERVER = "fake/1.0"


def segment(request, index, text, **changes):
    """A segment event with unremarkable values."""
    event = {
        "type": "segment",
        "id": request,
        "index": index,
        "start": index * 2.0,
        "end": index * 2.0 + 1.5,
        "language": "en",
        "language_score": 0.98765,
        "emotion": "NEUTRAL",
        "emotion_score": 0.75,
        "event": "Speech",
        "event_score": 0.99,
        "itn": True,
        "text": text,
        "raw": f"<|en|><|NEUTRAL|><|Speech|><|withitn|>{text}",
        "channel": 0,
        "words": [{"word": text, "start": index * 2.0, "end": index * 2.0 + 1.5}],
    }
    return event | changes


def done(request, segments, **changes):
    """The event that ends a transcription well."""
    event = {
        "type": "done",
        "id": request,
        "duration": segments * 2.0,
        "segments": segments,
        "model": "fake",
        "timings": {},
    }
    return event | changes


class Peer:
    """One client, as the script sees it."""

    def __init__(self, server, sock):
        self.server = server
        self._socket = sock
        self._reader = framing.FrameReader(wire.MAX_FRAME_BYTES)
        self._lock = threading.Lock()
        self._descriptors = []
        self.streams = {}

    def send(self, event):
        """Send one event; a client that has gone is no error."""
        try:
            with self._lock:
                self._socket.sendall(framing.encode(event))
        except OSError:
            pass

    def send_raw(self, data):
        """Send bytes as they are; a client that has gone is no error."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(data)

    def hang_up(self):
        """Break the connection; one that the client has ended is no error."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def messages(self):
        """Requests, checked as the daemon checks them, with their descriptor under `descriptor`."""
        while True:
            for message in self._reader.messages():
                checked = wire.check(message, wire.REQUESTS)
                if checked["type"] == "transcribe" and checked["source"] == "fd":
                    checked["descriptor"] = self._descriptors.pop(0)
                yield checked
            room = socket.CMSG_SPACE(8 * array.array("i").itemsize)
            try:
                data, ancillary, _, _ = self._socket.recvmsg(65_536, room, socket.MSG_CMSG_CLOEXEC)
            except OSError:
                return
            for _, _, rights in ancillary:
                self._descriptors.extend(array.array("i", rights))
            if not data:
                return
            self._reader.feed(data)

    def transcribe(self, request, data):
        """Answer with a segment per line of `data`."""
        lines = data.decode("utf-8", "replace").splitlines()
        for index, line in enumerate(lines):
            self.send(segment(request, index, line))
        self.send(done(request, len(lines)))

    def answer(self, message):
        """What a daemon without a script says to any request."""
        kind, request = message["type"], message["id"]
        if kind == "transcribe" and message["source"] == "fd":
            size = os.fstat(message["descriptor"]).st_size
            data = os.pread(message["descriptor"], size, 0)
            os.close(message["descriptor"])
            self.transcribe(request, data)
        elif kind == "transcribe":
            self.streams[request] = b""
        elif kind == "audio":
            self.streams[request] += message["data"]
        elif kind == "end":
            self.transcribe(request, self.streams.pop(request))
        elif kind == "ping":
            self.send({"type": "pong", "id": request})
        elif kind == "reload":
            self.send({"type": "reloaded", "id": request})
        elif kind == "jobs":
            self.send({"type": "jobs", "id": request, "jobs": self.server.jobs})
        elif kind == "drop":
            self.send({"type": "dropped", "id": request})
        elif kind == "status":
            self.send({"type": "status", "id": request, "status": self.server.status})


class FakeServer:
    """Listens on `path` for the length of a `with` block; `requests` lists what came after hello."""

    def __init__(self, path, script=None, *, major=wire.VERSION_MAJOR, minor=wire.VERSION_MINOR, greet=None):
        """`script(peer, message)` answers one request; `greet(peer, hello)` replaces the welcome."""
        self.path = str(path)
        self.script = script or Peer.answer
        self.greet = greet
        self.version = (major, minor)
        self.requests = []
        self.peers = []
        """Every connection that was accepted."""
        self.arrived = threading.Condition()
        self.ended = threading.Event()
        """Set when a connection has ended."""
        self.jobs = []
        self.status = {"server": SERVER, "pid": 1, "state": "ready", "model": "fake"}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self):
        self._listener.bind(self.path)
        self._listener.listen(128)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def wait_for(self, kind, count=1, timeout_s=20):
        """Block until so many requests of this type have arrived; returns them."""

        def there():
            return [message for message in self.requests if message["type"] == kind]

        with self.arrived:
            assert self.arrived.wait_for(lambda: len(there()) >= count, timeout_s), (
                f"no {count} x {kind}: {self.requests}"
            )
            return there()

    def _accept(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            peer = Peer(self, sock)
            self.peers.append(peer)
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer):
        messages = peer.messages()
        hello = next(messages, None)
        if hello is None:
            return
        assert hello["type"] == "hello"
        if self.greet is None:
            peer.send(
                {"type": "welcome", "major": self.version[0], "minor": self.version[1], "server": SERVER}
            )
        else:
            self.greet(peer, hello)
        for message in messages:
            with self.arrived:
                self.requests.append(message)
                self.arrived.notify_all()
            self.script(peer, message)
        peer._socket.close()
        self.ended.set()


def loading(refusals):
    """A script that answers `busy`, with these times to come back (ms, last first), and then as usual."""

    def script(peer, message):
        if refusals:
            busy = {"type": "error", "code": "busy", "message": "Loading.", "retry_after_ms": refusals.pop()}
            peer.send(busy | {"id": message["id"]})
        else:
            peer.answer(message)

    return script


def endless(first):
    """Make a script that gives one segment, sets the event `first`, and answers nothing more but `cancel`."""

    def script(peer, message):
        if message["type"] == "transcribe":
            peer.send(segment(message["id"], 0, "one"))
            first.set()
        elif message["type"] == "cancel":
            fields = {"code": "cancelled", "message": "Cancelled."}
            peer.send({"type": "error", "id": message["id"], **fields})
        else:
            Peer.answer(peer, message)

    return script
