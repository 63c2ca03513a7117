"""A pool whose children do not end when they are killed: a file system that does not answer may keep them."""

from __future__ import annotations

import asyncio
import io
import os
import signal

import pytest
import soundfile
from harness.energy_vad import speech, write_models

from sensevoiced.config import FrontendConfig
from sensevoiced.frontend import child as child_module
from sensevoiced.frontend.pool import FrontendPool
from sensevoiced.jobs import Options

ANSWER_S = 30.0


def recording():
    """A descriptor of a second of speech."""
    buffer = io.BytesIO()
    soundfile.write(buffer, speech(1.0), 16_000, format="WAV")
    fd = os.memfd_create("recording")
    os.write(fd, buffer.getvalue())
    return fd


@pytest.mark.parametrize("called_off", [True, False])
def test_a_child_that_does_not_end_is_not_counted_on(tmp_path, monkeypatch, called_off):
    """Whether its job was called off or timed out: the next one is given another child."""
    real, stuck = child_module.Child.kill, []

    def kill(child):
        child.killed = True
        stuck.append(child)

    monkeypatch.setattr("sensevoiced.frontend.pool.STOP_GRACE_S", 0.05)
    monkeypatch.setattr(child_module.Child, "kill", kill)

    async def scenario():
        config = FrontendConfig(children=1, max_children=2, grow_after_s=0.05, decode_timeout_s=1.0)
        pool = FrontendPool(config, *write_models(tmp_path))
        await pool.start()
        reader, writer = os.pipe()
        job = pool.utterances(reader, Options(), label="stuck", owner=1)
        task = asyncio.create_task(anext(job))
        async with asyncio.timeout(ANSWER_S):
            while job.begun_s is None:  # noqa: ASYNC110 - no event of ours tells of other processes
                await asyncio.sleep(0.005)
            (child,) = pool.snapshot().children
            os.kill(child.pid, signal.SIGSTOP)
            if called_off:
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            other = pool.utterances(recording(), Options(), label="next", owner=2)
            assert len([utterance async for utterance in other]) == 1
        assert [child.pid for child in stuck] == [child.pid]
        monkeypatch.setattr(child_module.Child, "kill", real)
        stuck[0].kill()
        os.close(writer)
        await pool.close()

    asyncio.run(scenario())
