"""Owns what was measured, every sample of it, and the statistics made of it; standard library only."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Record:
    """All samples of one thing of one contender."""

    workload: str
    contender: str
    what: str
    unit: str
    values: tuple[float, ...]
    note: str = ""

    @property
    def p50(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def p95(self) -> float:
        """The value that 95 % of the samples do not exceed."""
        return percentile(self.values, 95)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a contender has no figure in a workload, or a workload none at all (contender "")."""

    workload: str
    contender: str
    sentence: str


@dataclass(slots=True)
class Records:
    """Everything of one run, in the order in which it was measured."""

    records: list[Record] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(
        self,
        workload: str,
        contender: str,
        what: str,
        values: Iterable[float],
        *,
        unit: str = "s",
        note: str = "",
    ) -> None:
        """Note samples; none at all leave no record."""
        kept = tuple(float(value) for value in values)
        if kept:
            self.records.append(Record(workload, contender, what, unit, kept, note))

    def fail(self, workload: str, contender: str, sentence: str) -> None:
        """Note why there is no figure."""
        self.failures.append(Failure(workload, contender, " ".join(sentence.split())))

    def get(self, workload: str, contender: str, what: str) -> Record | None:
        """The samples of one thing, or None where it was not measured."""
        wanted = (workload, contender, what)
        return next((r for r in self.records if (r.workload, r.contender, r.what) == wanted), None)

    def value(self, workload: str, contender: str, what: str) -> float | None:
        """The median of one thing, or None where it was not measured."""
        record = self.get(workload, contender, what)
        return None if record is None else record.p50

    def contenders(self, workload: str) -> list[str]:
        """Who has figures in a workload, in the order in which they came."""
        return list(dict.fromkeys(r.contender for r in self.records if r.workload == workload))

    def whats(self, workload: str) -> list[str]:
        """What was measured in a workload, in the order in which it came."""
        return list(dict.fromkeys(r.what for r in self.records if r.workload == workload))

    def failed(self, workload: str) -> list[Failure]:
        """Who has none, and why."""
        return [failure for failure in self.failures if failure.workload == workload]

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Records:
        """What `to_json` wrote."""
        return cls(
            [Record(**{**one, "values": tuple(one["values"])}) for one in written["records"]],
            [Failure(**one) for one in written["failures"]],
        )

    def to_json(self) -> dict[str, Any]:
        """All samples, for the JSON file."""
        return {
            "records": [asdict(record) for record in self.records],
            "failures": [asdict(failure) for failure in self.failures],
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile by linear interpolation between the two nearest ranks, as numpy's default is."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def ratio(over: float | None, under: float | None) -> float | None:
    """`over / under`, or None where either is missing or nothing."""
    return None if over is None or not under else over / under


def slope_per_100(values: Sequence[float]) -> float:
    """Least-squares growth of a series per hundred of its samples."""
    n = len(values)
    if n < 2:
        return 0.0
    middle, mean = (n - 1) / 2, sum(values) / n
    over = sum((i - middle) * (value - mean) for i, value in enumerate(values))
    return 100 * over / sum((i - middle) ** 2 for i in range(n))
