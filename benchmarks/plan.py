"""Which workloads there are, in the order in which they run, and which of them a quick run takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from benchmarks.workloads import (
    clip,
    cold,
    folder,
    frontend,
    idle,
    long,
    memory,
    ping,
    precision,
    restart,
    several,
    stages,
    start,
    steady,
)

if TYPE_CHECKING:
    from benchmarks.bench import Workload

WORKLOADS = cast(
    "tuple[Workload, ...]",
    (
        # with the peers running
        *(start, clip, several, folder, long, idle),
        # ours alone: the peers have ended by then
        *(stages, steady, ping, memory, restart, frontend, precision, cold),
    ),
)
LAST_WITH_PEERS = idle.NAME
QUICK = (start.NAME, clip.NAME, ping.NAME)
QUICK_CONTENDERS = ("ours-float32", "ours-int8", "stock")
