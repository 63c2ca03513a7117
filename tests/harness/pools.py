"""What tests of the front end's processes need: a pool that leaves nothing behind, recordings, patience."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import os
import subprocess
from pathlib import Path

import pytest
import soundfile
from harness import taken_over
from harness.daemon import wait_until

from sensevoiced.config import FrontendConfig
from sensevoiced.descriptors import closing
from sensevoiced.frontend import child
from sensevoiced.frontend.pool import FrontendPool
from sensevoiced.jobs import JobError, Options


def memfd(samples, rate=16000, form="WAV"):
    """Give a descriptor of an in-memory recording."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form)
    return holding(buffer.getvalue())


def holding(data):
    """Give a descriptor of an in-memory file that holds these bytes."""
    fd = os.memfd_create("recording")
    os.write(fd, data)
    return fd


@contextlib.asynccontextmanager
async def running(models, **limits):
    """Run a pool of its own; afterwards no process, descriptor or task of it may be left."""
    before = descriptors()
    pool = FrontendPool(FrontendConfig(**{"children": 1, "max_children": 1, **limits}), *models)
    await pool.start()
    pids = [child.pid for child in pool.snapshot().children]
    try:
        yield pool
    finally:
        pids += [child.pid for child in pool.snapshot().children]
        await pool.close()
    # Fewer, where what an earlier test left has been collected meanwhile.
    await until(lambda: descriptors() <= before)
    assert not [pid for pid in pids if exists(pid)]


_shared = {}


@contextlib.asynccontextmanager
async def sharing(models):
    """Use the pool of two children that starts once a module; afterwards it has to be as it was."""
    if "pool" not in _shared:
        pool = FrontendPool(FrontendConfig(children=2, max_children=2), *models)
        await pool.start()
        _shared["pool"] = pool
    pool = _shared["pool"]
    before = descriptors()
    yield pool
    await until(lambda: idle(pool) and descriptors() <= before)
    assert pool.snapshot().crashed == 0


async def end_shared():
    """End the pool that is shared, where there is one."""
    if (pool := _shared.pop("pool", None)) is not None:
        await pool.close()


def descriptors():
    """Count this process's open descriptors."""
    return len(list(Path("/proc/self/fd").iterdir()))


def settled_descriptors():
    """Count them once those of earlier tests are gone: the collector finds them, threads close them."""
    gc.collect()
    wait_until(lambda: not closing, "every descriptor closed")
    return descriptors()


def exists(pid):
    """Say whether there is such a process."""
    return Path(f"/proc/{pid}").exists()


async def drain(job):
    """Read a job to its end."""
    return [utterance async for utterance in job]


async def until(condition, limit_s=60.0):
    """Wait for a condition that other processes bring about."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - no event of ours tells of other processes
            await asyncio.sleep(0.005)


def idle(pool):
    """Say whether no child has a job."""
    return not any(child.busy for child in pool.snapshot().children)


def take_over(patch, *lacking):
    """Let children started from now on run programs (taken_over.py), on a kernel that may lack parts."""
    popen = subprocess.Popen

    def start(command, **options):
        return popen([command[0], taken_over.__file__, command[-1], *lacking], **options)

    patch.setattr(child.subprocess, "Popen", start)


async def run_program(pool, program, code="bad_input"):
    """Run a program in a child that was taken over; gives what it answers, or what its client is told."""
    fd = holding(taken_over.MARK + program.encode())
    with pytest.raises(JobError) as caught:
        await drain(pool.utterances(fd, Options(), label="program"))
    assert caught.value.code == code
    return caught.value.message
