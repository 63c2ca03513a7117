"""The daemon of a soak: a real one with the demo model, a private socket and settings of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svctl.connect import connect

if TYPE_CHECKING:
    from svctl.connection import Connection

BIN = Path(sys.executable).parent
START_S, STOP_S = 300.0, 60.0
"""Longest start and end, after which something is taken to be stuck."""
POLL_S = 0.1
ABSENT_S = 1.0
"""A socket is bound a moment before it listens."""

IDLE_S, FRAME_S, WRITE_S = 8.0, 2.0, 2.0
"""Deadlines that the load runs into on purpose, shorter than the shipped ones."""
VALID = f"""\
log_level = "{{log_level}}"
[frontend]
idle_child_s = 15
[serving]
hello_timeout_s = {FRAME_S}
frame_timeout_s = {FRAME_S}
idle_timeout_s = {IDLE_S}
write_timeout_s = {WRITE_S}
max_write_buffer_bytes = {2 * 2**20}
max_jobs_per_connection = {{jobs}}
"""
ROOMY = VALID.format(log_level="warning", jobs=32)
TIGHT = VALID.format(log_level="error", jobs=3)
"""Whoever pipelines more than three is told `busy`."""
INVALID = (
    "[serving\n",
    "[serving]\nmax_jobs_per_connectoin = 3\n",
    "[serving]\nidle_timeout_s = -1\n",
    'log_level = "loud"\n',
    "\0\0\0",
    "[serving]\nmax_jobs = 1.5\n",
)


class Daemon:
    """One daemon in `folder`, from start to stop."""

    def __init__(self, folder: Path) -> None:
        """Start it."""
        self.socket = str(folder / "api.sock")
        self._config = folder / "sensevoiced.toml"
        self.log = folder / "log"
        self.configure(ROOMY)
        command = [str(BIN / "sensevoiced"), "--config", str(self._config), "--socket", self.socket]
        names = ("PATH", "HOME", "LANG", "PYTHONPATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--model", "demo", "--cache-dir", str(folder / "cache")],
                env={name: os.environ[name] for name in names if name in os.environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process that serves and computes."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it lives."""
        return self._process.poll() is None

    def connect(self) -> Connection:
        """A connection. Raises WireError."""
        return connect(self.socket, patience_s=START_S, absent_s=ABSENT_S)

    def status(self) -> dict[str, Any]:
        """What it says of itself. Raises WireError."""
        client = self.connect()
        try:
            status: dict[str, Any] = client.call("status", "status", patience_s=START_S)["status"]
            return status
        finally:
            client.close()

    def wait_ready(self) -> None:
        """Wait for the model. Raises RuntimeError with the log's end, and WireError."""
        until_s = time.monotonic() + START_S
        while self.running and time.monotonic() < until_s:
            if Path(self.socket).exists() and self.status()["state"] == "ready":
                return
            time.sleep(POLL_S)
        raise RuntimeError(f"The daemon does not come up: {self.log.read_text(errors='replace')[-500:]}")

    def configure(self, settings: str) -> None:
        """Put other settings in place; they count from the next reload on."""
        part = self._config.with_suffix(".part")
        part.write_text(settings)
        part.replace(self._config)

    def hang_up(self) -> None:
        """Send SIGHUP."""
        if self.running:
            self._process.send_signal(signal.SIGHUP)

    def stop(self) -> int:
        """End it as systemd does; gives the exit status, negative for a signal. May be called twice."""
        if self._process.returncode is not None:
            return self._process.returncode
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.returncode
