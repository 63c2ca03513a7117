"""First answer after the machine has started: nothing of program or model is in the page cache."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contender import ContenderError
from benchmarks.records import ratio
from benchmarks.table import Table, Target, failures, least_target, seconds, times

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.contender import Contender
    from benchmarks.records import Records

NAME = "cold"
READY, ANSWER = "ready", "first answer"
HEADER = ("", "ready", "first answer", "service-1/it", "n")
NOTE = (
    "The kernel drops its page cache before each start, which only root can ask for; what a virtual "
    "machine's host still holds is beyond it. Each contender in turn, alone on the machine."
)
DROP = Path("/proc/sys/vm/drop_caches")
ROUNDS = 2
SETTLE_S = 1.0
"""The kernel frees its pages in the background."""


def run(bench: Bench) -> None:
    """Start those that serve, each from the disk."""
    if os.geteuid() != 0 or not os.access(DROP, os.W_OK):
        raise ContenderError("only root can empty the page cache")
    contenders = bench.present(NAME, bench.chosen("ours-", "stock", "service-1", "funasr-server"))
    bench.retire(bench.contenders)
    clip = bench.audio.dense(5)
    samples: dict[tuple[str, str], list[float]] = {}

    def work(contender: Contender, number: int) -> float:
        bench.say(f"{NAME}: round {number + 1}, {contender.name}")
        os.sync()
        DROP.write_text("3\n")
        time.sleep(SETTLE_S)
        try:
            started = contender.start(clip)
        finally:
            contender.stop()
        samples.setdefault((contender.name, READY), []).append(started.ready_s)
        samples.setdefault((contender.name, ANSWER), []).append(started.first_answer_s)
        return 0.0

    bench.rounds_of(NAME, contenders, min(ROUNDS, bench.rounds), work)
    for (name, what), values in samples.items():
        bench.records.add(NAME, name, what, values)


def tables(records: Records) -> list[Table]:
    """Medians."""
    rows = []
    for name in records.contenders(NAME):
        ready, answer = records.get(NAME, name, READY), records.get(NAME, name, ANSWER)
        if ready and answer:
            to_service = ratio(records.value(NAME, "service-1", ANSWER), answer.p50)
            rows.append(
                (name, seconds(ready.p50), seconds(answer.p50), times(to_service), str(len(ready.values)))
            )
    missing, sentences = failures(records.failed(NAME), HEADER)
    return [Table("Start from a cold disk", HEADER, (*rows, *missing), (NOTE, *sentences))]


def targets(records: Records) -> list[Target]:
    """Line 3, after a boot."""
    service = records.value(NAME, "service-1", ANSWER)
    return [
        least_target(
            3,
            f"first answer after a cold start, {name} against the service",
            ratio(service, records.value(NAME, name, ANSWER)),
            least=6,
        )
        for name in records.contenders(NAME)
        if name.startswith("ours-")
    ]
