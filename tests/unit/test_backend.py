"""Front end and engine as one: what the engine says of itself decides the size of its batches."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from harness.fakes import FakeEngine, FakeFrontend

from sensevoiced.backend import Backend
from sensevoiced.config import BatchLimits, Config
from sensevoiced.jobs import EngineInfo
from sensevoiced.parts import Parts


class Engine(FakeEngine):
    """The fake engine, on a device of the test's choice."""

    def __init__(self, control, device, threads):
        super().__init__(control)
        self.info = EngineInfo(
            name="fake",
            model="fake",
            device=device,
            precision="int8",
            parameters=1,
            feature_dim=1,
            backend="by hand",
            threads=threads,
        )


@pytest.mark.parametrize(
    ("device", "engine_threads", "asked_threads", "limits", "frames", "threads"),
    [
        ("cpu", 2, 0, BatchLimits(), 192, 2),
        ("cpu", 2, 5, BatchLimits(), 192, 2),
        ("cpu", 0, 5, BatchLimits(cpu_frames_per_thread=100), 500, 5),
        ("cpu", 64, 0, BatchLimits(), 4_096, 64),
        ("cuda:0", 0, 3, BatchLimits(max_batch_frames=777), 777, 3),
    ],
)
def test_a_batch_is_as_large_as_device_and_threads_make_useful(
    tmp_path, *, device, engine_threads, asked_threads, limits, frames, threads
):
    """On a CPU so many frames a thread, never above what memory allows; on CUDA what memory allows."""
    parts = Parts(
        model="fake",
        vad="fake",
        load_engine=lambda: Engine(tmp_path, device, engine_threads),
        make_frontend=lambda: FakeFrontend(tmp_path),
    )
    config = Config(socket=Path("/x"), models_dir=Path("/x"), threads=asked_threads, batch=limits)

    async def scene():
        backend = Backend(config, parts, lambda _: None)
        try:
            await backend.load()
            return await backend.status()
        finally:
            assert await backend.close(asyncio.Event())

    status = asyncio.run(scene())
    assert (status["batches"]["max_frames"], status["batches"]["max_utterances"]) == (frames, 64)
    assert (status["precision"], status["backend"], status["threads"]) == ("int8", "by hand", threads)
    assert status["frontend"] == {
        "waiting": 0,
        "max_per_user": 12,
        "crashed": 0,
        "timeouts": 0,
        "jail": ["walls"],
    }
