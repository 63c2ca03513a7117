"""Brings utterances to the engine thread in batches, and results back; never imports a model or torch."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sensevoiced.engine.api import Engine, OutOfMemory, Work
from sensevoiced.engine.runner import Item, Outcome, Runner
from sensevoiced.engine.turns import Turns
from sensevoiced.jobs import JobError, Options, Recognised, Recognition, Utterance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sensevoiced.config import BatchLimits

__all__ = ["Batcher", "BatcherSnapshot", "Engine", "OutOfMemory", "Work"]

_T = TypeVar("_T")

STOP_S = 5.0
"""How long `stop` waits for a running batch, because a thread cannot be interrupted."""
RETRY_S = 0.01
"""Between two attempts at what takes a few bytes that are not to be had just now."""

_NO_MEMORY = "The daemon has too little memory for this."
_LOST_THREAD = "The engine thread has ended; the daemon needs a restart."


@dataclass(frozen=True, slots=True)
class BatcherSnapshot:
    """What the batcher holds and has done, for `svctl status` and the watchdog."""

    queued_utterances: int
    queued_audio_s: float
    running_utterances: int
    oldest_batch_age_s: float
    """How long the engine has been at its present batch (or call); 0 when idle."""
    batches: int
    utterances: int
    failed_utterances: int
    failed_in_a_row: int
    """Utterances failed since the last that succeeded: a broken device fails all of them."""
    mean_batch_size: float
    max_batch_frames: int
    """The cap in force."""
    engine_busy_s: float
    out_of_memory_splits: int
    ended: bool
    """Whether the engine thread has ended though nobody stopped it: nothing will ever run again."""


class Batcher:
    """Queues utterances by job, and runs them in batches on a thread of its own.

    There is no waiting for company: an idle engine starts at once, and what arrives while it works forms the
    next batch, in the order of `Turns`. All methods belong to the event loop's thread.
    """

    def __init__(self, run: Callable[[Sequence[Work]], list[Recognition]], *, limits: BatchLimits) -> None:
        """Prepare; `run` is only ever called on the engine thread."""
        self._runner = Runner(run, limits)
        self._limits = limits
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        # Guards everything below: the loop puts in, the engine thread takes out.
        self._changed = threading.Condition()
        self._waiting: Turns[Item] = Turns()
        self._calls: deque[tuple[Callable[[], None], concurrent.futures.Future[Any]]] = deque()
        self._running: list[Item] = []
        self._cutting_in = False
        self._spare_frames = 0
        """What may still cut in on the running batch."""
        self._busy_since: float | None = None
        self._stopping = False
        self._ended = False
        self._busy_s = 0.0
        self._outstanding: set[Item] = set()

    def start(self) -> None:
        """Start the engine thread; called once, from the running event loop that results go to."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def cap_frames(self, most: int) -> None:
        """Keep batches below `most` frames; called before there is anything to recognise."""
        with self._changed:
            self._runner.cap_frames(most)

    async def call(self, work: Callable[[], _T]) -> _T:
        """Run `work` (warm-up, a change of model) on the engine thread, before the next batch."""
        answer: concurrent.futures.Future[_T] = concurrent.futures.Future()

        def on_thread() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(work())
                except BaseException as error:  # noqa: BLE001 - handed to the caller, who decides
                    answer.set_exception(error)

        with self._changed:
            if self._stopping or self._ended:
                raise self._refusal()
            self._calls.append((on_thread, answer))
            self._changed.notify()
        return await asyncio.wrap_future(answer)

    async def recognise(self, owner: int, job: int, utterance: Utterance, options: Options) -> Recognised:
        """Recognise one utterance of `job`, in the name of the user `owner`.

        Cancelling the waiting task drops the utterance while it is queued, and throws its result away when it
        is already running. Raises JobError: `internal` where the model failed on it, `shutting_down` after
        `stop`.
        """
        item = Item(owner, job, (utterance, options), asyncio.get_running_loop().create_future())
        with self._changed:
            if self._stopping or self._ended:
                raise self._refusal()
            self._waiting.put(item)
            self._changed.notify()
        self._outstanding.add(item)
        try:
            return await item.future
        finally:
            self._forget(item)

    def stop(self, timeout_s: float = STOP_S) -> bool:
        """Refuse everything, fail what is left with `shutting_down`, and end the thread.

        Blocks for up to `timeout_s`; gives False where a batch is still running then.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._fail_all("shutting_down", "The daemon is shutting down.")
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def snapshot(self) -> BatcherSnapshot:
        """Give the present numbers."""
        runner = self._runner
        with self._changed:
            queued = [item.work[0] for item in self._waiting]
            age = 0.0 if self._busy_since is None else time.monotonic() - self._busy_since
            return BatcherSnapshot(
                queued_utterances=len(queued),
                queued_audio_s=sum(utterance.end_s - utterance.start_s for utterance in queued),
                running_utterances=len(self._running),
                oldest_batch_age_s=age,
                batches=runner.batches,
                utterances=runner.done,
                failed_utterances=runner.failed,
                failed_in_a_row=runner.failed_in_a_row,
                mean_batch_size=runner.batched / runner.batches if runner.batches else 0.0,
                max_batch_frames=runner.frames_cap,
                engine_busy_s=self._busy_s + age,
                out_of_memory_splits=runner.splits,
                ended=self._ended and not self._stopping,
            )

    # On the event loop.

    def _refusal(self) -> JobError:
        if self._ended and not self._stopping:
            return JobError("internal", _LOST_THREAD)
        return JobError("shutting_down", "The daemon is shutting down.")

    def _forget(self, item: Item) -> None:
        """Take an item that nobody waits for out of the queue, if it is still there."""
        item.dropped = True
        with self._changed:
            self._waiting.drop(item)
        self._outstanding.discard(item)

    def _fail(self, items: Iterable[Item], code: str, message: str) -> None:
        for item in items:
            self._forget(item)
            if not item.future.done():
                item.future.set_exception(JobError(code, message))

    def _deliver(self, outcomes: list[Outcome], began_s: float, ended_s: float) -> None:
        texts_s = sum(outcome.richtext_s for _, outcome in outcomes if isinstance(outcome, Recognition))
        for item, outcome in outcomes:
            if item.future.done():
                continue
            if isinstance(outcome, JobError):
                item.future.set_exception(outcome)
                continue
            try:
                found = Recognised(outcome, began_s, ended_s - texts_s, ended_s)
            except MemoryError as error:
                # For this one: the others of the batch have waited too.
                item.future.set_exception(error)
            else:
                item.future.set_result(found)

    def _fail_all(self, code: str, message: str) -> None:
        with self._changed:
            calls = [answer for _, answer in self._calls]
            self._calls.clear()
        for answer in calls:
            if answer.set_running_or_notify_cancel():
                answer.set_exception(JobError(code, message))
        self._fail(list(self._outstanding), code, message)

    # On the engine thread.

    def cut_in(self) -> None:
        """Run one waiting utterance in the middle of a batch; for the model to call, between two layers.

        Nothing else can interrupt a batch, and beside a long file a short clip would take several times as
        long as alone: the rest of one batch, and its share of the next. So it goes first where it is its turn
        anyway, its user has nothing in the batch or the whole batch is one job's, and the batch takes no more
        than half as long again for all that cut in on it.

        No MemoryError leaves it: the model would take it for the batch's own, and the batch be divided.
        """
        if self._cutting_in:
            return
        item: Item | None = None
        self._cutting_in = True
        try:
            with self._changed:
                item = self._next_to_cut_in()
                if item is None:
                    return
                self._waiting.take(utterances=1, frames=item.frames, attention=item.frames**2)
                self._spare_frames -= item.frames
            began_s = time.monotonic()
            outcomes = self._runner.squeeze_in(item)
            if outcomes is not None:
                self._to_loop(self._deliver, outcomes, began_s, time.monotonic())
                return
        except MemoryError:
            # Of the few lines around the model's run, which has its own way with it.
            if item is None:
                return
        finally:
            self._cutting_in = False
        self._do_not_cut_in(item)

    def _next_to_cut_in(self) -> Item | None:
        item = self._waiting.first()
        return None if item is None or self._stopping or not self._may_cut_in(item) else item

    def _do_not_cut_in(self, item: Item) -> None:
        """Let it wait for the end of the batch after all, and so whatever else would fit even less."""
        self._spare_frames = 0
        try:
            with self._changed:
                if item not in self._waiting:
                    self._waiting.put_back(item)
        except MemoryError:
            self._to_loop(self._fail, (item,), "internal", _NO_MEMORY)

    def _may_cut_in(self, item: Item) -> bool:
        jobs = {running.job for running in self._running}
        if item.job in jobs or item.frames > self._spare_frames:
            return False
        return len(jobs) == 1 or item.owner not in {running.owner for running in self._running}

    def _to_loop(self, callback: Callable[..., object], *args: object) -> None:
        """Have the loop call back; a callback may come twice, where memory was lacking in between."""
        if self._loop is None:
            return
        # A loop that is closed has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            while True:
                try:
                    self._loop.call_soon_threadsafe(callback, *args)
                except MemoryError:
                    # Somebody waits for this word, and `stop` answers them all itself.
                    if self._stopping:
                        return
                    time.sleep(RETRY_S)
                else:
                    return

    def _main(self) -> None:
        try:
            while self._one_turn():
                pass
        finally:
            with self._changed:
                self._ended = True
            self._to_loop(self._fail_all, "internal", _LOST_THREAD)

    def _one_turn(self) -> bool:
        """Wait for work and do it; False when it is time to end."""
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._calls or self._waiting)
        except MemoryError:
            # Waiting takes a lock of its own. Nothing has been taken yet, so nothing is lost.
            time.sleep(RETRY_S)
            return True
        with self._changed:
            if self._stopping:
                return False
            call = self._calls.popleft()[0] if self._calls else None
            if call is None:
                self._running = self._waiting.take(
                    utterances=self._limits.max_batch_utterances,
                    frames=self._runner.frames_cap,
                    attention=self._limits.max_batch_attention,
                )
                self._spare_frames = sum(item.frames for item in self._running) // 2
            self._busy_since = began_s = time.monotonic()
        outcomes: list[Outcome] = []
        if call is None:
            try:
                outcomes = self._runner.work_off(self._running)
            except MemoryError:
                # Not the model's, which divides a batch, but of the few lines around it: the thread stays.
                self._to_loop(self._fail, self._running, "internal", _NO_MEMORY)
        else:
            call()
        ended_s = time.monotonic()
        with self._changed:
            self._busy_s += ended_s - began_s
            self._busy_since = None
            self._running = []
        if outcomes:
            self._to_loop(self._deliver, outcomes, began_s, ended_s)
        return True
