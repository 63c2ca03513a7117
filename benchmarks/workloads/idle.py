"""What everybody costs who is only kept warm: CPU in a minute, and memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.measure import cpu_s, memory
from benchmarks.ours import Command
from benchmarks.table import Table, failures, mebibytes

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.records import Records
    from benchmarks.table import Target

NAME = "idle"
MINUTE_S = 60.0
SETTLE_S = 2.0
"""After the last request; children's and threads' last chores."""
CPU, RSS, PSS, PROCESSES = "CPU in a minute", "RSS", "PSS", "processes"
HEADER = ("", "CPU in a minute", "RSS", "PSS", "processes")


def run(bench: Bench) -> None:
    """Leave all of them alone at once, for a minute."""
    contenders = [c for c in bench.contenders if not isinstance(c, Command) and c.name != "funasr-cli"]
    contenders = bench.warm(NAME, contenders)
    bench.say(f"{NAME}: a minute's rest")
    time.sleep(SETTLE_S)
    before = {c.name: cpu_s(c.processes()) for c in contenders}
    time.sleep(MINUTE_S)
    for contender in contenders:
        pids = contender.processes()
        held = memory(pids)
        bench.records.add(NAME, contender.name, CPU, [cpu_s(pids) - before[contender.name]])
        bench.records.add(NAME, contender.name, RSS, [held.rss], unit="bytes")
        bench.records.add(NAME, contender.name, PSS, [held.pss], unit="bytes")
        bench.records.add(NAME, contender.name, PROCESSES, [len(pids)], unit="processes")


def tables(records: Records) -> list[Table]:
    """Each of them."""
    rows = []
    for name in records.contenders(NAME):
        cpu, rss, pss, processes = (records.value(NAME, name, what) for what in (CPU, RSS, PSS, PROCESSES))
        rows.append(
            (name, f"{(cpu or 0) * 1000:.0f} ms", mebibytes(rss), mebibytes(pss), f"{processes or 0:.0f}")
        )
    missing, sentences = failures(records.failed(NAME), HEADER)
    note = "After the workloads above, nobody asking; /proc counts CPU in steps of 10 ms."
    return [Table("Idle", HEADER, (*rows, *missing), (note, *sentences))]


def targets(_records: Records) -> list[Target]:
    """Nothing is aimed at here."""
    return []
