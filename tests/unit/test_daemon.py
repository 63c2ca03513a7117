"""The daemon as a process: what it reports, and how its command behaves."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness.daemon import DaemonProcess, script, wait_until
from harness.fakes import FakeEngine, FakeFrontend
from harness.wire_client import memfd, texts

import sensevoiced
import svctl
from sensevoiced.backend import Backend
from sensevoiced.config import Config
from sensevoiced.jobs import JobError, Options
from sensevoiced.parts import Parts
from sensevoiced.serving.server import Server


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    """A daemon around a fake engine."""
    process = DaemonProcess(tmp_path_factory.mktemp("daemon"), settings='device = "cpu"\nthreads = 3')
    yield process
    process.kill()


def run(*words, **environ):
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "sensevoiced", *words],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_status_reports_what_is_in_force_and_what_was_done(daemon):
    """Names are a contract with `svctl status --json`."""
    with daemon.client() as client:
        before = client.status()
        assert texts(client.ask(1, memfd(script("one", "two", {"say": "three", "seconds": 2.5})))) == [
            "one",
            "two",
            "three",
        ]
        assert client.ask(2, memfd(b"no script"))[-1]["code"] == "bad_input"
        after = client.status()
    assert after["server"] == f"sensevoiced/{sensevoiced.__version__}"
    assert (after["pid"], after["state"]) == (daemon.pid, "ready")
    in_force = [after[name] for name in ("model", "vad", "engine", "device", "precision", "threads")]
    assert in_force == ["fake", "fake", "fake", "cpu", "float32", 3]
    assert 0 < after["ready_after_s"] <= after["uptime_s"]
    assert after["memory"]["daemon_rss_bytes"] > 2**20
    assert after["memory"]["gpu_total_bytes"] is None
    assert after["queue"] == {"utterances": 0, "audio_s": 0.0, "jobs_active": 0}
    assert after["jobs"]["done"] == before["jobs"]["done"] + 1
    assert after["jobs"]["failed"] == before["jobs"]["failed"] + 1
    assert after["audio_s"] == before["audio_s"] + 4.5
    assert after["batches"]["utterances"] == before["batches"]["utterances"] + 3
    assert after["rtf"] == pytest.approx(after["engine_busy_s"] / after["audio_s"], abs=1e-3)
    assert after["connections"] == 1
    assert after["frontend"] == {
        "waiting": 0,
        "max_per_user": 12,
        "crashed": 0,
        "timeouts": 0,
        "jail": ["walls"],
    }


def test_every_fact_of_a_status_stands_in_the_protocol(daemon):
    """Its page names all keys, inner ones too."""
    text = Path(svctl.__file__).with_name("PROTOCOL.md").read_text("utf-8")
    (listed,) = re.findall(r"^`status` is a map: .*?\n\n", text, re.DOTALL | re.MULTILINE)
    with daemon.client() as client:
        status = client.status()
    inner = {name for value in status.values() if isinstance(value, dict) for name in value}
    assert {name for name in {*status, *inner} if f"`{name}`" not in listed} == set()


def test_the_same_file_gives_the_same_answer(daemon):
    """20 times alone: identical but for the timings."""
    with daemon.client() as client:
        answers = []
        for request in range(20):
            events = client.ask(request, memfd(script("again", "and again")))
            answers.append([{k: v for k, v in e.items() if k not in ("id", "timings")} for e in events])
    assert answers == [answers[0]] * 20


def test_the_backend_waits_for_a_batch_only_until_it_is_enough(tmp_path):
    """A batch cannot be interrupted, and the loop stays free to hear that nobody wants to wait any longer."""

    async def scene():
        parts = Parts("fake", "fake", lambda: FakeEngine(tmp_path), lambda: FakeFrontend(tmp_path))
        config = Config(socket=tmp_path / "s", models_dir=tmp_path)
        backend, enough = Backend(config, parts, lambda _: None), asyncio.Event()
        await backend.load()
        source = memfd(script({"say": "x", "engine_gate": "wall"}))
        transcription = backend.transcribe(source, Options(), label="", owner=1)
        taking = asyncio.create_task(anext(aiter(transcription)))
        await asyncio.to_thread(
            wait_until, lambda: "at wall" in (tmp_path / "engine.log").read_text(), "the engine at the wall"
        )
        closing = asyncio.create_task(backend.close(enough))
        done, _ = await asyncio.wait({closing}, timeout=0.1)
        assert not done
        enough.set()
        assert await closing is False
        (tmp_path / "wall").touch()
        await asyncio.wait({taking})
        assert isinstance(taking.exception(), JobError)
        await transcription.aclose()
        assert await backend.close(asyncio.Event())

    asyncio.run(scene())


def test_the_server_cuts_off_what_has_not_ended_when_it_is_enough():
    """Every conversation is told to stop; one that goes on is cancelled."""

    async def scene():
        server = Server(SimpleNamespace(), None, None, None)
        told, stuck = [], asyncio.create_task(asyncio.Event().wait())
        server._sessions[stuck] = SimpleNamespace(stop=lambda: told.append("stop"))
        enough = asyncio.Event()
        closing = asyncio.create_task(server.close(enough))
        done, _ = await asyncio.wait({closing}, timeout=0.1)
        assert not done
        assert told == ["stop"]
        enough.set()
        await closing
        assert stuck.cancelled()

    asyncio.run(scene())


def test_the_command_says_its_version_and_its_verbs():
    """Without loading anything."""
    assert run("--version").stdout == f"sensevoiced {sensevoiced.__version__}\n"
    shown = run("--help").stdout
    assert all(verb in shown for verb in ("serve", "fetch", "check-config"))


def test_an_unknown_flag_is_a_usage_error():
    """Exit status 2, as argparse has it, and a word about it."""
    ended = run("--modle", "demo")
    assert ended.returncode == 2
    assert "--modle" in ended.stderr


def test_importing_the_daemon_loads_no_model_code():
    """Neither torch nor numpy nor the hub's clients: they belong to the engine, the children and `fetch`."""
    program = "import sys, sensevoiced.daemon, sensevoiced.parts; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.split())
    assert loaded.isdisjoint({"torch", "numpy", "click", "sensevoiced.hub", "funasr", "av", "soundfile"})
