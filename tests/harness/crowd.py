"""Many clients on one event loop, light enough not to disturb what they measure; every answer is timed.

Messages go out by single writes: they are far smaller than a socket's buffer, and the daemon reads them.
"""

from __future__ import annotations

import array
import asyncio
import socket
import time
from dataclasses import dataclass, field

from harness.wire_client import TERMINAL, Closed

from svctl.framing import FrameReader, encode
from svctl.wire import MAX_FRAME_BYTES


@dataclass(slots=True)
class Answer:
    """All events of a request but `progress`, and when it was sent and ended, on time.monotonic()."""

    sent_s: float
    done: asyncio.Future
    ended_s: float = 0.0
    events: list = field(default_factory=list)

    @property
    def took_s(self):
        return self.ended_s - self.sent_s

    @property
    def last(self):
        return self.events[-1]


class Member:
    """One connection of a crowd; made by `join`, on a running event loop."""

    def __init__(self, sock):
        self._socket = sock
        self._reader = FrameReader(MAX_FRAME_BYTES)
        self._loop = asyncio.get_running_loop()
        self._waiting = {}
        self._last_words = None
        self._welcome = self._loop.create_future()
        self._loop.add_reader(sock.fileno(), self._read)

    @classmethod
    async def join(cls, path):
        """Connect and exchange hellos."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(path))
        sock.setblocking(False)
        member = cls(sock)
        member.send({"type": "hello", "major": 1, "minor": 0, "client": "test"})
        await member._welcome
        return member

    def close(self):
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def send(self, message, *fds):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        frame = encode(message)
        assert self._socket.sendmsg([frame], rights) == len(frame)

    def ask(self, request, fd):
        """Have a file transcribed; await `done` of what this gives."""
        answer = self._expect(request)
        self.send({"type": "transcribe", "id": request, "source": "fd"}, fd)
        return answer

    def stream(self, request, content, piece_bytes):
        """Have bytes transcribed, in pieces."""
        answer = self._expect(request)
        self.send({"type": "transcribe", "id": request, "source": "stream"})
        for start in range(0, len(content), piece_bytes):
            self.send({"type": "audio", "id": request, "data": content[start : start + piece_bytes]})
        self.send({"type": "end", "id": request})
        return answer

    def _expect(self, request):
        answer = self._waiting[request] = Answer(time.monotonic(), self._loop.create_future())
        return answer

    def _read(self):
        try:
            data = self._socket.recv(2**18)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        now_s = time.monotonic()
        if not data:
            self._loop.remove_reader(self._socket.fileno())
            for future in (self._welcome, *(answer.done for answer in self._waiting.values())):
                if not future.done():
                    future.set_exception(Closed(self._last_words))
            return
        self._reader.feed(data)
        for message in self._reader.messages():
            self._take(message, now_s)

    def _take(self, message, now_s):
        if message["type"] == "welcome":
            self._welcome.set_result(None)
        elif message["id"] is None:
            self._last_words = message
        elif message["type"] != "progress":
            answer = self._waiting[message["id"]]
            answer.events.append(message)
            if message["type"] in TERMINAL:
                del self._waiting[message["id"]]
                answer.ended_s = now_s
                answer.done.set_result(answer)


def percentile(values, share):
    """The value that this share of all does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
