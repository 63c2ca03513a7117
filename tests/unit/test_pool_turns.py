"""Who gets a child of the front end, and when another one is started."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
from harness.energy_vad import speech
from harness.pools import drain, idle, memfd, running, sharing, until

from sensevoiced.frontend.waiting import Waiting
from sensevoiced.jobs import JobError, Options


def test_a_job_that_nobody_reads_does_not_hold_up_others(models, run):
    """With both children held back by readers that stopped, a third serves the next; later it is ended."""
    long = np.concatenate([speech(10.0, 3.0, seed=n) for n in range(20)])

    async def scenario():
        async with running(models, children=2, max_children=4, idle_child_s=0.05) as pool:
            stalled = [pool.utterances(memfd(long), Options(), label="long") for _ in range(2)]
            firsts = [await anext(job) for job in stalled]
            assert all(utterance.index == 0 for utterance in firsts)
            assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label="short"))) == 1
            assert len(pool.snapshot().children) == 3
            rests = [await drain(job) for job in stalled]
            assert all(len(rest) == 19 for rest in rests)
            await until(lambda: len(pool.snapshot().children) == 2)

    run(scenario())


def test_a_child_blocks_while_nobody_reads(models, run):
    """A reader that stops holds the child back: it decodes no further than its socket's buffer."""
    long = np.concatenate([speech(20.0, 3.0, seed=n) for n in range(40)])

    async def scenario():
        async with sharing(models) as pool:
            job = pool.utterances(memfd(long), Options(), label="long")
            await anext(job)
            (busy,) = [child for child in pool.snapshot().children if child.busy]

            def cpu():
                return Path(f"/proc/{busy.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]

            last = None
            async with asyncio.timeout(10):
                while cpu() != last:
                    last = cpu()
                    await asyncio.sleep(0.3)
            assert job.decoded_s < 100
            await job.aclose()

    run(scenario())


def test_one_owner_never_holds_all_children(models, run):
    """Of four children an owner's streams get three; another's file is served, and his own waits."""

    async def scenario():
        async with running(models, children=1, max_children=4) as pool:
            pipes = [os.pipe() for _ in range(3)]
            held = [
                asyncio.create_task(drain(pool.utterances(reader, Options(), label="", owner=1)))
                for reader, _ in pipes
            ]
            await until(lambda: sum(child.busy for child in pool.snapshot().children) == 3)
            own = pool.utterances(memfd(speech(1.0)), Options(), label="", owner=1)
            waiting = asyncio.create_task(drain(own))
            async with asyncio.timeout(10):
                other = pool.utterances(memfd(speech(1.0)), Options(), label="", owner=2)
                assert len(await drain(other)) == 1
            await until(lambda: sum(child.busy for child in pool.snapshot().children) == 3)
            assert pool.snapshot().waiting == 1
            os.close(pipes[0][1])
            async with asyncio.timeout(10):
                assert len(await waiting) == 1
            for _, writer in pipes[1:]:
                os.close(writer)
            assert [result.code for result in await asyncio.gather(*held, return_exceptions=True)] == [
                "bad_input"
            ] * 3

    run(scenario())


def test_a_crowd_of_short_recordings_is_served_by_the_children_there_are(models, run):
    """While children come free in turn no more are started, however many wait."""

    async def scenario():
        async with running(models, children=1, max_children=4, grow_after_s=60) as pool:
            jobs = [drain(pool.utterances(memfd(speech(1.0)), Options(), label="")) for _ in range(6)]
            assert [len(found) for found in await asyncio.gather(*jobs)] == [1] * 6
            assert pool.snapshot().started == 1

    run(scenario())


def test_a_child_is_started_when_none_has_come_free_for_a_while(models, run):
    """Behind a recording that holds its child, a job waits no longer than `grow_after_s` for another."""

    async def scenario():
        async with running(models, children=1, max_children=2, grow_after_s=0.05) as pool:
            reader, writer = os.pipe()
            held = asyncio.create_task(drain(pool.utterances(reader, Options(), label="", owner=1)))
            await until(lambda: not idle(pool))
            async with asyncio.timeout(10):
                other = pool.utterances(memfd(speech(1.0)), Options(), label="", owner=2)
                waiting = asyncio.create_task(drain(other))
                await until(lambda: other.waits_for == "process")
                assert len(await waiting) == 1
            assert pool.snapshot().started == 2
            os.close(writer)
            await asyncio.gather(held, return_exceptions=True)

    run(scenario())


def test_a_child_that_dies_makes_room_in_its_owners_share(models, run):
    """A job that waits only for its owner's share begins when one of his children is killed."""

    async def scenario():
        async with running(models, children=2, max_children=3, max_children_per_uid=1) as pool:
            reader, writer = os.pipe()
            victim = asyncio.create_task(drain(pool.utterances(reader, Options(), label="", owner=1)))
            await until(lambda: not idle(pool))
            second = pool.utterances(memfd(speech(1.0)), Options(), label="", owner=1)
            assert not second.waits_for
            waiting = asyncio.create_task(drain(second))
            await until(lambda: pool.snapshot().waiting == 1)
            assert (second.waits_for, pool.snapshot().max_per_user) == ("share", 1)
            (busy,) = [child.pid for child in pool.snapshot().children if child.busy]
            os.kill(busy, signal.SIGKILL)
            async with asyncio.timeout(10):
                assert len(await waiting) == 1
            assert not second.waits_for
            await asyncio.gather(victim, return_exceptions=True)
            os.close(writer)

    run(scenario())


def test_owners_take_turns(run):
    """A hundred jobs of one owner do not stand before the first of another; who has his share is passed."""

    async def scenario():
        waiting = Waiting()
        ones = [waiting.add(1) for _ in range(4)]
        two, three = waiting.add(2), waiting.add(3)
        ones[0].cancel()
        order = []
        while (turn := waiting.next(lambda owner: 0 if owner == 3 else 5)) is not None:
            order.append(turn)
        assert order == [(1, ones[1]), (2, two), (1, ones[2]), (1, ones[3])]
        assert len(waiting) == 1
        assert waiting.wanted(lambda _: 5) == 1
        waiting.refuse(lambda: JobError("internal", "no"))
        assert three.exception().code == "internal"

    run(scenario())
