"""Starts a real daemon process on a private socket, watches it, and ends it.

Around a fake engine unless told otherwise.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness.wire_client import WireClient, memfd, texts

START_S = 120.0
FAKE = Path(__file__).with_name("fake_daemon.py")


def wait_until(condition, what, timeout_s=30.0):
    """Poll until the condition is true and give its value.

    The one place in the tests that waits by sleeping.
    """
    until = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < until, f"not within {timeout_s} s: {what}"
        time.sleep(0.005)
    return value


def script(*lines):
    """The bytes of a script for the fake front end; a string is an utterance of one second."""
    return "".join(
        json.dumps({"say": line} if isinstance(line, str) else line) + "\n" for line in lines
    ).encode()


class DaemonProcess:
    """A daemon of its own in `folder`. `settings` is TOML text; `environ` adds to a small environment."""

    def __init__(
        self,
        folder,
        *,
        settings="",
        environ=(),
        command=None,
        wrapper=(),
        pass_fds=(),
        socket=None,
        ready=True,
    ):
        self.folder = Path(folder)
        self.control = self.folder / "control"
        self.control.mkdir(parents=True, exist_ok=True)
        self.socket = socket or self.folder / "run" / "api.sock"
        self._pass_fds = pass_fds
        self.config = self.folder / "sensevoiced.toml"
        self.config.write_text(settings)
        self.log = self.folder / "log"
        command = command or [sys.executable, str(FAKE), str(self.control)]
        self._command = [*wrapper, *command, "--socket", str(self.socket), "--config", str(self.config)]
        self._environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "OMP_NUM_THREADS": "1",
            **dict(environ),
        }
        self.start(ready=ready)

    def start(self, *, ready=True):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=self._pass_fds,
            )
        if ready:
            self.wait_ready()

    def wait_ready(self):
        wait_until(lambda: self.process.poll() is not None or "ready after" in self.text(), "start", START_S)
        assert self.process.poll() is None, self.text()

    @property
    def pid(self):
        return self.process.pid

    def text(self):
        """The log so far."""
        return self.log.read_text()

    def client(self, **options):
        return WireClient(self.socket, **options)

    def open_gate(self, name):
        (self.control / name).touch()

    def engine_log(self):
        log = self.control / "engine.log"
        return log.read_text() if log.exists() else ""

    def wait_engine_at(self, gate):
        """Wait until the engine stands before a gate, in the middle of a batch."""
        wait_until(lambda: f"at {gate}\n" in self.engine_log(), f"engine at gate {gate}")

    def status(self):
        with self.client() as client:
            return client.status()

    def wait_status(self, condition, what):
        with self.client() as client:
            return wait_until(lambda: condition(client.status()), what)

    def descriptors(self):
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def threads(self):
        return int(self._proc_status("Threads"))

    def resident_bytes(self):
        return int(self._proc_status("VmRSS")) * 1024

    def peak_bytes(self):
        return int(self._proc_status("VmHWM")) * 1024

    def _proc_status(self, name):
        text = Path(f"/proc/{self.pid}/status").read_text()
        return re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1]

    def signal(self, number):
        self.process.send_signal(number)

    def wait_end(self, timeout_s=30.0):
        return self.process.wait(timeout_s)

    def stop(self):
        """End it the regular way; gives the exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.wait_end()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        return self.process.returncode

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Canary:
    """What must still hold after every abuse. Made before it, sung after it."""

    RSS_BYTES = 32 * 2**20
    ANSWER_S = 10.0
    """Milliseconds on a machine of its own; here it only tells slow from stuck."""

    def __init__(self, daemon):
        self.daemon = daemon
        self._sing()  # first use makes what stays: caches, threads
        self.pid = daemon.pid
        self.descriptors = daemon.descriptors()
        self.threads = daemon.threads()
        self.resident_bytes = daemon.resident_bytes()

    def _sing(self):
        with self.daemon.client(timeout_s=self.ANSWER_S) as client:
            fd = memfd(script("the canary", {"say": "sings on", "seconds": 2.0}))
            events = client.ask(1, fd)
            os.close(fd)
        assert texts(events) == ["the canary", "sings on"]
        assert events[-1]["duration"] == 3.0

    def check(self, rss_bytes=RSS_BYTES):
        """The same process answers in time, holds no more than before, and has seen no defect."""
        daemon = self.daemon
        assert daemon.process.poll() is None, daemon.text()
        assert daemon.pid == self.pid
        self._sing()
        wait_until(lambda: daemon.descriptors() <= self.descriptors, "descriptors back at baseline")
        wait_until(lambda: daemon.threads() <= self.threads, "threads back at baseline")
        assert daemon.status()["queue"]["jobs_active"] == 0
        assert "Traceback" not in daemon.text(), daemon.text()
        assert daemon.resident_bytes() <= self.resident_bytes + rss_bytes


def one_for_all(daemon_of, canary_of, settings):
    """Two fixtures: one daemon for all tests of a module, and that daemon with the canary after each test."""

    @pytest.fixture(scope="module")
    def shared(tmp_path_factory):
        daemon = daemon_of(tmp_path_factory.mktemp("daemon"), settings=settings)
        yield daemon
        daemon.kill()

    @pytest.fixture
    def daemon(shared):
        canary = canary_of(shared)
        yield shared
        canary.check()

    return shared, daemon
