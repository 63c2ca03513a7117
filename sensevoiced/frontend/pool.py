"""The parent's side of the front end: children kept warm, jobs handed to them, their utterances read.

Must never import numpy or torch.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import time
from typing import TYPE_CHECKING, Any

from sensevoiced.config import ConfigError
from sensevoiced.frontend.answers import Expected
from sensevoiced.frontend.child import Child
from sensevoiced.frontend.run import FrontendRun, crash_sentence
from sensevoiced.frontend.setup import setup_message
from sensevoiced.frontend.snapshot import ChildSnapshot, PoolSnapshot
from sensevoiced.frontend.waiting import Waiting
from sensevoiced.jobs import JobError
from sensevoiced.logs import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sensevoiced.config import FrontendConfig
    from sensevoiced.jobs import Options
    from sensevoiced.models import AsrModel, VadModel

logger = logging.getLogger(__name__)

MAX_FAILED_STARTS = 3
"""Children in a row that end before they are ready; after that something is wrong that another start will not
cure."""
PAUSE_S = 2.0
"""From then until the next start where other children serve: whoever waits need not be refused."""
STOP_GRACE_S = 1.0
"""A child that is still busy so long after its job was called off is killed; it looks up after every block of
audio (30 ms)."""
START_S = 10.0
"""A child that is not ready so long after its start is no longer counted on; half a second is usual."""
END_GRACE_S = 2.0
"""What an idle child gets to end by itself when the pool closes: less than any service manager allows us."""


class FrontendPool:
    """Runs recordings through child processes: start(), then utterances() for each, then close()."""

    def __init__(
        self,
        config: FrontendConfig,
        asr: AsrModel,
        vad: VadModel,
        *,
        vad_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Describe the work.

        `vad_options` are FSMN-VAD options under FunASR's names over those of the model's config.yaml.
        """
        self.config = config
        self.expected = Expected.under(config, asr.frontend)
        self._setup = setup_message(config, asr, vad, vad_options or {})
        self._children: list[Child] = []
        self._idle: list[Child] = []
        self._waiting = Waiting()
        self._jail: tuple[str, ...] | None = None
        self._closing = False
        self._lent_s = -math.inf
        self._grows_soon = False
        self._paused_until_s = -math.inf
        self._failed_starts = 0
        self._failure = "the processes that read audio do not start"
        self._started = self._crashed = self._timeouts = self._stopped = 0
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Start the children and wait until all are warm.

        ConfigError with their own words when they cannot.
        """
        # The last one after the others: the engine loads at the same time, and needs a core for its imports.
        first = max(1, self.config.children - 1)
        for count in (first, self.config.children - first):
            if not self._failed_starts:
                for _ in range(count):
                    self._try_spawn()
            while not self._failed_starts and not all(child.ready for child in self._children):
                self._changed.clear()
                await self._changed.wait()
        if self._failed_starts:
            await self.close()
            raise ConfigError(f"The front end cannot start: {self._failure}.")

    async def close(self) -> None:
        """End all children.

        Jobs still running get JobError(shutting_down), or what their child had sent before.
        """
        self._closing = True
        self._waiting.refuse(_shutting_down)
        children = list(self._children)
        for child in children:
            if child.busy or not child.ready:
                child.kill()
            else:
                child.end()
        for child in children:
            try:
                await asyncio.wait_for(child.exited.wait(), END_GRACE_S)
            except TimeoutError:
                child.kill()
                await child.exited.wait()

    def utterances(self, source_fd: int, options: Options, *, label: str, owner: int = 0) -> FrontendRun:
        """Take over `source_fd` (it is closed in every case) and give a run that yields its utterances.

        `label` names the recording in nothing but the run's repr: children never learn it. Owners (the
        clients' uids) take turns, and none gets more than `FrontendConfig.max_children_per_uid`.
        """
        return FrontendRun(self, source_fd, options, label, owner)

    def snapshot(self) -> PoolSnapshot:
        """Say what the pool is doing now."""
        return PoolSnapshot(
            children=tuple(
                ChildSnapshot(child.pid, child.rss_bytes(), child.busy, child.jobs)
                for child in self._children
            ),
            waiting=len(self._waiting),
            max_per_user=self._most(),
            started=self._started,
            crashed=self._crashed,
            timeouts=self._timeouts,
            stopped=self._stopped,
            jail=self._jail or (),
        )

    def ask(self, owner: int) -> asyncio.Future[Child]:
        """Queue for a child that can take a job; `withdraw` if it is not wanted. For FrontendRun."""
        if self._closing:
            raise _shutting_down()
        future = self._waiting.add(owner)
        self._lend()
        return future

    def lack(self, owner: int) -> str:
        """What keeps an owner's job in the queue: `share` (of those children it may have), or `process`.

        For FrontendRun.
        """
        return "share" if self._share(owner) <= 0 else "process"

    def withdraw(self, asked: asyncio.Future[Child]) -> None:
        """Leave the queue, or give back the child that came of it, unused. For FrontendRun."""
        if not asked.cancel() and not asked.cancelled() and asked.exception() is None:
            self._take_back(asked.result())

    def timed_out(self, child: Child) -> None:
        """Kill a child from which nothing came. For FrontendRun."""
        self._timeouts += 1
        child.kill()

    def called_off(self, child: Child, job: int) -> None:
        """See to it that a child whose job was called off becomes free, or is replaced. For FrontendRun."""
        self._stopped += 1
        self._insist(child, job, STOP_GRACE_S)

    def finished(self, child: Child, job: int) -> None:
        """See to it that a child that said its last word becomes free, or is replaced. For FrontendRun.

        What it still does is to close the recording, where a file system may hold it.
        """
        self._insist(child, job, self.config.decode_timeout_s)

    def _insist(self, child: Child, job: int, grace_s: float) -> None:
        # What it said may be read late: it may be idle again, or at somebody else's job.
        if not child.busy or child.jobs != job:
            return
        child.settling = True

        def insist() -> None:
            if child.busy and child.jobs == job:
                child.kill()
                # Those who wait counted on it, and it may not even end.
                self._grow_later()

        try:
            asyncio.get_running_loop().call_later(grace_s, insist)
        except MemoryError:
            # Nobody would look again.
            child.kill()

    def _spawn(self) -> None:
        self._started += 1
        self._children.append(Child(self._setup, on_idle=self._take_back, on_exit=self._ended))
        asyncio.get_running_loop().call_later(START_S, self._grow_later)

    def _share(self, owner: int) -> int:
        """How many children more this owner may have now."""
        return self._most() - sum(child.owner == owner for child in self._children)

    def _most(self) -> int:
        """How many children any owner may have."""
        config = self.config
        # With few children in all, the last one that is not kept warm is still for somebody else.
        return min(config.max_children_per_uid, max(config.children, config.max_children - 1))

    def _lend(self) -> None:
        """Give what is idle to those who wait, one owner after the other; see to more where it is wanted."""
        while self._idle and (turn := self._waiting.next(self._share)) is not None:
            owner, future = turn
            child = self._idle.pop()
            child.owner = owner
            self._lent_s = time.monotonic()
            future.set_result(child)
        self._grow()

    def _grow(self) -> None:
        """Start children for those who wait, where those there are do not come free."""
        coming = sum(self._is_coming(child) for child in self._children)
        room = self.config.max_children - len(self._children)
        wanted = min(self._waiting.wanted(self._share) - coming, room)
        if wanted <= 0:
            return
        few = len(self._children) < self.config.children
        from_s = -math.inf if few else self._lent_s + self.config.grow_after_s
        wait_s = max(from_s, self._paused_until_s) - time.monotonic()
        if wait_s <= 0:
            for _ in range(wanted):
                self._try_spawn()
        elif not self._grows_soon:
            self._grows_soon = True
            asyncio.get_running_loop().call_later(wait_s, self._grow_later)

    def _is_coming(self, child: Child) -> bool:
        """Whether it takes a job soon: a file system that does not answer holds up a signal, and exec."""
        if child.killed:
            return False
        return child.settling or (not child.ready and time.monotonic() - child.idle_since_s < START_S)

    def _grow_later(self) -> None:
        self._grows_soon = False
        if not self._closing:
            self._grow()

    def _try_spawn(self) -> None:
        try:
            self._spawn()
        except (OSError, MemoryError) as error:
            self._failed_starts += 1
            number = error.errno if isinstance(error, OSError) else errno.ENOMEM
            self._failure = f"no process can be started ({os.strerror(number or 0)})"
            if not any(child.ready for child in self._children):
                self._give_up()
            # Else those who wait get the children there are, one after the other.

    def _take_back(self, child: Child) -> None:
        """Take a child that is free, and lend it again if somebody waits."""
        self._failed_starts = 0
        child.owner = None
        try:
            self._changed.set()
            self._note_jail(child)
            if not child.exited.is_set():
                self._idle.append(child)
        except MemoryError:
            # It will not be brought again, and would be neither idle nor busy for ever.
            child.kill()
            raise
        self._lend()
        if child in self._idle and len(self._children) > self.config.children:
            asyncio.get_running_loop().call_later(self.config.idle_child_s, self._retire)

    def _note_jail(self, child: Child) -> None:
        """Log what children are closed in by: once, as it is the same kernel and library for all."""
        layers, missing = child.jail
        if layers == self._jail:
            return
        self._jail = layers
        logger.info("front-end children are closed in by %s", shown(" and ".join(layers) or "nothing"))
        for reason in missing:
            logger.warning("front-end children go without %s", shown(reason))

    def _retire(self) -> None:
        """End what has been idle for too long, as far as there are more children than are kept warm."""
        now = time.monotonic()
        for child in list(self._idle):
            if len(self._children) <= self.config.children:
                return
            if now - child.idle_since_s >= self.config.idle_child_s:
                self._idle.remove(child)
                child.end()

    def _ended(self, child: Child) -> None:
        self._children.remove(child)
        if child in self._idle:
            self._idle.remove(child)
        self._changed.set()
        if self._closing:
            return
        if not child.ready:
            self._failed_starts += 1
            self._failure = (
                child.failure or f"a process ended with status {child.returncode} before it was ready"
            )
            if self._failed_starts >= MAX_FAILED_STARTS:
                self._start_no_more()
                return
        if len(self._children) < self.config.children:
            self._try_spawn()
        # Its owner may have waited for nothing but his share.
        self._lend()

    def _start_no_more(self) -> None:
        """Refuse those who wait, or let them wait for the children there are until the next attempt."""
        if not any(child.ready for child in self._children):
            self._give_up()
            return
        self._paused_until_s = time.monotonic() + PAUSE_S
        self._grow()

    def _give_up(self) -> None:
        # The next job tries again: what is wrong now (no memory, no process) may pass.
        self._waiting.refuse(lambda: JobError("internal", f"The front end cannot start: {self._failure}."))

    def distrusted(self, child: Child, error: ValueError) -> JobError:
        """Kill a child that sent what ours never send, and say what its client is told. For FrontendRun."""
        logger.warning("front-end child %d is killed for what it sent: %s", child.pid, shown(str(error)))
        child.kill()
        return JobError("internal", "The process that read this recording answered nonsense and was ended.")

    def crashed(self, child: Child) -> JobError:
        """Count a child that ended in the middle of a job, and say what its client is told.

        For FrontendRun.
        """
        if self._closing:
            return _shutting_down()
        self._crashed += 1
        logger.warning(
            "front-end child %d ended in a job: %s",
            child.pid,
            shown(child.failure or f"status {child.returncode}"),
        )
        return JobError("bad_input", crash_sentence(child.returncode, self.config.child_cpu_s))


def _shutting_down() -> JobError:
    return JobError("shutting_down", "The daemon is stopping: try again when it is back.")
