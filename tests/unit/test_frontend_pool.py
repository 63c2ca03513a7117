"""The front end's processes: recordings in, utterances out, and nothing left behind whatever happens."""

import asyncio
import contextlib
import io
import os
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from harness.energy_vad import speech, write_models
from harness.pools import descriptors, drain, idle, memfd, run_program, running, take_over, until

from sensevoiced.config import ConfigError, FrontendConfig
from sensevoiced.frontend import child as child_module
from sensevoiced.frontend.pool import FrontendPool
from sensevoiced.frontend.run import crash_sentence
from sensevoiced.frontend.waiting import Waiting
from sensevoiced.jobs import JobError, Options

NOT_DECODABLE = {"beets_full.wma", "cmu_goforward.raw", "gcp_brooklyn.raw", "hf_test_audio_16000.pcm"}
"""A file whose audio is missing, and three without a header."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Describe a front end whose VAD goes by energy."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def run(models):
    """Run a scenario on an event loop that lives as long as the pool that most tests share."""
    with asyncio.Runner() as runner:
        yield runner.run
        if (pool := _shared.pop("pool", None)) is not None:
            runner.run(pool.close())


_shared = {}


@contextlib.asynccontextmanager
async def sharing(models):
    """Use the pool of two children that starts once for all; afterwards it has to be as it was."""
    if "pool" not in _shared:
        pool = FrontendPool(FrontendConfig(children=2, max_children=2), *models)
        await pool.start()
        _shared["pool"] = pool
    pool = _shared["pool"]
    before = descriptors()
    yield pool
    await until(lambda: idle(pool) and descriptors() <= before)
    assert pool.snapshot().crashed == 0


def times(utterances):
    """Give start and end of each."""
    return [(utterance.start_s, utterance.end_s) for utterance in utterances]


def test_a_recording_becomes_utterances_with_features(models, run):
    """Two stretches of noise give two utterances, indexed from 0, with LFR 7/6 features."""

    async def scenario():
        async with sharing(models) as pool:
            job = pool.utterances(memfd(speech(2.0, 3.0, 1.0, 3.0)), Options(), label="two")
            asked_s = time.monotonic()
            assert job.begun_s is None
            found = await drain(job)
            assert asked_s <= job.begun_s <= time.monotonic()
            assert job.decoded.duration_s == 9.0
            assert job.decoded_s == 9.0
            assert not job.decoded.truncated
            assert job.decoded.decode_s > 0
            assert job.decoded.vad_s > 0
        return found

    first, second = run(scenario())
    assert (first.index, second.index) == (0, 1)
    assert first.start_s == 0.0
    assert first.end_s == pytest.approx(2.1, abs=0.1)
    assert second.start_s == pytest.approx(4.85, abs=0.15)
    for utterance in (first, second):
        frames = round((utterance.end_s - utterance.start_s) * 100) - 2
        assert (utterance.frames, utterance.dim) == (-(-frames // 6), 560)
        features = np.frombuffer(utterance.features, np.float32).reshape(utterance.frames, 560)
        assert np.isfinite(features).all()


@pytest.mark.parametrize("children", [1, 2, 3])
def test_a_started_pool_has_all_its_children_warm(models, run, children):
    """The last child starts after the others, and start() waits for it too."""

    async def scenario():
        async with running(models, children=children, max_children=4) as pool:
            snapshot = pool.snapshot()
            assert [child.busy for child in snapshot.children] == [False] * children
            assert snapshot.started == children
            jobs = [pool.utterances(memfd(speech(1.0)), Options(), label="one") for _ in range(children)]
            await asyncio.gather(*map(drain, jobs))
            assert pool.snapshot().started == children

    run(scenario())


def test_a_long_segment_is_cut_to_30_s(models, run):
    """Seventy seconds of noise become utterances of at most 30 s that touch."""

    async def scenario():
        async with sharing(models) as pool:
            return await drain(pool.utterances(memfd(speech(70.0)), Options(), label="long"))

    found = times(run(scenario()))
    assert all(end - start <= 30.0 for start, end in found)
    assert found[0][0] == 0.0
    assert found[-1][1] == pytest.approx(70.0, abs=0.1)
    assert sum(end - start for start, end in found) == pytest.approx(70.0, abs=0.1)


def test_without_vad_the_whole_is_one_utterance_of_limited_length(models, run):
    """VAD off gives one utterance of everything, and a sentence beyond max_whole_s."""

    async def scenario():
        async with running(models, max_whole_s=10.0) as pool:
            job = pool.utterances(memfd(speech(1.0, 4.0)), Options(vad=False), label="whole")
            (utterance,) = await drain(job)
            assert (utterance.start_s, utterance.end_s) == (0.0, 5.0)
            assert utterance.frames == -(-498 // 6)
            with pytest.raises(JobError) as caught:
                await drain(pool.utterances(memfd(speech(11.0)), Options(vad=False), label="long"))
            assert caught.value.code == "too_long"
            assert "10 s" in caught.value.message

    run(scenario())


def test_silence_and_almost_nothing_give_no_utterance(models, run):
    """Silence, one sample and 10 ms are recordings without speech, not errors."""

    async def scenario():
        async with sharing(models) as pool:
            for samples in (np.zeros(50_000, np.int16), speech(1.0)[:1], speech(1.0)[:160]):
                job = pool.utterances(memfd(samples), Options(), label="silence")
                assert await drain(job) == []
                assert job.decoded.duration_s == len(samples) / 16000

    run(scenario())


def test_jobs_run_at_the_same_time_and_do_not_mix(models, run):
    """Eight recordings at once over two children give what each gives alone, byte for byte."""
    recordings = [speech(0.5 + 0.3 * n, 2.5, 1.0 + 0.1 * n, 1.0, seed=n) for n in range(8)]

    async def scenario():
        async with sharing(models) as pool:
            alone = [
                await drain(pool.utterances(memfd(samples), Options(), label="")) for samples in recordings
            ]
            runs = [pool.utterances(memfd(samples), Options(), label="") for samples in recordings]
            assert await asyncio.gather(*map(drain, runs)) == alone

    run(scenario())


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


def test_a_child_killed_while_idle_is_replaced_unnoticed(models, run):
    """Children that die between jobs are replaced; the next recordings are served."""

    async def scenario():
        async with running(models, children=2, max_children=2) as pool:
            for child in pool.snapshot().children:
                os.kill(child.pid, signal.SIGKILL)
            assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label="next"))) == 1
            assert pool.snapshot().crashed == 0

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


def test_a_stream_is_served_while_it_comes(models, run):
    """The first utterance of a pipe arrives while the pipe is still open."""
    samples = speech(1.0, 4.0, 1.0, 1.0)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format="WAV")
    data = buffer.getvalue()

    async def scenario():
        async with sharing(models) as pool:
            reader, writer = os.pipe()
            job = pool.utterances(reader, Options(), label="live")
            sender = asyncio.create_task(asyncio.to_thread(os.write, writer, data[: 44 + 2 * 16000 * 5]))
            first = await anext(job)
            assert first.start_s == 0.0
            await sender
            await asyncio.to_thread(os.write, writer, data[44 + 2 * 16000 * 5 :])
            os.close(writer)
            (second,) = await drain(job)
            assert second.index == 1
            assert job.decoded.duration_s == 7.0

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
            {"child_cpu_s": 1},
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


def look(pid):
    """Give what /proc says of a process: where its descriptors lead, its environment, its mapped files."""
    process = Path(f"/proc/{pid}")
    links = [str(link.readlink()) for link in (process / "fd").iterdir()]
    return links, (process / "environ").read_bytes(), (process / "maps").read_text()


def test_children_are_confined(models, run):
    """A child may write no file, dump no core, open few descriptors, and inherits none of the daemon's."""

    async def scenario():
        async with sharing(models) as pool:
            child, *_ = pool.snapshot().children
            limits = {
                kind: resource.prlimit(child.pid, getattr(resource, kind))
                for kind in ("RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_AS")
            }
            assert limits["RLIMIT_FSIZE"] == limits["RLIMIT_CORE"] == (0, 0)
            assert limits["RLIMIT_NOFILE"][1] <= 64
            assert limits["RLIMIT_AS"] == (FrontendConfig().child_memory_bytes,) * 2
            links, environment, maps = look(child.pid)
            assert sum(link.startswith("socket:") for link in links) == 1
            assert b"NOTIFY_SOCKET" not in environment
            assert b"HOME=" not in environment
            assert child.rss_bytes < 200 * 2**20
            assert "torch" not in maps

    run(scenario())


def test_children_die_with_their_parent(models, tmp_path, run):
    """A parent that is killed leaves no child behind."""
    program = f"""
import asyncio, os, pickle, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from sensevoiced.config import FrontendConfig
from sensevoiced.frontend.pool import FrontendPool
models = pickle.loads({__import__("pickle").dumps(models)!r})
async def main():
    pool = FrontendPool(FrontendConfig(children=2), *models)
    await pool.start()
    print(*[child.pid for child in pool.snapshot().children], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""

    async def scenario():
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        pids = [int(word) for word in output.split()]
        assert len(pids) == 2

        def gone(pid):
            with contextlib.suppress(FileNotFoundError):
                return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
            return True

        await until(lambda: all(map(gone, pids)))

    run(scenario())


def test_weights_that_cannot_be_read_stop_the_start(models, tmp_path, run):
    """A damaged VAD model is a ConfigError with the child's own sentence, and no child stays."""
    from dataclasses import replace

    asr, vad = models
    (tmp_path / "bad.pt").write_bytes(b"not a checkpoint")

    async def scenario():
        before = descriptors()
        pool = FrontendPool(FrontendConfig(children=2), asr, replace(vad, weights=tmp_path / "bad.pt"))
        with pytest.raises(ConfigError, match=r"bad\.pt is not a checkpoint"):
            await pool.start()
        assert pool.snapshot().children == ()
        assert descriptors() == before

    run(scenario())


@pytest.mark.parametrize("folder", ["audio", "edge"])
def test_every_real_file_gives_audio_or_a_sentence(shared_data, models, folder, run):
    """All recordings decode; broken and hostile files decode or get one sentence; no child is lost."""
    files = sorted(path for path in (shared_data / folder).rglob("*") if path.is_file())

    async def scenario():
        decoded, refused = {}, {}
        async with sharing(models) as pool:
            pids = {child.pid for child in pool.snapshot().children}
            for path in files:
                job = pool.utterances(os.open(path, os.O_RDONLY), Options(), label=path.name)
                try:
                    await drain(job)
                    decoded[path.name] = job.decoded.duration_s
                except JobError as error:
                    refused[path.name] = error
            await until(lambda: idle(pool))
            assert pids <= {child.pid for child in pool.snapshot().children}
        return decoded, refused

    decoded, refused = run(scenario())
    assert len(decoded) + len(refused) == len({path.name for path in files})
    for error in refused.values():
        assert error.code == "bad_input"
        assert error.message.endswith(".")
        assert "\n" not in error.message
    if folder == "audio":
        assert set(refused) == NOT_DECODABLE
        assert all(duration > 0.4 for duration in decoded.values())


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


def test_a_child_that_cannot_be_watched_is_not_left_behind(models, run, monkeypatch):
    """Where no pidfd can be had, a start fails with a sentence and leaves neither process nor descriptor."""
    started = []
    popen = child_module.subprocess.Popen

    def remember(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    def exhausted(_):
        raise OSError(24, "Too many open files")

    async def scenario():
        before = descriptors()
        pool = FrontendPool(FrontendConfig(children=1), *models)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pidfd_open", exhausted)
            patch.setattr(child_module.subprocess, "Popen", remember)
            with pytest.raises(ConfigError, match="Too many open files"):
                await pool.start()
        assert descriptors() == before
        assert [process.returncode for process in started] == [-signal.SIGKILL]

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
                assert len(await drain(other)) == 1
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
            waiting = asyncio.create_task(
                drain(pool.utterances(memfd(speech(1.0)), Options(), label="", owner=1))
            )
            await until(lambda: pool.snapshot().waiting == 1)
            (busy,) = [child.pid for child in pool.snapshot().children if child.busy]
            os.kill(busy, signal.SIGKILL)
            async with asyncio.timeout(10):
                assert len(await waiting) == 1
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


def test_an_upload_that_has_to_be_complete_is_not_stalled_while_it_comes(models, run):
    """A streamed MP4 slower than the deadline in all, but never silent for it, reaches the decoder."""
    head = b"\0\0\0\x18ftypM4A \0\0\0\0" + bytes(8)

    async def scenario():
        async with running(models, decode_timeout_s=1.0) as pool:
            reader, writer = os.pipe()
            job = pool.utterances(reader, Options(), label="slow")
            task = asyncio.create_task(drain(job))
            await asyncio.to_thread(os.write, writer, head)
            begun = time.monotonic()

            def longer_than_the_deadline():
                os.write(writer, bytes(16))
                return time.monotonic() - begun > 2.5 or task.done()

            await until(longer_than_the_deadline)
            assert not task.done()
            os.close(writer)
            with pytest.raises(JobError) as caught:
                await task
            assert caught.value.code == "bad_input"
            assert pool.snapshot().timeouts == 0

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


def test_any_way_to_end_gets_a_sentence():
    """Signals without a name, such as real-time ones, are told by number."""
    assert "SIGSEGV" in crash_sentence(-11, 1)
    assert "signal 35" in crash_sentence(-35, 1)
    assert "status 3" in crash_sentence(3, 1)
