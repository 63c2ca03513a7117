"""Peers that are a library in a script's own process: stock FunASR and sherpa-onnx; one request at a time."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.contender import Answer, Burst, ContenderError, Machine, Started
from benchmarks.peers.export import sherpa_onnx
from benchmarks.peers.process import PYTHON, WORKERS, Group

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass
class Worker:
    """One script of `workers/`, asked over its stdin."""

    name: str
    machine: Machine
    missing: str | None
    precision: str = "float32"
    _group: Group | None = None

    def command(self) -> list[str | Path]:
        """The script and its arguments."""
        raise NotImplementedError

    def start(self, first: Path) -> Started:
        """Start the script and have it answer."""
        self.stop()
        command = self.command()
        begun = time.perf_counter()
        self._group = Group([PYTHON, *command], self.machine.work / f"{self.name}.log", talking=True)
        try:
            self._read()
            ready_s = time.perf_counter() - begun
            self.one(first)
        except BaseException:
            self.stop()
            raise
        return Started(ready_s, time.perf_counter() - begun)

    def one(self, clip: Path) -> Answer:
        """Have one clip answered; the clock is the script's."""
        group = self._running()
        try:
            group.stdin.write(json.dumps({"clip": str(clip.resolve())}) + "\n")
            group.stdin.flush()
        except OSError:
            raise group.failure(f"{self.name} ended") from None
        answer = self._read()
        if "error" in answer:
            raise ContenderError(answer["error"])
        tokens = answer["tokens"]
        return Answer(answer["seconds"], answer["text"], None if tokens is None else tuple(tokens))

    def many(self, clips: Sequence[Path], clients: int) -> Burst:
        """One after another: a script has no clients."""
        if clients != 1:
            raise NotImplementedError("one at a time")
        begun = time.perf_counter()
        latencies, errors = [], []
        for clip in clips:
            try:
                latencies.append(self.one(clip).seconds)
            except ContenderError as error:
                errors.append(str(error))
        return Burst(time.perf_counter() - begun, tuple(latencies), tuple(errors))

    def processes(self) -> list[int]:
        """The script's process."""
        return self._group.pids() if self._group else []

    def stop(self) -> None:
        """End the script."""
        group, self._group = self._group, None
        if group:
            group.end()

    def _running(self) -> Group:
        if self._group is None:
            raise ContenderError(f"{self.name} is not running")
        return self._group

    def _read(self) -> dict[str, Any]:
        group = self._running()
        line = group.stdout.readline()
        if not line:
            raise group.failure(f"{self.name} ended")
        found: dict[str, Any] = json.loads(line)
        return found


@dataclass
class Stock(Worker):
    """`funasr.AutoModel`, on its own choice of threads (four) unless `tuned` to the machine's cores."""

    tuned: bool = False

    def command(self) -> list[str | Path]:
        """The script and its arguments."""
        machine = self.machine
        threads = machine.threads if self.tuned else 0
        return [WORKERS / "stock.py", machine.model, machine.vad, machine.device, str(threads)]


class Sherpa(Worker):
    """sherpa-onnx on an export of the same weights."""

    def command(self) -> list[str | Path]:
        """The script and its arguments; the export is made now, before the clock runs."""
        model = sherpa_onnx(self.machine, self.precision)
        return [WORKERS / "sherpa.py", model, model.with_name("tokens.txt"), str(self.machine.threads)]
