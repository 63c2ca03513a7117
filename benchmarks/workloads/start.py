"""From the start of the process to ready and to the first answer, beside a bare `import torch`."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.contender import environment
from benchmarks.measure import cpu_s
from benchmarks.ours import Ours
from benchmarks.records import ratio
from benchmarks.table import Table, Target, failures, least_target, seconds, target, times

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.contender import Contender
    from benchmarks.records import Records

NAME = "start"
READY, ANSWER, COLD, CPU = "ready", "first answer", "very first", "CPU"
IMPORT = "import torch"
HEADER = ("", "ready", "first answer", "very first", "CPU", "service-1/it", "n")
NOTE = (
    "Seconds from the start of the process. very first: ours with nothing kept on disk from an earlier "
    "start; other columns are medians of later ones. CPU: of all its processes until the first answer."
)


def run(bench: Bench) -> None:
    """Start everyone; ours as often as there are rounds, in turns. All of them stay for what follows."""
    clip = bench.audio.dense(5)
    with (bench.machine.model / "model.pt").open("rb") as weights:
        while weights.read(2**24):
            pass  # everybody finds the checkpoint in the page cache
    contenders = [c for c in bench.contenders if not c.name.startswith(("svctl-", "funasr-cli"))]
    contenders = bench.present(NAME, contenders)
    samples: dict[tuple[str, str], list[float]] = {}

    def work(contender: Contender, number: int) -> float:
        if number and not isinstance(contender, Ours):
            return float("inf")
        bench.say(f"{NAME}: round {number + 1}, {contender.name}")
        bench.retire([contender])
        started = contender.start(clip)
        bench.running.add(contender.name)
        samples.setdefault((contender.name, READY), []).append(started.ready_s)
        samples.setdefault((contender.name, ANSWER), []).append(started.first_answer_s)
        samples.setdefault((contender.name, CPU), []).append(cpu_s(contender.processes()))
        return 0.0

    bench.rounds_of(NAME, contenders, 1, work)  # peers once; ours fill what they keep on disk
    firsts = {key: values.pop(0) for key, values in samples.items() if key[0].startswith("ours-")}
    imports = []
    for number in range(2 if bench.quick else bench.rounds):
        imports.append(_import_torch())
        bench.rounds_of(NAME, [c for c in contenders if isinstance(c, Ours)], 1, work)
        bench.say(f"{NAME}: round {number + 2} done")
    bench.records.add(NAME, IMPORT, READY, imports)
    for (name, what), values in samples.items():
        bench.records.add(NAME, name, what, values)
    for (name, what), value in firsts.items():
        if what == ANSWER:
            bench.records.add(NAME, name, COLD, [value])


def _import_torch() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True, env=environment())
    return time.perf_counter() - began


def tables(records: Records) -> list[Table]:
    """Medians."""
    rows = []
    for name in records.contenders(NAME):
        ready, answer, cold, cpu = (records.get(NAME, name, what) for what in (READY, ANSWER, COLD, CPU))
        to_service = ratio(records.value(NAME, "service-1", ANSWER), answer.p50 if answer else None)
        rows.append(
            (
                name,
                *(seconds(r.p50 if r else None) for r in (ready, answer, cold, cpu)),
                times(to_service),
                str(len(ready.values)) if ready else "-",
            )
        )
    missing, sentences = failures(records.failed(NAME), HEADER)
    return [Table("Start (checkpoint in the page cache)", HEADER, (*rows, *missing), (NOTE, *sentences))]


def targets(records: Records) -> list[Target]:
    """Line 3."""
    service = records.value(NAME, "service-1", ANSWER)
    bare = records.value(NAME, IMPORT, READY)
    found = []
    for name in [n for n in records.contenders(NAME) if n.startswith("ours-")]:
        answer, ready = records.value(NAME, name, ANSWER), records.value(NAME, name, READY)
        over = ready - bare if ready is not None and bare is not None else None
        found += [
            least_target(
                3, f"first answer after start, {name} against the service", ratio(service, answer), least=6
            ),
            target(3, f"ready after a bare import torch, {name}", over, most=1.5, form="{:+.2f} s"),
        ]
    return found
