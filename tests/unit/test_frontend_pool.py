"""The front end's processes: recordings in, utterances out, whatever the recording."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from harness.energy_vad import speech
from harness.pools import descriptors, drain, idle, memfd, running, sharing, until

from sensevoiced.config import ConfigError, FrontendConfig
from sensevoiced.frontend import child as child_module
from sensevoiced.frontend.pool import FrontendPool
from sensevoiced.jobs import JobError, Options

NOT_DECODABLE = {"beets_full.wma", "cmu_goforward.raw", "gcp_brooklyn.raw", "hf_test_audio_16000.pcm"}
"""A file whose audio is missing, and three without a header."""


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


@pytest.mark.parametrize("limits", [{"max_channels": 1}, {"min_sample_rate_hz": 16_000}])
def test_limits_that_the_rehearsed_recordings_do_not_keep_are_for_clients(models, run, limits):
    """The pool starts with them, and they hold."""

    async def scenario():
        async with running(models, **limits) as pool:
            assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label="allowed"))) == 1
            stereo = np.stack([speech(1.0), speech(1.0)], axis=1)
            with pytest.raises(JobError) as caught:
                await drain(pool.utterances(memfd(stereo, rate=8_000), Options(), label="not allowed"))
            assert caught.value.code == "bad_input"

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
        assert [process.wait(10) for process in started] == [-signal.SIGKILL]

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
            # For good: what jobs share, and one more with as many channels to tell apart as may be.
            hard_s = resource.prlimit(child.pid, resource.RLIMIT_CPU)[1]
            assert 17 * FrontendConfig().child_cpu_s < hard_s < 17.1 * FrontendConfig().child_cpu_s
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
