"""Ten minutes and an hour in one file: time for each minute, and how the daemon's memory follows."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

from benchmarks.audio import length_s
from benchmarks.measure import memory
from benchmarks.ours import Ours
from benchmarks.records import ratio
from benchmarks.table import Table, Target, failures, mebibytes, seconds, significant, target, times

if TYPE_CHECKING:
    from types import TracebackType

    from benchmarks.bench import Bench
    from benchmarks.contender import Contender
    from benchmarks.records import Records

NAME = "long"
TEN, HOUR = "10 min", "1 h"
GROWN, ALL_GROWN = "RSS growth", "RSS growth with children"
LOOK_S = 0.25
HEADER = (
    "",
    "10 min",
    "1 h",
    "per min, 10 min",
    "per min, 1 h",
    "1 h/10 min",
    "RTF",
    "stock/it",
    "RSS grows",
)
NOTE = (
    "The hour is the same ten minutes six times. RSS grows: the daemon's own process while it takes the "
    "hour, highest less before (its front end's children: in the JSON). Peers take the ten minutes only."
)


class Highest:
    """Watches the resident memory of processes in the background."""

    def __init__(self, ours: Ours) -> None:
        """Watch one daemon."""
        self._ours = ours
        self._over = threading.Event()
        self.daemon = self.all = 0
        self._look()
        self.daemon_before, self.all_before = self.daemon, self.all

    def __enter__(self) -> Self:
        """Begin."""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            self._look()

    def _look(self) -> None:
        self.daemon = max(self.daemon, memory([self._ours.pid]).rss)
        self.all = max(self.all, memory(self._ours.processes()).rss)


def run(bench: Bench) -> None:
    """Ten minutes in turns, then the hour, one after another."""
    ten, hour = bench.audio.ten_minutes(), bench.audio.hour()
    contenders = bench.warm(NAME, bench.chosen("ours-", "stock"))
    samples: dict[str, list[float]] = {}

    def work(contender: Contender, number: int) -> float:
        bench.say(f"{NAME}: {TEN}, round {number + 1}, {contender.name}")
        samples.setdefault(contender.name, []).append(contender.one(ten).seconds)
        # The stock pipeline takes a minute for it: once.
        return 0.0 if isinstance(contender, Ours) else float("inf")

    bench.rounds_of(NAME, contenders, min(2, bench.rounds), work)
    for name, values in samples.items():
        bench.records.add(NAME, name, TEN, values, note=f"{length_s(ten):.0f} s of audio")
    for ours in bench.ours:
        if ours.name not in bench.running:
            continue
        bench.say(f"{NAME}: {HOUR}, {ours.name}")
        with bench.guarded(NAME, ours), Highest(ours) as highest:
            answer = ours.one(hour)
            bench.records.add(
                NAME, ours.name, HOUR, [answer.seconds], note=f"{length_s(hour):.0f} s of audio"
            )
            bench.records.add(NAME, ours.name, GROWN, [highest.daemon - highest.daemon_before], unit="bytes")
            bench.records.add(NAME, ours.name, ALL_GROWN, [highest.all - highest.all_before], unit="bytes")


def linearity(records: Records, name: str) -> float | None:
    """Time for a minute of the hour over that for a minute of the ten minutes."""
    ten, hour = records.value(NAME, name, TEN), records.value(NAME, name, HOUR)
    return None if ten is None or hour is None else (hour / 60) / (ten / 10)


def tables(records: Records) -> list[Table]:
    """Each of them."""
    rows = []
    for name in records.contenders(NAME):
        ten, hour = records.value(NAME, name, TEN), records.value(NAME, name, HOUR)
        linear = linearity(records, name)
        rows.append(
            (
                name,
                *(seconds(value) for value in (ten, hour)),
                seconds(ten / 10 if ten is not None else None),
                seconds(hour / 60 if hour is not None else None),
                f"{linear:.2f}" if linear else "-",
                significant(ten / 600) if ten is not None else "-",
                times(ratio(records.value(NAME, "stock", TEN), ten)),
                mebibytes(records.value(NAME, name, GROWN)),
            )
        )
    missing, sentences = failures(records.failed(NAME), HEADER)
    return [Table("Long files", HEADER, (*rows, *missing), (NOTE, *sentences))]


def targets(records: Records) -> list[Target]:
    """Line 7, second half."""
    found = []
    for name in [n for n in records.contenders(NAME) if n.startswith("ours-")]:
        linear = linearity(records, name)
        held = None if linear is None else 0.9 <= linear <= 1.1
        found.append(
            Target(
                7,
                f"1 h against 10 min, time for each minute +-10 %, {name}",
                f"{linear:.2f}" if linear else "-",
                held,
            )
        )
        grown = records.value(NAME, name, GROWN)
        found.append(
            target(
                7,
                f"1 h: daemon's RSS grows by <= 64 MiB, {name}",
                grown / 2**20 if grown is not None else None,
                most=64,
                form="{:.0f} MiB",
            )
        )
    return found
