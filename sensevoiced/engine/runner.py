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
SMALL_FRAMES = 33
"""Two seconds: a device without memory for so little serves nobody, whatever it did before."""


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
        self._fits_frames = SMALL_FRAMES
        """Of the longest utterance that is known to fit, or has to."""
        self.frames_cap = limits.max_batch_frames
        """LFR frames a batch may hold now: what suits the device, or less after a lack of memory."""
        self.batches = 0
        self.batched = 0
        """Utterances in `batches`, the runs that succeeded."""
        self.done = 0
        self.failed = 0
        self.failed_in_a_row = 0
        """Failures since the last success that speak against the device (`_blames_the_device`); at least
        `max_failures_in_a_row` once it is lost."""
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
            lacking = str(error)
        except JobError as error:
            return JobError(error.code, error.message)
        except DeviceLost as error:
            log.error("the device is lost: %s", error)  # noqa: TRY400 - its own words say it all
            return _Lost("internal", "The device has failed, and the daemon is ending.")
        except Exception:
            log.exception("the model failed on a batch of %d utterances", len(part))
            return JobError("internal", "The model failed on this utterance; the daemon's log says why.")
        else:
            return self._received(part, results)
        # Out here, where what the batch held is free again: a line in the log needs memory too.
        if learns:
            self._learn(part, lacking)
        return _TooBig("internal", too_big(part[0].work))

    def _received(self, part: list[Item], results: list[Recognition]) -> list[Recognition] | JobError:
        """Count a run that came to its end."""
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
        failures = [(item, error) for item, error in outcomes if isinstance(error, JobError)]
        self.failed += len(failures)
        self.done += len(outcomes) - len(failures)
        if len(failures) < len(outcomes):
            self.failed_in_a_row = 0
            fitting = (item.frames for item, outcome in outcomes if isinstance(outcome, Recognition))
            self._fits_frames = max(self._fits_frames, *fitting)
        else:
            self.failed_in_a_row += sum(self._blames_the_device(item, error) for item, error in failures)
        if any(isinstance(error, _Lost) for _, error in failures):
            self.failed_in_a_row = max(self.failed_in_a_row, self._fatal)

    def _blames_the_device(self, item: Item, error: JobError) -> bool:
        """Say whether a failure tells that something is broken, and not that the machine is small.

        A lack of memory does so only where as much did fit before, or where it is so little that it has to.
        Else whoever sends what is too long for this machine would end the daemon for all; and it would come
        back to the same requests on the same machine.
        """
        return not isinstance(error, _TooBig) or item.frames <= self._fits_frames


def too_big(work: Work) -> str:
    """Say in a sentence that one utterance is more than the device has memory for, and what helps."""
    utterance, options = work
    length_s = utterance.end_s - utterance.start_s
    remedy = "set a smaller `max_utterance_s`" if options.vad else "leave VAD on, which divides it"
    return f"The device has too little memory for an utterance of {length_s:.1f} s: {remedy}."
