"""The daemon's event loop: asyncio's, but a lack of memory does not end it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from typing import Any

from sensevoiced.shortage import lacks_memory

log = logging.getLogger(__name__)

WARN_EVERY_S = 1.0
"""While memory lacks, everything fails: a line each would need what there is least of."""


class Loop(asyncio.SelectorEventLoop):
    """A selector loop that goes on after a MemoryError, wherever that was raised.

    What a callback or a task was about is lost with it, and whoever began it sees to that. Between callbacks
    nothing is lost but a turn: what is ready is still in the queue, and epoll tells of the rest again.
    """

    def __init__(self) -> None:
        """Take note of errors that nobody awaits."""
        super().__init__()
        self._warned_s = -math.inf
        self._told_to_stop = False
        self.set_exception_handler(_tell)

    def run_forever(self) -> None:
        """Run until stopped."""
        self._told_to_stop = False
        while not self._told_to_stop:
            try:
                super().run_forever()
            except MemoryError:
                self.warn("between two of the event loop's turns")
            else:
                return

    def stop(self) -> None:
        """Stop after this turn, even one that ends for want of memory, which asyncio forgets it in."""
        self._told_to_stop = True
        super().stop()

    def warn(self, where: str) -> None:
        """Log a lack of memory, unless that was done just now."""
        now_s = time.monotonic()
        if now_s - self._warned_s >= WARN_EVERY_S:
            self._warned_s = now_s
            # The line itself needs memory; without it the loop goes on all the same.
            with contextlib.suppress(MemoryError):
                log.warning("too little memory %s", where)


def _tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(loop, Loop) and error is not None and lacks_memory(error):
        # Without its traceback, which would be the longest lines of the log at the worst time.
        loop.warn(f"({context['message']})")
    else:
        loop.default_exception_handler(context)
