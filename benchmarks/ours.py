"""Our own contenders: a daemon for each precision, asked over a warm connection, or by `svctl` processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.asking import ANSWER_S, Asking, Notified, ask
from benchmarks.clients import burst
from benchmarks.contender import Answer, Burst, ContenderError, Machine, Started, environment
from benchmarks.measure import family
from sensevoiced.config import PRECISIONS
from svctl.connect import connect
from svctl.wire import WireError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from svctl.connection import Connection

    Message = dict[str, Any]

BIN = Path(sys.executable).parent
START_S, STOP_S = 300.0, 40.0
"""Longest start and end, after which something is taken to be stuck."""
FRESH_S = 200.0
"""A connection is made anew before the daemon closes it for idling (300 s)."""


class Ours:
    """One daemon."""

    def __init__(self, machine: Machine, precision: str, *, model: str = "", name: str = "") -> None:
        """Describe one; `model` is a folder or `demo` where it is not the machine's checkpoint."""
        self.name = name or f"ours-{precision}"
        self.precision = precision
        self.folder = machine.work / self.name
        self.socket = self.folder / "api.sock"
        self._machine = machine
        self._model = model or str(machine.model)
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Connection | None = None
        self._used_s = 0.0

    @property
    def missing(self) -> str | None:
        """Why it cannot run here."""
        if self.precision not in PRECISIONS:
            return f"this version of sensevoiced does not know the precision {self.precision}"
        return None

    @property
    def pid(self) -> int:
        """The daemon's own process, which holds the engine."""
        if self._process is None:
            raise ContenderError("the daemon does not run")
        return self._process.pid

    def command(self) -> list[str]:
        """How the daemon is started; settings of this machine's owner have no say."""
        config = self.folder / "sensevoiced.toml"
        self.folder.mkdir(parents=True, exist_ok=True)
        config.touch()
        return [
            *(str(BIN / "sensevoiced"), "--config", str(config), "--socket", str(self.socket)),
            *("--model", self._model, "--vad", str(self._machine.vad)),
            *("--device", self._machine.device, "--precision", self.precision),
        ]

    def environment(self) -> dict[str, str]:
        """Variables of the daemon: what it keeps on disk between starts is this run's own."""
        cache = self._machine.work / "ours-cache"
        cache.mkdir(parents=True, exist_ok=True)
        return environment(XDG_CACHE_HOME=str(cache), CACHE_DIRECTORY=str(cache))

    def start(self, first: Path) -> Started:
        """Start; the first request is sent as soon as the socket is there, as `svctl --wait` does."""
        self.stop()
        command = self.command()
        self.socket.unlink(missing_ok=True)
        notified = Notified(self.folder / "notify")
        began = time.perf_counter()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env={**self.environment(), "NOTIFY_SOCKET": str(notified.path)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._client = self._connected(began + START_S)
            self._used_s = time.monotonic()
            ask(self._client, first)
            answered = time.perf_counter()
            ready = notified.ready(START_S)
        except ContenderError as error:
            self.stop()
            raise ContenderError(f"{error} Its log ends with: {self.log_tail()}") from error
        except BaseException:
            self.stop()
            raise
        finally:
            notified.close()
        return Started(ready - began, answered - began)

    def one(self, clip: Path) -> Answer:
        """One request over the warm connection, from opening the file to `done`."""
        return self.ask(clip)[0]

    def ask(self, clip: Path) -> tuple[Answer, Message]:
        """The same, with the daemon's `done`."""
        try:
            return ask(self._warm(), clip)
        except ContenderError as error:
            raise ContenderError(f"{error} Its log ends with: {self.log_tail()}") from error

    def many(self, clips: Sequence[Path], clients: int) -> Burst:
        """Each client has a connection of its own."""

        def open_client() -> Asking:
            return Asking(self.connected())

        return burst(clips, clients, open_client)

    def connected(self) -> Connection:
        """A connection of its own."""
        try:
            return connect(str(self.socket), patience_s=60.0)
        except WireError as error:
            raise ContenderError(error.message) from error

    def status(self) -> Message:
        """What the daemon says of itself."""
        answer = self._warm().call("status", "status", patience_s=60.0)
        status: Message = answer["status"]
        return status

    def processes(self) -> list[int]:
        """The daemon and its front end."""
        return family(self._process.pid) if self._process is not None else []

    def stop(self) -> None:
        """End it as systemd does: SIGTERM, then SIGKILL for all of it."""
        if self._client is not None:
            self._client.close()
            self._client = None
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def log_tail(self) -> str:
        """The last line that it wrote, for a failure's sentence."""
        log = self.folder / "log"
        lines = log.read_text(errors="replace").split("\n") if log.exists() else []
        return next((line for line in reversed(lines) if line.strip()), "no word")

    def _connected(self, deadline: float) -> Connection:
        while self._process is not None and self._process.poll() is None:
            try:
                return connect(str(self.socket), patience_s=60.0)
            except WireError as error:
                if error.code != "unavailable" or time.perf_counter() > deadline:
                    raise ContenderError(error.message) from error
            time.sleep(0.01)
        raise ContenderError("the daemon ended at its start.")

    def _warm(self) -> Connection:
        if self._client is None or time.monotonic() - self._used_s > FRESH_S:
            if self._client is not None:
                self._client.close()
            self._client = self.connected()
        self._used_s = time.monotonic()
        return self._client


class Command:
    """The same daemon, asked as its user does at a shell: one `svctl transcribe FILE` for each request."""

    def __init__(self, ours: Ours) -> None:
        """Ask `ours`, which somebody else starts and stops."""
        self.name = ours.name.replace("ours-", "svctl-")
        self.precision = ours.precision
        self._ours = ours

    @property
    def missing(self) -> str | None:
        """Why it cannot run here."""
        return self._ours.missing

    def start(self, first: Path) -> Started:
        """Have the daemon running."""
        if self._ours.processes():
            return Started(0.0, self.one(first).seconds)
        return self._ours.start(first)

    def one(self, clip: Path) -> Answer:
        """One process, from its start to its end."""
        return self.run([clip])

    def run(self, clips: Sequence[Path]) -> Answer:
        """One process for all clips."""
        began = time.perf_counter()
        done = subprocess.run(
            [
                *(str(BIN / "svctl"), "transcribe", "--socket", str(self._ours.socket), "-f", "raw"),
                *map(str, clips),
            ],
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=ANSWER_S,
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            raise ContenderError(f"svctl ended with {done.returncode}: {done.stderr.decode()[-200:]}")
        return Answer(seconds, done.stdout.decode())

    def many(self, clips: Sequence[Path], clients: int) -> Burst:
        """Not measured this way."""
        raise NotImplementedError

    def processes(self) -> list[int]:
        """Those of the daemon."""
        return self._ours.processes()

    def stop(self) -> None:
        """Nothing stays of a `svctl`."""
