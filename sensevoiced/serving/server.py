"""Accepts connections and keeps their sessions: one task each, a defect in one never reaches another.

Decides nothing about requests.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
from typing import TYPE_CHECKING

from sensevoiced.descriptors import closing
from sensevoiced.serving.board import Board
from sensevoiced.serving.listener import peer_of
from sensevoiced.serving.session import FAREWELL_S, Session
from sensevoiced.serving.transport import ConnectionLost, Stream
from sensevoiced.shortage import lacks_memory, out_of_memory
from svctl.framing import encode, load_codec
from svctl.wire import WireError

if TYPE_CHECKING:
    import socket

    from sensevoiced.metrics import Metrics
    from sensevoiced.serving.admission import Admission
    from sensevoiced.serving.listener import Listener
    from sensevoiced.serving.service import Service

log = logging.getLogger(__name__)

WARN_EVERY_S = 1.0
"""A shortage may last, and is met with every heartbeat."""
CUT_OFF_S = 0.5
"""For connections that are cut off to give back what they hold: a few turns of the loop."""
_ACCEPTS_A_TURN = 64
"""Connections taken in one turn of the loop, so that a flood of them leaves time for the work."""
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Server:
    """The accept loop and all open connections."""

    def __init__(self, listener: Listener, service: Service, admission: Admission, metrics: Metrics) -> None:
        """Prepare; `start` begins to accept."""
        self._listener = listener
        self._service = service
        self._admission = admission
        self._metrics = metrics
        self._board = Board()
        self._loop = asyncio.get_running_loop()
        self._sessions: dict[asyncio.Task[None], Session] = {}
        self._turned_away: set[asyncio.Task[None]] = set()
        self._open = False
        """We mean to accept; whether we do at the moment is the next."""
        self._accepting = False
        self._warned_s = -math.inf
        load_codec()  # not in the first client's time

    def start(self) -> None:
        """Accept from here on, as long as `go_on` is called again and again."""
        self._open = True
        self.go_on()

    def go_on(self) -> None:
        """Accept again after a pause: harmless at any time, and for a heartbeat, which nothing stops.

        A timer of our own would be lost for good where there is no memory for it. Raises MemoryError.
        """
        if self._open and not self._accepting:
            self._loop.add_reader(self._listener.socket.fileno(), self._accept)
            self._accepting = True

    def stop_accepting(self) -> None:
        """Leave new connections to the kernel's queue (an inherited socket) or to the void (our own)."""
        self._open = False
        self._pause()

    def _pause(self) -> None:
        if self._accepting:
            self._loop.remove_reader(self._listener.socket.fileno())
            self._accepting = False

    async def close(self, enough: asyncio.Event) -> None:
        """End every conversation, cutting off those that are not over when `enough` is set."""
        self.stop_accepting()
        for session in self._sessions.values():
            session.stop()
        tasks = [*self._sessions, *self._turned_away]
        if tasks:
            ended = asyncio.gather(*tasks, return_exceptions=True)
            waited = asyncio.ensure_future(enough.wait())
            await asyncio.wait((ended, waited), return_when=asyncio.FIRST_COMPLETED)
            waited.cancel()
            ended.cancel()  # and with it each one that has not ended
            await asyncio.wait(tasks, timeout=CUT_OFF_S)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                connection, _ = self._listener.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _SHORTAGES:
                    raise
                self._pause_for(error.strerror or "")
                return
            except MemoryError:
                self._pause_for(os.strerror(errno.ENOMEM))
                return
            try:
                self._take(connection)
            except MemoryError:
                connection.close()
                self._pause_for(os.strerror(errno.ENOMEM))
                return

    def _pause_for(self, want: str) -> None:
        """Accept nobody until a connection has ended or the heart beats: at once it would fail again.

        Other descriptors than connections' come back unnoticed, those of files and children.
        """
        self._pause()
        if self._loop.time() - self._warned_s >= WARN_EVERY_S:
            self._warned_s = self._loop.time()
            log.warning("cannot accept connections for want of resources: %s", want)

    def _take(self, connection: socket.socket) -> None:
        limits = self._admission.limits
        try:
            peer = peer_of(connection)
        except OSError:
            connection.close()
            return
        stream = Stream(
            connection,
            owner=peer.uid,
            max_write_buffer_bytes=limits.max_write_buffer_bytes,
            write_timeout_s=limits.write_timeout_s,
            takes_descriptors=lambda: not closing.full(peer.uid),
        )
        try:
            self._admission.connect(peer.uid)
        except WireError as error:
            self._metrics.clients_rejected += 1
            task = self._loop.create_task(_turn_away(stream, error))
            self._turned_away.add(task)
            task.add_done_callback(self._turned_away.discard)
            task.add_done_callback(self._descriptor_is_back)
            return
        try:
            session = Session(stream, peer, self._service, self._admission, self._metrics, self._board)
            task = self._loop.create_task(self._serve(session, stream, peer.uid))
        except MemoryError:
            self._admission.disconnect(peer.uid)
            raise
        self._sessions[task] = session
        task.add_done_callback(self._sessions.pop)
        task.add_done_callback(self._descriptor_is_back)

    def _descriptor_is_back(self, _: asyncio.Task[None]) -> None:
        """Go on accepting: a queue of connections that are dead already is not worked off by pauses."""
        self.go_on()

    async def _serve(self, session: Session, stream: Stream, uid: int) -> None:
        try:
            farewell = await self._caught(session, uid)
            if farewell is not None:
                await _turn_away(stream, farewell)
        except MemoryError:
            # Not even for a farewell: the end of the connection has to tell.
            pass
        finally:
            # In this order: a close that finds no memory must not keep the place.
            self._admission.disconnect(uid)
            stream.close()

    async def _caught(self, session: Session, uid: int) -> WireError | None:
        """Around one connection: one of the two places that catch everything.

        Gives what the peer is told where something was caught.
        """
        try:
            await session.run()
        except Exception as error:
            if lacks_memory(error):
                found = out_of_memory()
                log.warning("a connection of uid %d is ended for want of memory", uid)
            else:
                found = WireError("internal", "The daemon met a defect; its log has the details.")
                log.exception("a connection of uid %d met a defect", uid)
            self._metrics.connections_closed[found.code] += 1
            return found
        return None


async def _turn_away(stream: Stream, error: WireError) -> None:
    try:
        await stream.send(encode(error.to_message()))
        await stream.finish(FAREWELL_S)
    except (ConnectionLost, MemoryError):
        stream.close()
