"""A way to run svctl as its users do, and a scripted daemon for it to talk to."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.daemon import DaemonProcess, wait_until
from harness.fake_server import FakeServer

import svctl as package
from sensevoiced.config import ConfigError
from sensevoiced.models import find_asr

RUN_S = 300.0
"""No run takes a second; the machine may be busy with other things, and only a hang should fail."""
LOAD_S = 300.0
"""Importing torch and warming up take 5 s; a machine that trains a model beside may need many times that."""


@pytest.fixture
def environment(tmp_path):
    """An environment in which svctl finds no daemon but the test's, and itself in every folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SENSEVOICE", "XDG_"))}
    return kept | {
        "PYTHONPATH": str(Path(package.__file__).parents[1]),
        "SENSEVOICE_SOCKET": str(tmp_path / "api.sock"),
        "LC_ALL": "C",
    }


@pytest.fixture
def on_path(environment, tmp_path):
    """An environment in which svctl is a command."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "svctl"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m svctl "$@"\n')
    command.chmod(0o755)
    return environment | {"PATH": f"{folder}:{environment['PATH']}"}


@pytest.fixture
def start(tmp_path, environment):
    """Start svctl with pipes; the test ends it."""
    started = []

    def run(*words, env=None, program=("-m", "svctl"), **settings):
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
        command = [sys.executable, *program, *map(os.fspath, words)]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment | (env or {}), **pipes)
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def svctl(start):
    """Run svctl to its end: exit status, standard output and standard error as text."""

    def run(*words, data=None, **settings):
        if data is not None:
            settings["stdin"] = subprocess.PIPE
        process = start(*words, **settings)
        out, err = process.communicate(data, timeout=RUN_S)
        return process.returncode, (out or b"").decode(), (err or b"").decode()

    return run


@pytest.fixture
def serve(tmp_path):
    """Start a scripted daemon on the socket that svctl looks at."""
    servers = []

    def run(script=None, **settings):
        server = FakeServer(tmp_path / "api.sock", script, **settings).__enter__()
        servers.append(server)
        return server

    yield run
    for server in servers:
        server.__exit__(None, None, None)


@pytest.fixture
def server(serve):
    """A daemon that transcribes every file as the text that it holds."""
    return serve()


@pytest.fixture
def obey_modes():
    """Settings of a process for which file modes count, also where root runs the tests."""
    prctl = ctypes.CDLL(None).prctl

    def drop():
        # root reads everything by these two capabilities; without them it is told EACCES like everybody
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; takes effect with exec

    return {"preexec_fn": drop} if os.geteuid() == 0 else {}


@pytest.fixture
def files(tmp_path):
    """Two recordings that read as two lines and one line of text."""
    (tmp_path / "first.wav").write_text("hello\nworld")
    (tmp_path / "second.wav").write_text("你好", encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A real daemon with the demo model, as `make demo` starts it."""
    try:
        find_asr("demo", Path("/nonexistent"))
    except ConfigError as error:
        pytest.skip(f"the demo model is not built: {error}")
    command = [sys.executable, "-m", "sensevoiced", "serve", "--model", "demo", "--device", "cpu"]
    process = DaemonProcess(tmp_path_factory.mktemp("demo"), command=command, ready=False)
    try:
        wait_until(
            lambda: process.process.poll() is not None or "ready after" in process.text(), "ready", LOAD_S
        )
        yield process
        assert process.stop() == 0
    finally:
        process.kill()
    assert "Traceback" not in process.text()


@pytest.fixture
def ask_demo(svctl, demo):
    """Run svctl against the daemon with the demo model."""
    return lambda *words, **settings: svctl(*words, env={"SENSEVOICE_SOCKET": str(demo.socket)}, **settings)
