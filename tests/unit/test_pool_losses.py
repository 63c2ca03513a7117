"""Children of the front end that die, hang, take too much or lie: one recording pays, the pool is whole."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import threading
import time

import numpy as np
import pytest
import soundfile
from harness.energy_vad import speech
from harness.pools import drain, idle, memfd, run_program, running, take_over, until

from sensevoiced.frontend import child as child_module
from sensevoiced.frontend.run import crash_sentence
from sensevoiced.jobs import JobError, Options


def test_a_killed_child_costs_its_own_job_only(models, run):
    """Kill -9 in the middle of a job gives bad_input for it, one more crash, and a pool of the same size."""

    async def scenario():
        async with running(models, children=2, max_children=2) as pool:
            reader, writer = os.pipe()
            victim = pool.utterances(reader, Options(), label="victim")
            task = asyncio.create_task(drain(victim))
            await until(lambda: not idle(pool))
            (busy,) = [child.pid for child in pool.snapshot().children if child.busy]
            os.kill(busy, signal.SIGKILL)
            with pytest.raises(JobError) as caught:
                await task
            os.close(writer)
            assert caught.value.code == "bad_input"
            assert "SIGKILL" in caught.value.message
            assert pool.snapshot().crashed == 1
            await until(lambda: len(pool.snapshot().children) == 2)
            assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label="next"))) == 1

    run(scenario())


def test_a_lack_of_memory_at_the_handing_over_costs_nobody(models, run, monkeypatch):
    """The child that was told nothing is replaced: it would count as busy, in its owner's share, for ever."""

    def lacking(message, real=child_module.pack):
        if message["type"] == "job" and not lacked:
            lacked.append(message)
            raise MemoryError
        return real(message)

    lacked = []
    monkeypatch.setattr(child_module, "pack", lacking)

    async def scenario():
        async with running(models, children=1, max_children=2) as pool:
            job = pool.utterances(memfd(speech(1.0)), Options(), label="a", owner=7)
            assert len(await drain(job)) == 1
            await until(lambda: idle(pool))
            assert not any(child.owner == 7 for child in pool._children)
            assert (pool.snapshot().crashed, pool.snapshot().started) == (0, 2)

    run(scenario())


def test_a_child_that_cannot_be_taken_back_is_replaced(models, run):
    """Neither idle nor busy, it would stand for ever in the way of another."""

    class Scarce(list):
        lacked = False

        def append(self, child):
            if not self.lacked:
                self.lacked = True
                raise MemoryError
            super().append(child)

    async def scenario():
        async with running(models, children=1, max_children=1) as pool:
            pool._idle = Scarce(pool._idle)
            for label in ("first", "next"):
                assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label=label))) == 1
            assert (pool.snapshot().crashed, pool.snapshot().started) == (0, 2)

    run(scenario())


def test_a_child_that_nobody_could_look_at_again_is_killed_at_once(models, run, monkeypatch):
    """Where there is no memory for the timer, it may hang in the recording that was called off."""

    def lacking(*_):
        raise MemoryError

    async def scenario():
        async with running(models, children=1, max_children=1) as pool:
            reader, writer = os.pipe()
            job = pool.utterances(reader, Options(), label="called off")
            task = asyncio.create_task(drain(job))
            await until(lambda: job.begun_s is not None)
            with monkeypatch.context() as patch:
                patch.setattr(asyncio.get_running_loop(), "call_later", lacking)
                (child,) = pool._children
                pool.called_off(child, child.jobs)
            assert child.killed
            with pytest.raises(JobError):
                await task
            os.close(writer)
            assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label="next"))) == 1

    run(scenario())


def test_a_child_killed_while_idle_is_replaced_unnoticed(models, run):
    """Children that die between jobs are replaced; the next recordings are served."""

    async def scenario():
        async with running(models, children=2, max_children=2) as pool:
            for child in pool.snapshot().children:
                os.kill(child.pid, signal.SIGKILL)
            assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label="next"))) == 1
            assert pool.snapshot().crashed == 0

    run(scenario())


def test_children_that_die_while_starting_cost_nobody_where_others_serve(models, run, monkeypatch):
    """Three in a row are no reason to refuse who waits while a child is at work: others are started later."""
    monkeypatch.setattr("sensevoiced.frontend.pool.PAUSE_S", 0.2)

    async def scenario():
        async with running(models, children=1, max_children=8, grow_after_s=0.01) as pool:
            reader, writer = os.pipe()
            busy = asyncio.create_task(drain(pool.utterances(reader, Options(), label="busy", owner=1)))
            await until(lambda: not idle(pool))
            waiting = [
                asyncio.create_task(drain(pool.utterances(memfd(speech(1.0)), Options(), label="w", owner=2)))
                for _ in range(3)
            ]
            await until(lambda: len(pool._children) == 4)
            for child in pool._children:
                if not child.ready:
                    os.kill(child.pid, signal.SIGKILL)
            assert [len(found) for found in await asyncio.gather(*waiting)] == [1, 1, 1]
            assert pool._paused_until_s > 0.0
            assert not busy.done()
            os.close(writer)
            with pytest.raises(JobError):
                await busy

    run(scenario())


def test_a_stalled_source_times_out(models, run):
    """F22: a pipe from which nothing comes ends in timeout after the deadline, and its child is replaced."""

    async def scenario():
        async with running(models, decode_timeout_s=0.3) as pool:
            reader, writer = os.pipe()
            job = pool.utterances(reader, Options(), label="stalled")
            with pytest.raises(JobError) as caught:
                await drain(job)
            os.close(writer)
            assert caught.value.code == "timeout"
            assert pool.snapshot().timeouts == 1
            assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label="next"))) == 1

    run(scenario())


def test_a_slow_reader_is_no_stalled_source(models, run):
    """The deadline counts the child's silence only: one held back by its reader is not killed."""

    async def scenario():
        async with running(models, decode_timeout_s=2.0) as pool:
            long = np.concatenate([speech(10.0, 3.0, seed=n) for n in range(10)])
            job = pool.utterances(memfd(long), Options(), label="slow")
            await anext(job)
            begun = time.monotonic()
            await until(lambda: time.monotonic() - begun > 2.5)
            assert len(await drain(job)) == 9
            assert pool.snapshot().timeouts == 0

    run(scenario())


def test_a_stopped_child_is_killed(models, run):
    """A child that the kernel does not let run (SIGSTOP) is no different from one that hangs."""

    async def scenario():
        async with running(models, decode_timeout_s=0.3) as pool:
            reader, writer = os.pipe()
            task = asyncio.create_task(drain(pool.utterances(reader, Options(), label="stopped")))
            await until(lambda: not idle(pool))
            os.kill(pool.snapshot().children[0].pid, signal.SIGSTOP)
            with pytest.raises(JobError, match=r"0\.3 s"):
                await task
            os.close(writer)
            assert pool.snapshot().timeouts == 1
            assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label="next"))) == 1

    run(scenario())


def test_a_cpu_hog_is_ended_by_its_limit(models, run):
    """The CPU limit of a job is enforced by the kernel, and its client is told which it was."""
    buffer = io.BytesIO()
    soundfile.write(buffer, speech(10.0, 3.0), 16000, format="WAV")
    wav = bytearray(buffer.getvalue())
    wav[4:8] = wav[40:44] = b"\xff\xff\xff\xff"

    def feed(writer):
        with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "wb", buffering=0) as pipe:
            pipe.write(wav)
            while True:
                pipe.write(wav[44:])

    async def scenario():
        async with running(models, child_cpu_s=1) as pool:
            reader, writer = os.pipe()
            thread = threading.Thread(target=feed, args=(writer,))
            thread.start()
            with pytest.raises(JobError) as caught:
                await drain(pool.utterances(reader, Options(), label="hog"))
            assert caught.value.code == "bad_input"
            assert "1 s of CPU" in caught.value.message
            await asyncio.to_thread(thread.join)

    run(scenario())


@pytest.mark.parametrize(
    ("program", "limits", "code", "sentence", "crashed", "timeouts"),
    [
        ("bytes(2**30)", {"child_memory_bytes": 2**30}, "bad_input", "more memory than", 0, 0),
        ("while True: pass", {"child_cpu_s": 1}, "bad_input", "more than 1 s of CPU", 1, 0),
        (
            "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
            {"child_cpu_s": 1, "max_channels": 1},
            "bad_input",
            "SIGKILL",
            1,
            0,
        ),
        ("threading.Event().wait()", {"decode_timeout_s": 0.3}, "timeout", "for 0.3 s", 0, 1),
        ("ctypes.string_at(0)", {}, "bad_input", "SIGSEGV", 1, 0),
        ("os._exit(7)", {}, "bad_input", "status 7", 1, 0),
    ],
    ids=["memory", "CPU", "CPU, deaf", "silence", "crash", "end"],
)
def test_a_child_beyond_a_budget_costs_its_own_recording_only(
    models, run, monkeypatch, *, program, limits, code, sentence, crashed, timeouts
):
    """Memory, CPU, silence, a crash, an end: one refusal; the neighbour is answered, the pool is whole."""
    take_over(monkeypatch)

    async def scenario():
        async with running(models, children=2, max_children=2, **limits) as pool:
            neighbour = pool.utterances(memfd(speech(1.0, 3.0, 1.0)), Options(), label="neighbour")
            first = await anext(neighbour)
            assert sentence in await run_program(pool, program, code)
            assert [first.index, *[found.index for found in await drain(neighbour)]] == [0, 1]
            await until(lambda: len(pool.snapshot().children) == 2 and len(pool._idle) == 2)
            snapshot = pool.snapshot()
            assert (snapshot.crashed, snapshot.timeouts, snapshot.started) == (crashed, timeouts, 3)

    run(scenario())


def test_a_child_that_has_used_its_share_of_cpu_is_relieved(models, run, monkeypatch):
    """After many jobs within their budgets another process goes on, and nobody notices."""
    take_over(monkeypatch)
    program = (
        "end = time.process_time() + 0.6\nwhile time.process_time() < end: pass\nanswer = str(os.getpid())"
    )

    async def scenario():
        async with running(models, child_cpu_s=1) as pool:
            pids = [await run_program(pool, program) for _ in range(4)]
            assert (pool.snapshot().crashed, pool.snapshot().timeouts) == (0, 0)
            assert len(set(pids)) > 1
            await until(lambda: len(pool._idle) == 1)

    run(scenario())


def test_a_child_that_says_it_is_free_with_a_job_open_gets_no_other(models, run, monkeypatch):
    """One that was taken over could otherwise gather the recordings of all who wait, and answer none."""
    take_over(monkeypatch)
    program = (
        "from sensevoiced.frontend.channel import pack, send_message\n"
        "control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=3)\n"
        "control.send(pack({'type': 'idle'}))\n"
        "while True:\n"
        "    send_message(sock, {'type': 'progress', 'decoded_s': 0.0})\n"
        "    time.sleep(0.01)"
    )

    async def scenario():
        async with running(models, decode_timeout_s=2.0) as pool:
            bad = asyncio.create_task(run_program(pool, program))
            await asyncio.sleep(0)  # so that it is first in line
            assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label="next"))) == 1
            assert "SIGKILL" in await bad
            assert (pool.snapshot().crashed, pool.snapshot().timeouts) == (1, 0)

    run(scenario())


@pytest.mark.parametrize(
    "forged",
    [
        {"type": "utterance"},
        {"type": "utterance", "index": 0, "frames": 0, "dim": 560, "start_s": 0, "end_s": 1, "decoded_s": 1},
        {"type": "begun"},
    ],
)
def test_a_child_that_answers_nonsense_is_ended(models, run, forged, monkeypatch, caplog):
    """A message out of shape costs its child and gets its client `internal`; the next job is served."""
    from sensevoiced.frontend import run as run_module

    real, seen = run_module.read_message, []

    async def forging(loop, sock):
        message, payload = await real(loop, sock)
        seen.append(message)
        return (message, payload) if len(seen) == 1 else (dict(forged), memoryview(b""))

    async def scenario():
        async with running(models) as pool:
            with monkeypatch.context() as patch:
                patch.setattr(run_module, "read_message", forging)
                with pytest.raises(JobError) as caught:
                    await drain(pool.utterances(memfd(speech(1.0)), Options(), label=""))
            assert caught.value.code == "internal"
            assert "is killed for what it sent" in caplog.text
            assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label=""))) == 1
            assert pool.snapshot().started == 2

    run(scenario())


def test_what_a_child_says_at_its_end_cannot_forge_a_log_line(models, run, caplog):
    """Text of a crashing child is logged in one short line."""

    async def scenario():
        async with running(models) as pool:
            (child,) = pool._children
            child.failure = "ValueError\nforged line " + "x" * 1000
            pool.crashed(child)
            (line,) = [record.getMessage() for record in caplog.records]
            assert "\n" not in line
            assert len(line) < 250

    run(scenario())


def test_any_way_to_end_gets_a_sentence():
    """Signals without a name, such as real-time ones, are told by number."""
    assert "SIGSEGV" in crash_sentence(-11, 1)
    assert "signal 35" in crash_sentence(-35, 1)
    assert "status 3" in crash_sentence(3, 1)
