"""Runs a batch to its end whatever the model does: divides, isolates, learns; never imports a model."""

from __future__ import annotations

import logging
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING

from sensevoiced.engine.api import DeviceLost, OutOfMemory, Work
from sensevoiced.jobs import JobError, Recognition

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from sensevoiced.config import BatchLimits
    from sensevoiced.jobs import Recognised

log = logging.getLogger(__name__)

RECOVER_BATCHES = 256
"""Successful batches after which a lowered cap doubles: another process may have had the memory."""


class Item:
    """One utterance on its way to its waiter.

    `dropped` says that nobody waits any more; it is set on the event loop and read on the engine thread.
    """

    __slots__ = ("dropped", "frames", "future", "job", "owner", "work")

    def __init__(self, owner: int, job: int, work: Work, future: asyncio.Future[Recognised]) -> None:
        """Begin as wanted."""
        self.owner = owner
        self.job = job
        self.work = work
        self.frames = work[0].frames
        self.future = future
        self.dropped = False


Outcome = tuple[Item, Recognition | JobError]


class _TooBig(JobError):
    """What an utterance ends with that does not fit even alone; for a larger part it means: divide."""


class _Lost(JobError):
    """What all utterances end with from now on: the device is gone, and nothing can be tried again."""


class Runner:
    """Calls the model. All methods belong to the engine thread; the counters may be read from any."""

    def __init__(self, run: Callable[[Sequence[Work]], list[Recognition]], limits: BatchLimits) -> None:
        """Begin with the configured cap."""
        self._run = run
        self._most_frames = limits.max_batch_frames
        self._fatal = limits.max_failures_in_a_row
        self._clean_batches = 0
        self.frames_cap = limits.max_batch_frames
        """LFR frames a batch may hold now: what suits the device, or less after a lack of memory."""
        self.batches = 0
        self.batched = 0
        """Utterances in `batches`, the runs that succeeded."""
        self.done = 0
        self.failed = 0
        self.failed_in_a_row = 0
        """At least `max_failures_in_a_row` once the device is lost."""
        self.splits = 0

    def cap_frames(self, most: int) -> None:
        """Hold no more than `most` frames in a batch, whatever memory would allow."""
        self._most_frames = most
        self.frames_cap = min(self.frames_cap, most)

    def work_off(self, batch: list[Item]) -> list[Outcome]:
        """Run a batch, and parts of it where it does not fit or fails, until each utterance has its outcome.

        Utterances that are dropped meanwhile are left out of what is still to run.
        """
        outcomes: list[Outcome] = []
        parts = deque([batch])
        while parts:
            part = [item for item in parts.popleft() if not item.dropped]
            if not part:
                continue
            results = self._attempt(part)
            if not isinstance(results, JobError):
                outcomes.extend(zip(part, results, strict=True))
            elif isinstance(results, _Lost):
                left = chain(part, *parts)
                outcomes.extend((item, _Lost(results.code, results.message)) for item in left)
                break
            elif len(part) == 1:
                outcomes.append((part[0], results))
            elif isinstance(results, _TooBig):
                half = len(part) // 2
                parts.extendleft((part[half:], part[:half]))
            else:
                # Alone, so that only the utterance at fault fails.
                parts.extendleft([item] for item in reversed(part))
        self._count(outcomes)
        return outcomes

    def squeeze_in(self, item: Item) -> list[Outcome] | None:
        """Run one utterance in the middle of a batch; None where that leaves too little memory for it.

        Which says nothing of what either takes alone: nothing is learned from it, and nothing has failed.
        """
        if item.dropped:
            return []
        results = self._attempt([item], learns=False)
        if isinstance(results, _TooBig):
            return None
        outcomes: list[Outcome] = [(item, results if isinstance(results, JobError) else results[0])]
        self._count(outcomes)
        return outcomes

    def _attempt(self, part: list[Item], *, learns: bool = True) -> list[Recognition] | JobError:
        """Run once; an error comes back as a value, so that no traceback keeps a batch's memory alive."""
        try:
            results = self._run([item.work for item in part])
        except (OutOfMemory, MemoryError) as error:
            if learns:
                self._learn(part, str(error))
            return _TooBig("internal", "The device has too little memory for this utterance.")
        except JobError as error:
            return JobError(error.code, error.message)
        except DeviceLost as error:
            log.error("the device is lost: %s", error)  # noqa: TRY400 - its own words say it all
            return _Lost("internal", "The device has failed, and the daemon is ending.")
        except Exception:
            log.exception("the model failed on a batch of %d utterances", len(part))
            return JobError("internal", "The model failed on this utterance; the daemon's log says why.")
        if len(results) != len(part):
            log.error("the model gave %d results for %d utterances", len(results), len(part))
            return JobError("internal", "The model failed on this utterance; the daemon's log says why.")
        self.batches += 1
        self.batched += len(part)
        self._clean_batches += 1
        if self._clean_batches >= RECOVER_BATCHES:
            self._clean_batches = 0
            self.frames_cap = min(self._most_frames, 2 * self.frames_cap)
        return results

    def _learn(self, part: list[Item], reason: str) -> None:
        """Keep later batches below the size that did not fit."""
        frames = sum(item.frames for item in part)
        self.splits += len(part) > 1
        self._clean_batches = 0
        self.frames_cap = max(1, min(self.frames_cap, frames // 2))
        log.warning(
            "out of memory with %d utterances of %d frames (%.200s); batches now hold at most %d frames",
            len(part),
            frames,
            " ".join(reason.split()),
            self.frames_cap,
        )

    def _count(self, outcomes: list[Outcome]) -> None:
        failed = sum(isinstance(outcome, JobError) for _, outcome in outcomes)
        self.failed += failed
        self.done += len(outcomes) - failed
        self.failed_in_a_row = self.failed_in_a_row + failed if failed == len(outcomes) else 0
        if any(isinstance(outcome, _Lost) for _, outcome in outcomes):
            self.failed_in_a_row = max(self.failed_in_a_row, self._fatal)
