"""One session on a loop of its own, between a client and a service that does as it is told."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import threading

from harness.wire_client import WireClient

from sensevoiced.config import ServingConfig
from sensevoiced.descriptors import closing
from sensevoiced.jobs import Decoded, Timings
from sensevoiced.metrics import Metrics
from sensevoiced.serving.admission import Admission
from sensevoiced.serving.board import Board
from sensevoiced.serving.listener import Peer
from sensevoiced.serving.session import Session
from sensevoiced.serving.transport import Stream

STRANGER = Peer(pid=1, uid=65533, gid=65533)
SELF = Peer(pid=os.getpid(), uid=os.geteuid(), gid=os.getegid())


class Transcript:
    """Yields what it was given; waits where it meets an event."""

    def __init__(self, source_fd, steps):
        self._source_fd, self._steps = source_fd, steps
        self.decoded_s, self.recognised_s = 12.34567, 4.0
        self.waits_for = "share"
        self.decoded = Decoded(7.0004, truncated=True)
        self.timings = Timings(queued_s=0.25)
        self.closed = 0

    async def __aiter__(self):
        for step in self._steps:
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, Exception):
                raise step
            else:
                yield step

    async def aclose(self):
        self.closed += 1
        if self.closed == 1:
            os.close(self._source_fd)


class Service:
    """Serving's Service, by script."""

    def __init__(self, steps=()):
        self.steps = steps
        self.asked = []
        self.accepting = True
        self.model = "scripted"
        self.reload_answer = "Nothing to apply."

    async def ready(self):
        pass

    def transcribe(self, source_fd, options, *, label, owner):
        self.owner = owner
        self.asked.append((options, label))
        return Transcript(source_fd, self.steps)

    async def status(self):
        return {"state": "scripted"}

    async def reload(self):
        if isinstance(self.reload_answer, Exception):
            raise self.reload_answer
        return self.reload_answer


class Running:
    """A session on a loop of its own thread, and a client at its other end."""

    def __init__(self, service, peer=SELF, **limits):
        self.service, self.metrics, self.board = service, Metrics(), Board()
        self.admission = Admission(dataclasses.replace(ServingConfig(), **limits), lambda: None)
        ours, theirs = socket.socketpair()
        self.error = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, args=(ours, peer))
        self._thread.start()
        self.client = WireClient(theirs)

    def _main(self, sock, peer):
        async def run():
            stream = Stream(
                sock,
                owner=peer.uid,
                max_write_buffer_bytes=2**21,
                write_timeout_s=5.0,
                takes_descriptors=lambda: not closing.full(peer.uid),
            )
            self.session = Session(stream, peer, self.service, self.admission, self.metrics, self.board)
            try:
                await self.session.run()
            finally:
                stream.close()

        try:
            self._loop.run_until_complete(run())
        except* RuntimeError as error:
            self.error = error

    def call(self, function):
        self._loop.call_soon_threadsafe(function)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._loop.close()
