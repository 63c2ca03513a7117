"""One connection's conversation: hello, pipelined requests, one terminal event each.

Imports no frontend or engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

from sensevoiced import __version__
from sensevoiced.descriptors import close_later
from sensevoiced.jobs import JobError
from sensevoiced.serving.inbox import Inbox
from sensevoiced.serving.job import Job
from sensevoiced.serving.transport import ConnectionLost
from sensevoiced.shortage import RETRY_MS, out_of_memory
from svctl.framing import encode
from svctl.wire import REQUESTS, VERSION_MAJOR, VERSION_MINOR, ProtocolError, WireError, check

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sensevoiced.metrics import Metrics
    from sensevoiced.serving.admission import Admission
    from sensevoiced.serving.board import Board
    from sensevoiced.serving.listener import Peer
    from sensevoiced.serving.service import Service
    from sensevoiced.serving.transport import Stream

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 0.5
"""A person sees movement, and a job that is over sooner needs none."""
FAREWELL_S = 1.0
"""A peer that is told why it is cut off may take so long to read it."""
MAX_ORPHANS = 1_024
"""Streamed requests that ended before their upload did, remembered so that the rest of the upload is no
error."""

Message = dict[str, Any]


class Session:
    """The state of one connection; `run` is its whole life."""

    def __init__(  # noqa: PLR0917 - what all connections share, and what is this one's
        self,
        stream: Stream,
        peer: Peer,
        service: Service,
        admission: Admission,
        metrics: Metrics,
        board: Board,
    ) -> None:
        """Prepare; nothing happens before `run`."""
        self._stream = stream
        self._peer = peer
        self._service = service
        self._admission = admission
        self._metrics = metrics
        self._board = board
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox(stream, lambda: admission.limits, self._working, peer.uid)
        self._greeted = False
        self._jobs: dict[int, Job] = {}
        self._orphans: dict[int, None] = {}
        self._idle = asyncio.Event()
        self._ticking: asyncio.TimerHandle | None = None
        self._group: asyncio.TaskGroup
        self._handlers: dict[str, Callable[[Message], Awaitable[None]]] = {
            "hello": self._on_hello,
            "transcribe": self._on_transcribe,
            "audio": self._on_audio,
            "end": self._on_end,
            "cancel": self._on_cancel,
            "status": self._on_status,
            "ping": self._on_ping,
            "reload": self._on_reload,
            "jobs": self._on_jobs,
            "drop": self._on_drop,
        }

    async def run(self) -> None:
        """Talk until either side ends it, and close the stream.

        What is raised is a defect, ours or a part's.
        """
        farewell: WireError | None = None
        lacking = False
        try:
            async with asyncio.TaskGroup() as self._group:
                try:
                    async with contextlib.aclosing(self._inbox.messages()) as messages:
                        async for message in messages:
                            await self._handle(message)
                    await self._see_off()
                except ConnectionLost:
                    pass
                except WireError as error:
                    farewell = error
                except MemoryError:
                    lacking = True
                finally:
                    self._drop_all()
        finally:
            if self._ticking is not None:
                self._ticking.cancel()
            self._inbox.close()
        if lacking:
            # Part of what the peer sent is lost, and which part nobody knows. Down here, where what has been
            # received is given back, and there is room for the answer.
            farewell = out_of_memory()
        if farewell is not None:
            self._metrics.connections_closed[farewell.code] += 1
            log.debug("closing a connection of uid %d: %s", self._peer.uid, farewell.message)
            with contextlib.suppress(ConnectionLost):
                await self._stream.send(encode(farewell.to_message()))
        await self._stream.finish(FAREWELL_S)

    def stop(self) -> None:
        """End the conversation: what is unfinished is answered `shutting_down`."""
        for job in list(self._jobs.values()):
            # offer, not send: a full buffer would not be read in time anyway.
            error = WireError("shutting_down", "The daemon is stopping.", request=job.id)
            self._stream.offer(encode(error.to_message()))
            self._drop(job)
        self._stream.stop_reading()

    async def _handle(self, raw: Message) -> None:
        """Act on one message; what is wrong with a single request is answered to it alone."""
        try:
            message = check(raw, REQUESTS)
            if not self._greeted and message["type"] != "hello":
                raise ProtocolError("protocol", "The first message has to be hello.")
            await self._handlers[message["type"]](message)
        except WireError as error:
            if (isinstance(error, ProtocolError) and error.fatal) or not self._greeted:
                error.request = None
                raise
            if raw["type"] == "transcribe":
                # What came with it, and what will still come, is refused with it.
                if raw.get("source") == "fd" and (fd := self._inbox.take_fd()) is not None:
                    close_later(fd, self._peer.uid)
                if raw.get("source") == "stream" and error.request is not None:
                    self._orphan(error.request)
            await self._stream.send(encode(error.to_message()))

    # --- requests -----------------------------------------------------------------------------------------

    async def _on_hello(self, message: Message) -> None:
        if self._greeted:
            raise ProtocolError("protocol", "hello came twice.")
        ours, theirs = f"{VERSION_MAJOR}.{VERSION_MINOR}", f"{message['major']}.{message['minor']}"
        if message["major"] != VERSION_MAJOR:
            both = f"The client speaks protocol {theirs}, this daemon {ours}"
            raise WireError("unsupported", f"{both}; install the same version of both.")
        self._greeted = True
        self._inbox.greet()
        welcome = {"type": "welcome", "major": VERSION_MAJOR, "minor": VERSION_MINOR}
        await self._stream.send(encode({**welcome, "server": f"sensevoiced/{__version__}"}))

    async def _on_ping(self, message: Message) -> None:
        await self._stream.send(encode({"type": "pong", "id": message["id"]}))

    async def _on_status(self, message: Message) -> None:
        status = await self._service.status()
        await self._stream.send(encode({"type": "status", "id": message["id"], "status": status}))

    async def _on_reload(self, message: Message) -> None:
        request = message["id"]
        if self._peer.uid not in (0, os.geteuid()):
            raise WireError(
                "forbidden", "Only the daemon's own user and root may reload it.", request=request
            )
        try:
            outcome = await self._service.reload()
        except WireError as error:
            error.request = request
            raise
        await self._stream.send(encode({"type": "reloaded", "id": request, "message": outcome}))

    async def _on_jobs(self, message: Message) -> None:
        jobs = self._board.jobs(self._peer)
        await self._stream.send(encode({"type": "jobs", "id": message["id"], "jobs": jobs}))

    async def _on_drop(self, message: Message) -> None:
        try:
            self._board.cancel(self._peer, message["job"])
        except WireError as error:
            error.request = message["id"]
            raise
        await self._stream.send(encode({"type": "dropped", "id": message["id"]}))

    def _end_for_another(self, job: Job) -> None:
        """Cancel a job because another connection asked for it, which does not wait for our peer to read."""
        error = WireError("cancelled", "The request was cancelled by `svctl cancel`.")
        self._group.create_task(self._fail(job, error))

    async def _on_transcribe(self, message: Message) -> None:
        request = message["id"]
        if request in self._jobs:
            # An error with this id would end the older request: no answer would be read alike by both sides.
            raise ProtocolError("protocol", f"Request {request} is not finished, and its id came again.")
        self._orphans.pop(request, None)
        if message["source"] == "path" and self._peer.uid != os.geteuid():
            sentence = "A path is opened only for the daemon's own user: pass a descriptor."
            raise WireError("forbidden", sentence, request=request)
        if not self._service.accepting:
            self._metrics.jobs_rejected += 1
            raise WireError("shutting_down", "The daemon is stopping.", request=request)
        try:
            ticket = self._admission.admit(self._peer.uid, len(self._jobs))
        except WireError as error:
            self._metrics.jobs_rejected += 1
            error.request = request
            raise
        fd = self._inbox.take_fd() if message["source"] == "fd" else None
        try:
            job = Job(message, fd, ticket, self._admission.limits)
        except OSError:  # no descriptor is left for the upload's pipe
            ticket.release()
            self._metrics.jobs_rejected += 1
            sentence = "The daemon has no descriptor left for another upload."
            raise WireError("busy", sentence, request=request, retry_after_ms=RETRY_MS) from None
        except MemoryError:
            ticket.release()
            if fd is not None:
                close_later(fd, self._peer.uid)
            raise
        self._begin(job)
        if self._ticking is None:
            self._ticking = self._loop.call_later(PROGRESS_INTERVAL_S, self._tick)

    def _begin(self, job: Job) -> None:
        """Put an admitted job where it can be seen, cancelled and worked on.

        Where that fails it gives back what it holds and is on no board; the connection ends with it.
        """
        try:
            self._jobs[job.id] = job
            self._idle.clear()
            self._board.add(self._peer, job, lambda: self._end_for_another(job))
            job.task = self._group.create_task(self._work(job))
            # Not a `finally` in the task: one that is cancelled before its first step never runs.
            job.task.add_done_callback(lambda _: self._over(job))
        except BaseException:
            self._over(job)
            raise

    def _over(self, job: Job) -> None:
        """Let go of what was a job's; harmless when repeated."""
        self._board.remove(job)
        job.dispose()

    async def _on_audio(self, message: Message) -> None:
        job = await self._uploading(message)
        if job is not None and job.upload is not None:
            job.upload.feed(message["data"])
            if job.upload.full:
                await self._unless_gone(job.upload.room())

    async def _on_end(self, message: Message) -> None:
        job = await self._uploading(message)
        if job is not None and job.upload is not None:
            job.upload.finish()
        self._orphans.pop(message["id"], None)

    async def _on_cancel(self, message: Message) -> None:
        # One that is not there has just been answered: the two messages crossed.
        job = self._jobs.get(message["id"])
        if job is not None:
            await self._fail(job, WireError("cancelled", "The request was cancelled."))

    async def _uploading(self, message: Message) -> Job | None:
        """The streamed request that `audio` or `end` belongs to; None where that has ended already."""
        request, kind = message["id"], message["type"]
        job = self._jobs.get(request)
        if job is None and request in self._orphans:
            return None
        if job is None:
            sentence = f"{kind} came for {request}, which is no unfinished streamed request."
            raise ProtocolError("invalid_request", sentence, request=request, fatal=False)
        if job.upload is None or job.upload.complete:
            what = "which streams no audio" if job.upload is None else "after its end"
            await self._fail(job, WireError("invalid_request", f"{kind} came for {request}, {what}."))
            return None
        return job

    # --- jobs ---------------------------------------------------------------------------------------------

    async def _work(self, job: Job) -> None:
        """Serve one request to its terminal event.

        Anything else that is raised is a defect, and ends the connection.
        """
        failure: WireError | None = None
        try:
            done = await job.perform(self._service, self._stream.send)
        except JobError as error:
            failure = WireError(error.code, error.message)
        except WireError as error:
            failure = error.with_traceback(None)
        except MemoryError:
            failure = out_of_memory()
        except ConnectionLost:
            self._drop(job)
            return
        if failure is not None:
            # Out here, where no traceback holds what the job held.
            await self._fail(job, failure)
        elif self._take_off(job):
            self._metrics.jobs_done += 1
            if not job.fed:
                self._orphan(job.id)
            await self._tell(done)
            self._ended()

    async def _fail(self, job: Job, error: WireError) -> None:
        """End a request with an error, unless it has its terminal event already."""
        if not self._take_off(job):
            return
        if error.code == "cancelled":
            self._metrics.jobs_cancelled += 1
        elif error.code in ("busy", "shutting_down"):
            self._metrics.jobs_rejected += 1
        else:
            self._metrics.jobs_failed += 1
        _cancel(job)
        if not job.fed:
            self._orphan(job.id)  # before the answer can cross with more of the upload
        error.request = job.id
        await self._tell(error.to_message())
        self._ended()

    def _drop(self, job: Job) -> None:
        """End a request that nobody can be told about."""
        if self._take_off(job):
            self._metrics.jobs_cancelled += 1
            _cancel(job)
            self._ended()

    def _take_off(self, job: Job) -> bool:
        """Say whether it has no terminal event yet, which it gets now.

        One that has may still be ending, while its id is the next request's already.
        """
        if self._jobs.get(job.id) is not job:
            return False
        del self._jobs[job.id]
        return True

    def _drop_all(self) -> None:
        for job in list(self._jobs.values()):
            self._drop(job)

    async def _tell(self, message: Message) -> None:
        # A peer that is gone shows at the reading end too, and ends the conversation there.
        with contextlib.suppress(ConnectionLost):
            await self._stream.send(encode(message))

    def _ended(self) -> None:
        self._inbox.restart_idle()
        if not self._jobs:
            self._idle.set()

    def _orphan(self, request: int) -> None:
        if len(self._orphans) >= MAX_ORPHANS:
            del self._orphans[next(iter(self._orphans))]
        self._orphans[request] = None

    def _working(self) -> bool:
        return any(job.fed for job in self._jobs.values())

    def _tick(self) -> None:
        """Tell how far the longer jobs are; a client that does not keep up misses some of it."""
        # First: what fails for want of memory below is told the next time.
        self._ticking = None
        if self._jobs:
            self._ticking = self._loop.call_later(PROGRESS_INTERVAL_S, self._tick)
        now_s = self._loop.time()
        for job in self._jobs.values():
            if now_s - job.began_s >= PROGRESS_INTERVAL_S and (progress := job.progress()) is not None:
                self._stream.offer(encode(progress))

    # --- the peer's end -----------------------------------------------------------------------------------

    async def _see_off(self) -> None:
        """The peer will ask no more: what it has asked in full is still answered, as long as it listens."""
        for job in list(self._jobs.values()):
            if not job.fed:
                self._drop(job)
        if self._jobs:
            await self._unless_gone(self._all_answered())

    async def _all_answered(self) -> None:
        await self._idle.wait()

    async def _unless_gone(self, waiting: Awaitable[None]) -> None:
        """Wait without reading; a peer that dies meanwhile shows as a hang-up only. Raises ConnectionLost."""
        gone, held = asyncio.ensure_future(self._stream.hung_up()), asyncio.ensure_future(waiting)
        try:
            await asyncio.wait((gone, held), return_when=asyncio.FIRST_COMPLETED)
            if not held.done():
                raise ConnectionLost
        finally:
            gone.cancel()
            held.cancel()


def _cancel(job: Job) -> None:
    if job.task is not None and job.task is not asyncio.current_task():
        job.task.cancel()
