"""On how many cores a batch is computed: all the engine may use, fewer while others need them; imports torch.

OpenMP's threads wait for one another by spinning, which on free cores is by far the fastest. But a thread
that has to share its core with another program holds up all the others, and two spinning threads on two busy
cores take several times as long as one. So fewer are used for a while, when batches did not get their time.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from typing import TYPE_CHECKING

import torch

from sensevoiced import slices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

_NICE = 5
"""A third of a core where somebody else wants it: not nothing, because then a crowd could keep it out."""
_SHORT_S = 0.05
"""Batches shorter than this do not say who else is there: the kernel's slices are milliseconds."""
_LOST_CORES = 0.25
"""Computing time that a batch went without, in cores. On an idle machine it is below 0.1; another busy
program takes half of a core."""
_SLOWED = 2.5
"""... and it took so many times as long, for its frames, as the best did: one thread would have been no
slower. Short batches take up to half as long again, and a virtual machine's own speed changes by a fifth."""
_FADES = 0.99
"""What the best is multiplied with after each batch, so that it is one of about the last hundred."""
_IN_A_ROW = 2
"""One such batch is a front-end child that starts, or a disk; two in a row are company."""
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 16.0
"""For so long fewer threads are used; then all are tried again, and after each failure half as often."""


def give_way() -> None:
    """Let this thread, and OpenMP's that it starts, stand behind the daemon's other threads and its children.

    The front end's part of the work is a twentieth of the engine's, and all of it waits for that part. And
    what only computes is done sooner in long slices than in short ones.
    """
    slices.ask_for(slices.USUAL_NS)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


class Cores:
    """Sets torch's threads before each batch. All methods belong to the engine thread."""

    def __init__(
        self,
        most: int,
        *,
        learns: bool = True,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
        set_threads: Callable[[int], None] = torch.set_num_threads,
    ) -> None:
        """Begin with all of `most`; 0 means one per core this process may use.

        `learns` is for batches that are computed on these cores, and not on a GPU.
        """
        self.most = most or len(os.sched_getaffinity(0))
        self.used = self.most
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._set_threads = set_threads
        self._crowded = 0
        self._best = 0.0
        self._pause_s = _PAUSE_S
        self._until_s = 0.0
        # Threads that are told to sleep use less than all the time on any machine: nothing could be learned.
        self._learns = learns and os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive"
        set_threads(self.most)

    @contextlib.contextmanager
    def batch(self, frames: int) -> Iterator[None]:
        """Compute a batch of so many frames within: on the threads that fit, learning whether they did."""
        if self.used < self.most and self._clock() >= self._until_s:
            self._use(self.most)
        began_s, began_cpu_s = self._clock(), self._cpu_clock()
        try:
            yield
        finally:
            took_s, cpu_s = self._clock() - began_s, self._cpu_clock() - began_cpu_s
            if self._learns and self.used == self.most > 1 and took_s > 0:
                rate = frames / took_s
                # Of short ones too: a small model's batches are long only when they are crowded.
                self._best = max(_FADES * self._best, rate)
                if took_s > _SHORT_S:
                    self._judge(rate, self.most - cpu_s / took_s)

    def _judge(self, rate: float, lost: float) -> None:
        if lost <= _LOST_CORES or rate * _SLOWED > self._best:
            self._crowded = 0
            self._pause_s = _PAUSE_S
            return
        self._crowded += 1
        # After a pause one is enough: it was crowded before.
        if self._crowded >= _IN_A_ROW or self._pause_s > _PAUSE_S:
            self._until_s = self._clock() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._crowded = 0
            self._use(max(1, self.most - math.ceil(lost)))

    def _use(self, threads: int) -> None:
        log.debug("the engine computes on %d of %d threads", threads, self.most)
        self.used = threads
        self._set_threads(threads)
