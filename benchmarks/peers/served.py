"""Peers that are HTTP servers, the article's service and FunASR's own; clocked at the client."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.clients import burst
from benchmarks.contender import ContenderError, Started
from benchmarks.peers.hub import hub
from benchmarks.peers.process import BIN, PYTHON, WORKERS, Group
from benchmarks.peers.upload import HOST, Upload

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.contender import Answer, Burst, Machine

START_S = 600.0
"""Four workers that load at once on two cores take minutes."""
POLL_S = 0.02
WARM_ROUNDS = 50
"""Rounds of requests until every worker has answered: which one gets a connection is the kernel's choice."""


@dataclass
class Server:
    """A server on a port of its own."""

    name: str
    machine: Machine
    missing: str | None
    precision: str = "float32"
    workers: int = 1
    _group: Group | None = None
    _client: Upload | None = None

    def launch(self, port: int, log: Path) -> Group:
        """Start the server."""
        raise NotImplementedError

    def client(self, port: int) -> Upload:
        """Give a client of it."""
        raise NotImplementedError

    def start(self, first: Path) -> Started:
        """Start it, have `first` answered, and then by every worker, so that all are warm."""
        self.stop()
        with socket.create_server((HOST, 0)) as free:
            port = free.getsockname()[1]
        self._client = client = self.client(port)
        begun = time.perf_counter()
        self._group = group = self.launch(port, self.machine.work / f"{self.name}.log")
        try:
            self._wait(group, client)
            ready_s = time.perf_counter() - begun
            client.one(first)
            first_answer_s = time.perf_counter() - begun
            if self.workers > 1:
                self._warm(client, first)
        except BaseException:
            self.stop()
            raise
        return Started(ready_s, first_answer_s)

    def one(self, clip: Path) -> Answer:
        """Upload one clip and wait for its text."""
        return self._running().one(clip)

    def many(self, clips: Sequence[Path], clients: int) -> Burst:
        """Upload all of them from so many threads."""
        return burst(clips, clients, self._running)

    def processes(self) -> list[int]:
        """The server and its workers."""
        return self._group.pids() if self._group else []

    def stop(self) -> None:
        """End all of them."""
        group, self._group, self._client = self._group, None, None
        if group:
            group.end()

    def _running(self) -> Upload:
        if self._client is None:
            raise ContenderError(f"{self.name} is not running")
        return self._client

    def _wait(self, group: Group, client: Upload) -> None:
        """Poll until it answers."""
        until = time.monotonic() + START_S
        while not client.healthy():
            if group.status() is not None or time.monotonic() > until:
                raise group.failure(f"{self.name} did not start")
            time.sleep(POLL_S)

    def _warm(self, client: Upload, clip: Path) -> None:
        """Send requests at once until each worker has answered one."""
        seen: set[int] = set()
        with ThreadPoolExecutor(2 * self.workers) as pool:
            for _ in range(WARM_ROUNDS):
                seen.update(answer["pid"] for answer in pool.map(client.post, [clip] * (2 * self.workers)))
                if len(seen) == self.workers:
                    return
        raise ContenderError(f"only {len(seen)} of {self.workers} workers of {self.name} ever answered")


@dataclass
class Service(Server):
    """The article's FastAPI app under uvicorn, as the article has it or `tuned` to the machine's cores."""

    tuned: bool = False

    def launch(self, port: int, log: Path) -> Group:
        """Start uvicorn and its workers."""
        threads = {"BENCH_THREADS": str(max(1, self.machine.threads // self.workers))} if self.tuned else {}
        app = (PYTHON, "-m", "uvicorn", "service:app", "--app-dir", WORKERS, "--log-level", "warning")
        where = ("--host", HOST, "--port", str(port), "--workers", str(self.workers))
        return Group(
            [*app, *where],
            log,
            BENCH_MODEL=str(self.machine.model),
            BENCH_VAD=str(self.machine.vad),
            BENCH_DEVICE=self.machine.device,
            **threads,
        )

    def client(self, port: int) -> Upload:
        """Give a client of the app's one endpoint."""
        return Upload(port, "/transcribe")


class FunasrServer(Server):
    """`funasr-server` with the model that its documentation names for a CPU, at its own settings."""

    def launch(self, port: int, log: Path) -> Group:
        """Start it where it finds its models."""
        where = ("--host", HOST, "--port", str(port), "--device", self.machine.device)
        return Group([BIN / "funasr-server", "--model", "sensevoice", *where], log, cwd=hub(self.machine))

    def client(self, port: int) -> Upload:
        """Give a client of its OpenAI endpoint, which by default would answer with another model."""
        return Upload(port, "/v1/audio/transcriptions", {"model": "sensevoice"})
