"""Jobs of the front end that end before their time leave nothing: no child, no descriptor, no place."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from harness.energy_vad import speech
from harness.pools import drain, idle, memfd, running, sharing, until

from sensevoiced.jobs import JobError, Options


@pytest.mark.parametrize("how", ["close", "cancel the task", "cancel from outside", "drop"])
def test_a_job_called_off_frees_its_child(models, how, run):
    """Ended in any way, a job leaves a warm child that takes the next one; nothing is killed for it."""

    async def scenario():
        async with running(models, children=1, max_children=1) as pool:
            (child,) = pool.snapshot().children
            reader, writer = os.pipe()
            job = pool.utterances(reader, Options(), label="called off")
            task = asyncio.create_task(drain(job))
            await until(lambda: not idle(pool))
            if how == "cancel the task":
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            elif how == "drop":
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                del job
            else:
                await (job.aclose() if how == "close" else asyncio.to_thread(lambda: None))
                job.cancel()
                with pytest.raises(JobError) as caught:
                    await task
                assert caught.value.code == "cancelled"
            await until(lambda: idle(pool))
            os.close(writer)
            assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label="next"))) == 1
            assert [again.pid for again in pool.snapshot().children] == [child.pid]
            assert pool.snapshot().stopped == 1

    run(scenario())


def test_a_working_child_drops_its_job_between_blocks(models, run):
    """A job called off in the middle of twenty minutes of audio ends without being killed."""
    long = np.tile(speech(10.0, 3.0), 92)

    async def scenario():
        async with running(models, children=1, max_children=1) as pool:
            job = pool.utterances(memfd(long), Options(), label="long")
            await anext(job)
            begun = time.monotonic()
            await job.aclose()
            await until(lambda: idle(pool))
            print(f"free after {(time.monotonic() - begun) * 1000:.0f} ms")
            assert pool.snapshot().stopped == 1
            assert len(pool.snapshot().children) == 1

    run(scenario())


def test_a_waiting_job_can_be_called_off(models, run):
    """A job that still waits for a child leaves the queue, and its descriptor is closed."""

    async def scenario():
        async with running(models, children=1, max_children=1) as pool:
            reader, writer = os.pipe()
            holder = asyncio.create_task(drain(pool.utterances(reader, Options(), label="holder")))
            await until(lambda: not idle(pool))
            fd = memfd(speech(1.0))
            waiting = pool.utterances(fd, Options(), label="waiting")
            task = asyncio.create_task(drain(waiting))
            await until(lambda: pool.snapshot().waiting == 1)
            waiting.cancel()
            with pytest.raises(JobError) as caught:
                await task
            assert caught.value.code == "cancelled"
            assert pool.snapshot().waiting == 0
            await until(lambda: not Path(f"/proc/self/fd/{fd}").exists())
            os.close(writer)
            with pytest.raises(JobError):
                await holder

    run(scenario())


def test_a_run_that_is_never_begun_closes_its_descriptor(models, run):
    """Dropping a run without iterating it leaks nothing (counted by the pool's own check)."""

    async def scenario():
        async with sharing(models) as pool:
            pool.utterances(memfd(speech(1.0)), Options(), label="never")
            closed = pool.utterances(memfd(speech(1.0)), Options(), label="closed")
            await closed.aclose()
            assert await drain(closed) == []

    run(scenario())


@pytest.mark.parametrize("how", ["task", "run"])
def test_a_job_called_off_at_any_moment_gives_its_child_back(models, run, how):
    """Cancelled after any number of loop turns, a job leaves the only child to the next one."""

    async def scenario():
        async with running(models) as pool:
            for turns in range(21):
                job = pool.utterances(memfd(speech(1.0)), Options(), label="called off")
                task = asyncio.create_task(drain(job))
                for _ in range(turns):
                    await asyncio.sleep(0)
                if how == "task":
                    task.cancel()
                else:
                    job.cancel()
                await asyncio.gather(task, return_exceptions=True)
                async with asyncio.timeout(10):
                    assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label=""))) == 1
            await until(lambda: len(pool._idle) == len(pool.snapshot().children) == 1)

    run(scenario())


def test_jobs_called_off_while_they_wait_do_not_take_a_child_with_them(models, run):
    """Whether its child comes before, with or after the cancellation: the next job is served."""

    async def scenario():
        async with running(models) as pool:
            for turns in range(6):
                holder = pool._idle.pop()
                task = asyncio.create_task(drain(pool.utterances(memfd(speech(1.0)), Options(), label="")))
                await until(lambda: pool.snapshot().waiting == 1)
                if turns % 2:
                    pool._take_back(holder)
                task.cancel()
                if not turns % 2:
                    pool._take_back(holder)
                for _ in range(turns):
                    await asyncio.sleep(0)
                await asyncio.gather(task, return_exceptions=True)
                async with asyncio.timeout(10):
                    assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label=""))) == 1
                await until(lambda: idle(pool))

    run(scenario())


@pytest.mark.parametrize("to_its_end", [True, False])
def test_an_answer_that_is_read_late_does_not_touch_the_childs_next_job(models, run, to_its_end, monkeypatch):
    """Whether a job is read late or called off late: its child, long at another job, is let alone."""
    monkeypatch.setattr("sensevoiced.frontend.pool.STOP_GRACE_S", 0.05)

    async def scenario():
        async with running(models, max_children=2) as pool:
            late = pool.utterances(memfd(speech(1.0)), Options(), label="late")
            await anext(late)
            await until(lambda: idle(pool))
            reader, writer = os.pipe()
            task = asyncio.create_task(drain(pool.utterances(reader, Options(), label="next")))
            await until(lambda: not idle(pool))
            if to_its_end:
                assert await drain(late) == []
            else:
                await late.aclose()
            assert not any(child.settling for child in pool._children)
            assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label="3", owner=1))) == 1
            begun = time.monotonic()
            await until(lambda: time.monotonic() - begun > 0.2)
            assert not task.done()
            os.close(writer)
            with pytest.raises(JobError, match="empty"):
                await task
            assert pool.snapshot().crashed == 0

    run(scenario())


def test_closing_the_pool_ends_running_and_waiting_jobs(models, run):
    """Jobs in work and in the queue get shutting_down, and so does one that comes later."""

    async def scenario():
        async with running(models, children=1, max_children=1) as pool:
            reader, writer = os.pipe()
            tasks = [asyncio.create_task(drain(pool.utterances(reader, Options(), label="running")))]
            await until(lambda: not idle(pool))
            tasks.append(
                asyncio.create_task(drain(pool.utterances(memfd(speech(1.0)), Options(), label="queued")))
            )
            await until(lambda: pool.snapshot().waiting == 1)
            await pool.close()
            tasks.append(
                asyncio.create_task(drain(pool.utterances(memfd(speech(1.0)), Options(), label="late")))
            )
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [result.code for result in results] == ["shutting_down"] * 3
            os.close(writer)

    run(scenario())


def test_no_descriptors_left_is_busy_and_costs_no_child(models, run, monkeypatch):
    """A job whose socket cannot be made gets `busy`; its child takes the next job."""

    def exhausted(*_):
        raise OSError(24, "Too many open files")

    async def scenario():
        async with running(models) as pool:
            with monkeypatch.context() as patch:
                patch.setattr(socket, "socketpair", exhausted)
                with pytest.raises(JobError) as caught:
                    await drain(pool.utterances(memfd(speech(1.0)), Options(), label=""))
            assert caught.value.code == "busy"
            async with asyncio.timeout(10):
                assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label=""))) == 1
            assert pool.snapshot().started == 1

    run(scenario())


def test_a_close_that_hangs_does_not_hold_the_loop(models, run, monkeypatch):
    """With a file system that does not answer a close, other jobs go on, and the close waits elsewhere."""
    answer, hung, close = threading.Event(), threading.Event(), os.close
    loop_thread = threading.get_ident()

    async def scenario():
        async with running(models) as pool:
            fd = memfd(speech(1.0))

            def slow(which):
                if which == fd:
                    assert threading.get_ident() != loop_thread
                    hung.set()
                    answer.wait(10)
                close(which)

            monkeypatch.setattr(os, "close", slow)
            assert len(await drain(pool.utterances(fd, Options(), label="hangs"))) == 1
            await until(hung.is_set)
            assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label="next"))) == 1
            answer.set()
            await until(lambda: not Path(f"/proc/self/fd/{fd}").exists())
            monkeypatch.undo()

    try:
        run(scenario())
    finally:
        answer.set()
