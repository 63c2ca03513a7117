"""The `funasr` command line: a process a call, which loads everything every time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from benchmarks.contender import Answer, Burst, Started
from benchmarks.peers.hub import hub
from benchmarks.peers.process import BIN, Group

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.contender import Machine


@dataclass
class FunasrCommand:
    """`funasr FILE...`, at its own settings; nothing is resident between two calls."""

    name: str
    machine: Machine
    missing: str | None
    precision: str = "float32"
    _group: Group | None = None

    def start(self, first: Path) -> Started:
        """Transcribe `first`. It is ready for a file whenever it is called, and has to load for each."""
        return Started(0.0, self.one(first).seconds)

    def one(self, clip: Path) -> Answer:
        """Run the command on one file, start-up included."""
        begun = time.perf_counter()
        (text, ended), *_ = self._run([clip])
        return Answer(ended - begun, text)

    def many(self, clips: Sequence[Path], clients: int) -> Burst:
        """Give all files to one call, as its user would: it loads once.

        A latency is the time since the answer before.
        """
        if clients != 1:
            raise NotImplementedError("one at a time")
        begun = time.perf_counter()
        moments = [begun, *(moment for _, moment in self._run(clips))]
        latencies = tuple(after - before for before, after in pairwise(moments))
        return Burst(time.perf_counter() - begun, latencies)

    def processes(self) -> list[int]:
        """The command while it runs."""
        return self._group.pids() if self._group else []

    def stop(self) -> None:
        """End a call that still runs."""
        group, self._group = self._group, None
        if group:
            group.end()

    def _run(self, clips: Sequence[Path]) -> list[tuple[str, float]]:
        """Give the text of each file and when it was there; the last one when the process had ended."""
        files = [clip.resolve() for clip in clips]
        self._group = group = Group(
            [BIN / "funasr", *files, "--model", "sensevoice", "--device", self.machine.device],
            self.machine.work / f"{self.name}.log",
            cwd=hub(self.machine),
            talking=True,
        )
        try:
            lines = [(line.strip(), time.perf_counter()) for line in group.stdout]
            if group.wait() or len(lines) < len(clips):
                raise group.failure(f"{self.name} failed")
        finally:
            self.stop()
        *lines, (text, _) = lines[-len(clips) :]  # before them FunASR prints its version
        return [*lines, (text, time.perf_counter())]
