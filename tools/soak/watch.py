"""Looks at the daemon's processes every second: memory, descriptors, threads. Judges nothing."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import family

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at one process."""

    at_s: float
    """Since the load began."""
    requests: int
    """Ended until then, of all clients."""
    rss_bytes: int
    descriptors: int
    threads: int


def look(pid: int, at_s: float = 0.0, requests: int = 0) -> Sample | None:
    """What a process holds now; None where it has ended."""
    folder = Path("/proc") / str(pid)
    try:
        facts = dict(re.findall(r"^(VmRSS|Threads):\s+(\d+)", (folder / "status").read_text(), re.MULTILINE))
        descriptors = sum(1 for _ in (folder / "fd").iterdir())
    except OSError:
        return None
    if "VmRSS" not in facts:  # a zombie
        return None
    return Sample(at_s, requests, int(facts["VmRSS"]) * 1024, descriptors, int(facts["Threads"]))


class Watch(threading.Thread):
    """Samples of every process of a family, for as long as it is not told to stop."""

    def __init__(self, pid: int, requests: Callable[[], int]) -> None:
        """Watch `pid` and what it starts; `requests` counts."""
        super().__init__(name="watch", daemon=True)
        self.samples: dict[int, list[Sample]] = {}
        """By pid, in the order in which they appeared."""
        self._pid = pid
        self._requests = requests
        self._over = threading.Event()

    def run(self) -> None:
        """Look every second."""
        began_s, known = time.monotonic(), {self._pid}
        while not self._over.wait(EVERY_S):
            found = family(self._pid)
            # At its first look a child may not be itself yet: until exec it has its parent's memory.
            for pid in known.intersection(found):
                sample = look(pid, time.monotonic() - began_s, self._requests())
                if sample is not None:
                    self.samples.setdefault(pid, []).append(sample)
            known.update(found)

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join()


def rest(pid: int) -> dict[int, Sample]:
    """One look at each process of a family."""
    return {found: sample for found in family(pid) if (sample := look(found)) is not None}
