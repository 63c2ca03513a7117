"""The arithmetic of a soak: what grew, what was lost, whether that is held; starts and asks nothing."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.records import percentile
from benchmarks.table import Table, seconds
from tools.soak.answers import LOST, RIGHT, WRONG

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tools.soak.watch import Sample

MAX_SLOPE_BYTES = 1024
"""Of RSS for each request of the daemon's: a million requests in a gigabyte."""
WARM_UP_SHARE = 0.2
"""Of the run, or of the first time of a process that began later: F36 leaves out as much."""
JUDGED_REQUESTS = 2_000
"""A process that saw fewer after its warm-up is not judged: the recording that it happens to hold moves its
RSS by megabytes, which over so few requests is a slope of its own."""
MIB = 2**20


@dataclass(slots=True)
class Run:
    """All that was found out in one soak."""

    seconds: float
    seed: int
    outcomes: Mapping[tuple[str, str], int]
    errors: Mapping[str, int]
    latencies_s: Mapping[str, Sequence[float]]
    sentences: Sequence[str]
    samples: Mapping[int, Sequence[Sample]]
    """By pid; the daemon's is `pid`."""
    pid: int
    before: Mapping[int, Sample]
    """Each process at rest, after everything was asked for once."""
    after: Mapping[int, Sample]
    """... and at the end, when all clients had gone."""
    status: Mapping[str, Any]
    """The daemon's last word, {} where it had none."""
    survived: bool
    """The daemon lived until it was told to end."""
    exit_status: int
    tracebacks: int
    """In its log."""
    load_cpu_s: float
    """What the clients cost."""
    broken: Sequence[str] = field(default_factory=tuple)
    """Defects of the soak itself."""


@dataclass(frozen=True, slots=True)
class Growth:
    """How the memory of one process went."""

    name: str
    pid: int
    lived_s: float
    requests: int
    """Of the daemon's, while it was watched and warm."""
    first_bytes: float
    last_bytes: float
    """Medians of the first and the last tenth of that time."""
    slope_bytes: float | None
    """For each request; None where it was watched too shortly."""
    peak_bytes: int
    replaced: bool
    """It had ended before the end."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to hold; None says that the run was too short to tell."""

    what: str
    held: bool | None
    found: str

    @property
    def verdict(self) -> str:
        """In words."""
        return "not judged" if self.held is None else "held" if self.held else "NOT HELD"


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Least-squares growth of y for each x; 0 where x does not move."""
    mean_x, mean_y = statistics.fmean(xs), statistics.fmean(ys)
    below = sum((x - mean_x) ** 2 for x in xs)
    over = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return over / below if below else 0.0


def growths(run: Run) -> list[Growth]:
    """Every process, the daemon first and its children in the order in which they came."""
    found, last_s = [], max((s.at_s for kept in run.samples.values() for s in kept), default=0.0)
    children = 0
    for pid, samples in sorted(run.samples.items(), key=lambda item: (item[0] != run.pid, item[1][0].at_s)):
        children += pid != run.pid
        name = "daemon" if pid == run.pid else f"child {children}"
        # One that was there from the first has been through the answers that were taken alone.
        from_s = samples[0].at_s + WARM_UP_SHARE * run.seconds
        warm = [sample for sample in samples if sample.at_s >= from_s]
        seen = warm[-1].requests - warm[0].requests if warm else 0
        sizes = [sample.rss_bytes for sample in warm or samples]
        tenth = max(1, len(sizes) // 10)
        judged = seen >= JUDGED_REQUESTS
        found.append(
            Growth(
                name=name,
                pid=pid,
                lived_s=samples[-1].at_s - samples[0].at_s,
                requests=seen,
                first_bytes=statistics.median(sizes[:tenth]),
                last_bytes=statistics.median(sizes[-tenth:]),
                slope_bytes=slope([s.requests for s in warm], sizes) if judged else None,
                peak_bytes=max(sample.rss_bytes for sample in samples),
                replaced=pid not in run.after and samples[-1].at_s < last_s,
            )
        )
    return found


def checks(run: Run) -> list[Check]:
    """What has to hold, in the order of what it would cost."""
    lived = run.survived and run.exit_status == 0 and not run.tracebacks
    crash = (
        f"{'lived' if run.survived else 'DIED'}, exit status {run.exit_status}, {run.tracebacks} tracebacks"
    )
    lost, wrong = (_count(run, outcome) for outcome in (LOST, WRONG))
    judged = [growth for growth in growths(run) if growth.slope_bytes is not None]
    worst = max(judged, key=lambda growth: growth.slope_bytes or 0.0, default=None)
    memory = (
        f"fewer than {JUDGED_REQUESTS} requests after the warm-up"
        if worst is None
        else f"{worst.name} {worst.slope_bytes:+.0f} bytes a request, the most of {len(judged)} processes"
    )
    queue, connections = run.status.get("queue", {}), run.status.get("connections", -1)
    jobs = queue.get("jobs_active", -1)
    return [
        Check("no crash", lived, crash),
        Check("no lost answer", not lost, f"{lost} lost, {_count(run, RIGHT)} right"),
        Check("no wrong answer", not wrong, f"{wrong} wrong"),
        Check(
            f"RSS grows by less than {MAX_SLOPE_BYTES} bytes a request",
            None if worst is None else (worst.slope_bytes or 0.0) < MAX_SLOPE_BYTES,
            memory,
        ),
        _flat(run, "descriptors"),
        _flat(run, "threads"),
        # The connection that asks is one.
        Check("nothing left over", (jobs, connections) == (0, 1), f"{jobs} jobs, {connections} connections"),
        *([Check("the soak itself works", held=False, found="; ".join(run.broken))] if run.broken else []),
    ]


def _count(run: Run, outcome: str) -> int:
    return sum(count for (_, found), count in run.outcomes.items() if found == outcome)


def _flat(run: Run, what: str) -> Check:
    """Compare at rest: under load they come and go with connections and files.

    A child may be another one than before; all are the same program at rest.
    """
    name = f"{what} flat"
    if run.pid not in run.after or run.pid not in run.before:
        return Check(name, held=False, found="the daemon is gone")

    def most(looks: Mapping[int, Sample]) -> tuple[int, int]:
        children = [getattr(sample, what) for pid, sample in looks.items() if pid != run.pid]
        return getattr(looks[run.pid], what), max(children, default=0)

    (before, child_before), (after, child_after) = most(run.before), most(run.after)
    peaks = [getattr(sample, what) for sample in run.samples.get(run.pid, ())]
    found = f"daemon {before} before, {after} after, up to {max(peaks, default=0)} under load; "
    found += f"a child {child_before} before, {child_after} after"
    return Check(name, after <= before and child_after <= child_before, found)


def tables(run: Run) -> list[Table]:
    """The figures, for a person."""
    return [_outcomes(run), _latencies(run), _memory(run), _verdicts(run)]


def verdict(found: Sequence[Check]) -> str:
    """The last line."""
    failed = [check.what for check in found if check.held is False]
    unjudged = [check.what for check in found if check.held is None]
    if failed:
        return f"soak: NOT HELD: {', '.join(failed)}"
    return "soak: held" + (f", but not judged: {', '.join(unjudged)}" if unjudged else "")


def document(run: Run) -> dict[str, Any]:
    """Everything, for a program."""
    found = checks(run)
    return {
        "seconds": run.seconds,
        "seed": run.seed,
        "held": all(check.held is not False for check in found),
        "checks": [asdict(check) for check in found],
        "outcomes": [
            {"kind": kind, "outcome": outcome, "count": count}
            for (kind, outcome), count in sorted(run.outcomes.items())
        ],
        "errors": dict(run.errors),
        "latencies_s": {what: _percentiles(values) for what, values in run.latencies_s.items()},
        "sentences": list(run.sentences),
        "processes": [asdict(growth) for growth in growths(run)],
        "samples": {pid: [asdict(sample) for sample in kept] for pid, kept in run.samples.items()},
        "before": {pid: asdict(sample) for pid, sample in run.before.items()},
        "after": {pid: asdict(sample) for pid, sample in run.after.items()},
        "status": dict(run.status),
        "load_cpu_s": run.load_cpu_s,
    }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {
        "count": len(values),
        "p50": percentile(values, 50),
        "p95": percentile(values, 95),
        "max": max(values),
    }


def _outcomes(run: Run) -> Table:
    by_kind: dict[str, Counter[str]] = {}
    for (kind, outcome), count in sorted(run.outcomes.items()):
        by_kind.setdefault(kind, Counter())[outcome] += count
    rows = []
    for kind, outcomes in by_kind.items():
        rest = (name for name in outcomes if name not in (RIGHT, WRONG, LOST))
        others = ", ".join(f"{name} {outcomes[name]:,}" for name in rest)
        counts = (f"{outcomes[outcome]:,}" for outcome in (RIGHT, WRONG, LOST))
        rows.append((kind, *counts, others))
    total = sum(run.outcomes.values())
    errors = ", ".join(f"{code} {count:,}" for code, count in sorted(run.errors.items())) or "none"
    jobs = run.status.get("jobs", {})
    notes = (
        f"{total:,} requests in {run.seconds:.0f} s, {total / run.seconds:.1f} a second; seed {run.seed}.",
        f"The clients themselves took {run.load_cpu_s / run.seconds:.2f} of a core.",
        f"Errors by code: {errors}.",
        "The daemon counted: "
        + (", ".join(f"{name} {count:,}" for name, count in jobs.items()) or "nothing")
        + ".",
        *run.sentences,
    )
    return Table("Requests", ("kind", RIGHT, WRONG, LOST, "others"), tuple(rows), notes)


def _latencies(run: Run) -> Table:
    rows = []
    for what, values in sorted(run.latencies_s.items()):
        found = _percentiles(values)
        rows.append((what, f"{len(values):,}", *(seconds(found[name]) for name in ("p50", "p95", "max"))))
    return Table(
        "Latency of steady clients, by length of the recording",
        ("", "count", "p50", "p95", "most"),
        tuple(rows),
    )


def _memory(run: Run) -> Table:
    rows = tuple(
        (
            f"{growth.name} ({growth.pid}){', ended' if growth.replaced else ''}",
            f"{growth.lived_s:.0f} s",
            f"{growth.requests:,}",
            *(f"{size / MIB:.1f} MiB" for size in (growth.first_bytes, growth.last_bytes, growth.peak_bytes)),
            "-" if growth.slope_bytes is None else f"{growth.slope_bytes:+.0f} B",
        )
        for growth in growths(run)
    )
    frontend = run.status.get("frontend", {})
    note = f"Children that ended in a recording: {frontend.get('crashed', '?')}; that hung and were killed: "
    return Table(
        "RSS after the warm-up",
        ("process", "watched", "requests", "first tenth", "last tenth", "peak", "a request"),
        rows,
        (f"{note}{frontend.get('timeouts', '?')}.",),
    )


def _verdicts(run: Run) -> Table:
    rows = tuple((check.what, check.verdict, check.found) for check in checks(run))
    return Table("What has to hold", ("", "", "found"), rows)
