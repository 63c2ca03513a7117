"""Front end and engine as one: loads them, runs jobs through both, reports on them.

Knows neither clients nor systemd.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
from typing import TYPE_CHECKING, Any

from sensevoiced import logs
from sensevoiced.descriptors import close_later
from sensevoiced.engine.api import Layered
from sensevoiced.engine.batcher import Batcher
from sensevoiced.jobs import JobError
from sensevoiced.metrics import resident_bytes
from sensevoiced.pipeline import Transcription

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from sensevoiced.config import Config
    from sensevoiced.engine.api import Engine, Work
    from sensevoiced.engine.batcher import BatcherSnapshot
    from sensevoiced.jobs import EngineInfo, Options, Recognised, Recognition, Utterance
    from sensevoiced.parts import Parts

log = logging.getLogger(__name__)

DEVICE_MEMORY_S = 0.2
"""The engine thread answers between batches; a status does not wait for a long one and shows the last known
value."""
STOP_POLL_S = 0.02
"""How often it is looked whether the engine's thread has ended; it has nothing left to do, and no loop to
tell."""


class Backend:
    """The rooms behind serving, from load to close."""

    def __init__(self, config: Config, parts: Parts, on_progress: Callable[[float], None]) -> None:
        """Make them, and start the engine's thread.

        `on_progress` hears of all audio that jobs put behind them.
        """
        self._config = config
        self._parts = parts
        self._on_progress = on_progress
        self._numbers = itertools.count(1)
        self._engine: Engine | None = None
        self._loading_s = 0.0
        self._device_memory: tuple[int, int] | None = None
        self._frontend = parts.make_frontend()
        self._batcher = Batcher(self._run, limits=config.batch)
        self._batcher.start()

    @property
    def info(self) -> EngineInfo | None:
        """What is in force, once it is loaded."""
        return None if self._engine is None else self._engine.info

    def batches(self) -> BatcherSnapshot:
        """What the batcher holds and has done."""
        return self._batcher.snapshot()

    def busy_s(self) -> float:
        """Seconds that the engine has worked since it was loaded."""
        return max(0.0, self._batcher.snapshot().engine_busy_s - self._loading_s) if self._engine else 0.0

    async def load(self) -> None:
        """Load and warm up, engine and front end side by side. Raises whatever they raise."""
        tasks = [asyncio.create_task(work) for work in (self._frontend.start(), self._load_engine())]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def transcribe(self, source_fd: int, options: Options, *, label: str, owner: int) -> Transcription:
        """Start on a file or a pipe for the user `owner`; owns the descriptor from the call on."""
        try:
            number = next(self._numbers)
            log.debug("job %d: %s", number, logs.shown(label))
            run = self._frontend.utterances(source_fd, options, label=label, owner=owner)
        except MemoryError:
            close_later(source_fd, owner)
            raise

        def recognise(utterance: Utterance) -> Coroutine[Any, Any, Recognised]:
            return self._batcher.recognise(owner, number, utterance, options)

        return Transcription(
            run,
            recognise,
            max_outstanding=self._config.serving.max_outstanding_utterances,
            on_progress=self._on_progress,
            start_s=options.start_s,
        )

    async def status(self) -> dict[str, Any]:
        """The part of a status reply that is about front end and engine."""
        info, batches = self.info, self._batcher.snapshot()
        frontend = self._frontend.snapshot()
        children = frontend.children
        allocated, total = await self._read_device_memory() or (None, None)
        return {
            "model": self._parts.model,
            "models": list(self._parts.models),
            "vad": self._parts.vad,
            "engine": info.name if info else self._config.engine,
            "device": info.device if info else self._config.device,
            "precision": info.precision if info else self._config.precision,
            "backend": info.backend if info else "",
            "parameters": info.parameters if info else None,
            "threads": self._threads(),
            "memory": {
                "daemon_rss_bytes": resident_bytes(),
                "children_rss_bytes": sum(child.rss_bytes for child in children),
                "children": [
                    {"pid": child.pid, "rss_bytes": child.rss_bytes, "busy": child.busy} for child in children
                ],
                "gpu_allocated_bytes": allocated,
                "gpu_total_bytes": total,
            },
            "frontend": {
                "waiting": frontend.waiting,
                "max_per_user": frontend.max_per_user,
                "crashed": frontend.crashed,
                "timeouts": frontend.timeouts,
                "jail": list(frontend.jail),
            },
            "batches": {
                "count": batches.batches,
                "utterances": batches.utterances,
                "mean_size": round(batches.mean_batch_size, 3),
                "out_of_memory_splits": batches.out_of_memory_splits,
                "max_frames": batches.max_batch_frames,
                "max_utterances": self._config.batch.max_batch_utterances,
            },
            "engine_busy_s": round(self.busy_s(), 3),
        }

    async def close(self, enough: asyncio.Event) -> bool:
        """Give everything back, waiting for it until `enough` is set.

        False where a batch is still running then, which nothing can interrupt.
        """
        await _or_enough(self._frontend.close(), enough)
        if self._engine is not None:
            with contextlib.suppress(JobError):
                await _or_enough(self._batcher.call(self._engine.close), enough)
        # Not one long `stop`: it blocks the loop, and with it the signal not to wait any longer.
        while not (ended := self._batcher.stop(0.0)) and not enough.is_set():  # noqa: ASYNC110 - see STOP_POLL_S
            await asyncio.sleep(STOP_POLL_S)
        return ended

    async def _load_engine(self) -> None:
        # Torch's import makes a hundred thousand objects that stay: looking through them while they come
        # takes a tenth of a second, and later a part of one from a request now and then.
        gc.disable()
        try:
            engine = await self._batcher.call(self._parts.load_engine)
            await self._batcher.call(engine.warm_up)
            gc.freeze()
        finally:
            gc.enable()
        self._loading_s = self._batcher.snapshot().engine_busy_s
        self._engine = engine
        if engine.info.device == "cpu":
            limits = self._config.batch
            suits = limits.cpu_frames_per_thread * self._threads()
            self._batcher.cap_frames(min(suits, limits.max_batch_frames))
            # On a GPU the layers are queued there long before they run, and a batch takes milliseconds.
            if isinstance(engine, Layered):
                engine.between_layers(self._batcher.cut_in)

    def _threads(self) -> int:
        """Count what the engine computes on; until it says so, what it will be allowed."""
        said = self._engine.info.threads if self._engine else 0
        return said or self._config.threads or len(os.sched_getaffinity(0))

    def _run(self, batch: Sequence[Work]) -> list[Recognition]:
        if self._engine is None:
            raise JobError("internal", "The model is not loaded.")
        return self._engine.run(batch)

    async def _read_device_memory(self) -> tuple[int, int] | None:
        if self._engine is not None and self._engine.info.device != "cpu":
            with contextlib.suppress(TimeoutError, JobError):
                async with asyncio.timeout(DEVICE_MEMORY_S):
                    self._device_memory = await self._batcher.call(self._engine.device_memory_bytes)
        return self._device_memory


async def _or_enough(work: Coroutine[Any, Any, None], enough: asyncio.Event) -> None:
    """Do `work`, but not beyond `enough`; what it raises is raised."""
    task, waited = asyncio.create_task(work), asyncio.create_task(enough.wait())
    try:
        await asyncio.wait((task, waited), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
    finally:
        task.cancel()
        waited.cancel()
