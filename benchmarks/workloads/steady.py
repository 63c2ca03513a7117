"""100 warm requests in turns with a fixed computation of the same length: whose times vary more?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.noise import FixedWork
from benchmarks.records import ratio
from benchmarks.table import Table, failures, seconds, target

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.records import Record, Records
    from benchmarks.table import Target

NAME = "steady"
REQUESTS = 100
REQUEST, FIXED = "request", "fixed"
HEADER = ("", "p50", "p95", "p95/p50", "fixed p50", "fixed p95", "fixed p95/p50", "beyond noise", "n")
NOTE = (
    "A 5 s clip over a warm connection; fixed: equal matrix products in a process of their own, taking "
    "turns with the requests. beyond noise: p95/p50 of the requests over p95/p50 of the fixed computation."
)


def run(bench: Bench) -> None:
    """Each of ours by itself, with a computation that takes as long as its requests do."""
    clip = bench.audio.dense(5)
    count = min(REQUESTS, 20 * bench.rounds)
    for ours in bench.warm_ours(NAME):
        bench.say(f"{NAME}: {ours.name}")
        with bench.guarded(NAME, ours):
            usual = sorted(ours.one(clip).seconds for _ in range(5))[2]
            fixed = FixedWork(usual, bench.machine.threads)
            try:
                pairs = [(ours.one(clip).seconds, fixed.run()) for _ in range(count)]
            finally:
                fixed.close()
            bench.records.add(NAME, ours.name, REQUEST, [pair[0] for pair in pairs])
            bench.records.add(
                NAME, ours.name, FIXED, [pair[1] for pair in pairs], note=f"{fixed.products} products"
            )


def spread(record: Record | None) -> float | None:
    """The p95 over the p50."""
    return None if record is None else record.p95 / record.p50


def tables(records: Records) -> list[Table]:
    """Each of ours."""
    rows = []
    for name in records.contenders(NAME):
        request, fixed = records.get(NAME, name, REQUEST), records.get(NAME, name, FIXED)
        if request is None or fixed is None:
            continue
        beyond = ratio(spread(request), spread(fixed))
        rows.append(
            (
                name,
                seconds(request.p50),
                seconds(request.p95),
                f"{spread(request):.3f}",
                seconds(fixed.p50),
                seconds(fixed.p95),
                f"{spread(fixed):.3f}",
                f"{beyond:.3f}",
                str(len(request.values)),
            )
        )
    missing, sentences = failures(records.failed(NAME), HEADER)
    return [Table("How steady", HEADER, (*rows, *missing), (NOTE, *sentences))]


def targets(records: Records) -> list[Target]:
    """Line 5."""
    return [
        target(
            5,
            f"{REQUESTS} warm requests: p95/p50 over that of a fixed computation, {name}",
            ratio(spread(records.get(NAME, name, REQUEST)), spread(records.get(NAME, name, FIXED))),
            most=1.15,
        )
        for name in records.contenders(NAME)
    ]
