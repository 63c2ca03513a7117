"""What the engine process holds: after loading, with four clients at once, and over 500 requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.measure import memory
from benchmarks.records import slope_per_100
from benchmarks.table import Table, Target, failures, mebibytes, target

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.measure import Memory
    from benchmarks.ours import Ours
    from benchmarks.records import Records

NAME = "memory"
REQUESTS = 500
EVERY = 10
"""Requests between two looks at the memory."""
SETTLED = 50
"""Requests of all lengths after which allocators and libraries have filled up: what grows then is a leak."""
CLIENTS = 4
LOADED, SHARED, AFTER = "loaded", "four clients", "500 requests"
DRIFT = "RSS over 500 requests"
KINDS = ("rss", "pss", "anonymous", "mapped", "peak")
LIMITS = {"ours-float32": 1_250, "ours-int8": 750}
"""MiB of the engine process."""
HEADER = ("", "when", "RSS", "PSS", "anonymous", "file-mapped", "peak RSS", "front end RSS")
NOTE = (
    "The daemon's own process, which holds the engine; file-mapped pages are the kernel's to drop and read "
    "again. front end: its child processes. Four clients send 16 clips of 15 s."
)
DRIFT_HEADER = ("", "before", "after 50", "after 500", "moved by", "after 50 by", "per 100 then")


def run(bench: Bench) -> None:
    """One daemon after another, each started afresh."""
    for ours in bench.ours:
        bench.retire([ours])
    for ours in bench.ours:
        with bench.guarded(NAME, ours):
            _one(bench, ours)
        bench.retire([ours])


def _one(bench: Bench, ours: Ours) -> None:
    bench.say(f"{NAME}: {ours.name}, loading")
    ours.start(bench.audio.dense(5))
    _note(bench.records, ours, LOADED)
    bench.say(f"{NAME}: {ours.name}, four clients")
    found = ours.many([bench.audio.dense(15, number % 4) for number in range(4 * CLIENTS)], CLIENTS)
    if found.errors:
        bench.records.fail(NAME, ours.name, f"four clients: {found.errors[0]}")
    _note(bench.records, ours, SHARED)
    resident = [memory([ours.pid]).rss]
    for number, clip in enumerate(bench.audio.mixed(REQUESTS), 1):
        ours.one(clip)
        if number % EVERY == 0:
            resident.append(memory([ours.pid]).rss)
        if number % 100 == 0:
            bench.say(f"{NAME}: {ours.name}, {number} requests")
    bench.records.add(NAME, ours.name, DRIFT, resident, unit="bytes", note=f"every {EVERY} requests")
    _note(bench.records, ours, AFTER)


def _note(records: Records, ours: Ours, when: str) -> None:
    held: Memory = memory([ours.pid])
    for kind in KINDS:
        records.add(NAME, ours.name, f"{when}: {kind}", [getattr(held, kind)], unit="bytes")
    children = memory([pid for pid in ours.processes() if pid != ours.pid])
    records.add(NAME, ours.name, f"{when}: front end", [children.rss], unit="bytes")


def tables(records: Records) -> list[Table]:
    """By moment, and over the 500 requests."""
    rows, drifts = [], []
    for name in records.contenders(NAME):
        rows += [
            (
                name,
                when,
                *(mebibytes(records.value(NAME, name, f"{when}: {kind}")) for kind in (*KINDS, "front end")),
            )
            for when in (LOADED, SHARED, AFTER)
        ]
        drift = records.get(NAME, name, DRIFT)
        if drift:
            first, settled, last = (drift.values[i] for i in (0, SETTLED // EVERY, -1))
            later = drift.values[SETTLED // EVERY :]
            drifts.append(
                (
                    name,
                    *map(mebibytes, (first, settled, last)),
                    f"{moved(drift.values) / 2**20:.0f} MiB",
                    f"{moved(later) / 2**20:.0f} MiB",
                    f"{slope_per_100(later) / EVERY / 2**20:+.1f} MiB",
                )
            )
    missing, sentences = failures(records.failed(NAME), HEADER)
    return [
        Table("Memory of the engine process", HEADER, (*rows, *missing), (NOTE, *sentences)),
        Table(
            "500 requests of 1 to 30 s: resident memory",
            DRIFT_HEADER,
            tuple(drifts),
            ("moved by: highest less lowest, from before the first request on, and from the 50th on.",),
        ),
    ]


def moved(values: tuple[float, ...]) -> float:
    """How far a series went from its lowest to its highest."""
    return max(values) - min(values)


def targets(records: Records) -> list[Target]:
    """Line 4."""
    found = []
    for name in records.contenders(NAME):

        def mib(what: str, name: str = name) -> float | None:
            value = records.value(NAME, name, what)
            return None if value is None else value / 2**20

        if name in LIMITS:
            found.append(
                target(
                    4,
                    f"resident after 500 requests, {name} (<= {LIMITS[name]:,} MiB)",
                    mib(f"{AFTER}: rss"),
                    most=LIMITS[name],
                    form="{:,.0f} MiB",
                )
            )
        drift = records.get(NAME, name, DRIFT)
        drifted = moved(drift.values) / 2**20 if drift else None
        found.append(
            target(4, f"500 requests move it by <= 30 MiB, {name}", drifted, most=30, form="{:.0f} MiB")
        )
        loaded, shared = mib(f"{LOADED}: rss"), mib(f"{SHARED}: rss")
        grown = shared - loaded if loaded is not None and shared is not None else None
        found.append(
            target(
                4,
                f"four clients cost no second copy (< half of it), {name}",
                grown,
                most=(loaded or 0) / 2,
                form="{:+.0f} MiB",
            )
        )
    return found
