"""Watches the engine: signs of life for systemd while it gets on, none while it is stuck.

It goes on whatever happens, and so carries what must. Knows neither clients nor how batches come about.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sensevoiced.config import Config
    from sensevoiced.engine.batcher import BatcherSnapshot
    from sensevoiced.notify import Notifier

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
"""How often the daemon looks at itself."""
BEATS_A_DEADLINE = 3
"""... or so often within the watchdog's deadline: one sign may be late, and one may be lost."""
EXTEND_BY_S = 20.0
"""Asked of systemd with every heartbeat while loading: imports hold the interpreter for seconds at a time."""


class Heartbeat:
    """Looks at the engine again and again; its own silence says that the event loop is blocked."""

    def __init__(self, notifier: Notifier, config: Config, *, model: str, watchdog_s: float | None) -> None:
        """`watchdog_s` is systemd's deadline for a sign of life, None where it waits for none."""
        self._notifier = notifier
        self._limits = config.batch
        self._load_timeout_s = config.load_timeout_s
        self._model = model
        self._every_s = HEARTBEAT_S if watchdog_s is None else min(HEARTBEAT_S, watchdog_s / BEATS_A_DEADLINE)
        self._late = self._stuck = False

    async def run(
        self,
        loading: Callable[[], bool],
        batches: Callable[[], BatcherSnapshot],
        give_up: Callable[[str], None],
        go_on: Callable[[], None],
    ) -> None:
        """Go on until cancelled.

        `give_up` is called, with the reason, where the engine fails at everything it is given or its thread
        has ended; `go_on` with every beat, for what may have stopped or hangs.
        """
        began_s = time.monotonic()
        while True:
            # A lack of memory is no reason to fall silent for good: systemd would end everybody's work.
            with contextlib.suppress(MemoryError):
                if loading():
                    self._while_loading(time.monotonic() - began_s)
                else:
                    self._look_at(batches(), give_up)
            with contextlib.suppress(MemoryError):
                go_on()
            try:
                await asyncio.sleep(self._every_s)
            except MemoryError:
                # Too soon, then, but never without letting the others run.
                with contextlib.suppress(MemoryError):
                    await asyncio.sleep(0)

    def _while_loading(self, since_s: float) -> None:
        # No WATCHDOG=1 here: the first one starts systemd's clock, and imports can be silent for long.
        if since_s < self._load_timeout_s:
            self._notifier.loading(f"Loading {self._model}", EXTEND_BY_S)
        elif not self._late:
            self._late = True
            log.error("loading takes longer than load_timeout_s: systemd is asked for no more time")

    def _look_at(self, batches: BatcherSnapshot, give_up: Callable[[str], None]) -> None:
        if batches.ended:
            give_up("the engine thread has ended, and nothing can be recognised any more")
            return
        age_s = batches.oldest_batch_age_s
        if age_s <= self._limits.stuck_after_s:
            self._notifier.watchdog()
            if self._stuck:
                self._stuck = False
                self._notifier.status("The batch that was stuck has ended")
        elif not self._stuck:
            self._stuck = True
            log.error("a batch has been running for %.0f s: no more signs of life until it ends", age_s)
            self._notifier.status(f"Stuck: a batch has been running for {age_s:.0f} s")
        if batches.failed_in_a_row >= self._limits.max_failures_in_a_row:
            give_up(f"{batches.failed_in_a_row} utterances in a row failed")
