"""The daemon as a process: what it reports, and how its command behaves."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from harness.daemon import DaemonProcess, script
from harness.wire_client import memfd, texts

import sensevoiced


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


def test_the_same_file_gives_the_same_answer(daemon):
    """20 times alone: identical but for the timings."""
    with daemon.client() as client:
        answers = []
        for request in range(20):
            events = client.ask(request, memfd(script("again", "and again")))
            answers.append([{k: v for k, v in e.items() if k not in ("id", "timings")} for e in events])
    assert answers == [answers[0]] * 20


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
