"""Clips of 5 s by 1, 8 and 64 clients at once: throughput, latencies, errors."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.audio import length_s
from benchmarks.contender import Burst
from benchmarks.records import percentile, ratio
from benchmarks.table import Table, Target, failures, least_target, seconds, significant, target, times

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.bench import Bench
    from benchmarks.contender import Contender
    from benchmarks.records import Records

NAME = "clients"
CLIPS = 16
CLIENTS = (1, 8, 64)
ROUNDS = 3
RATE, LATENCY, ERRORS = "throughput", "latency", "errors"
HEADER = ("", "clients", "requests", "audio s/s", "stock/it", "p50", "p95", "errors")
NOTE = (
    "audio s/s: seconds of audio answered per second; stock/it: its time for the same audio against stock's, "
    "which is called one after another. With 64 clients each sends one request, so that there are 64. stock "
    "and sherpa-* take one at a time."
)


def run(bench: Bench) -> None:
    """Burst by burst, all contenders in turns."""
    contenders = bench.warm(NAME, bench.chosen("ours-", "stock", "service-", "funasr-server", "sherpa-"))
    clips = [bench.audio.dense(5, number) for number in range(CLIPS)]
    for contender in contenders:  # without a clock: every worker of a service gets its first request
        with bench.guarded(NAME, contender):
            _many(contender, clips[:8], 8)
    for clients in CLIENTS:
        _bursts(bench, [c for c in contenders if c.name in bench.running], clips, clients)


def _bursts(bench: Bench, contenders: Sequence[Contender], clips: Sequence[Path], clients: int) -> None:
    requests = list(clips) * max(1, clients // CLIPS)
    bursts: dict[str, list[Burst]] = {}

    def work(contender: Contender, number: int) -> float:
        bench.say(f"{NAME}: {clients} clients, round {number + 1}, {contender.name}")
        found = _many(contender, requests, clients)
        if found is None:
            return 0.0
        bursts.setdefault(contender.name, []).append(found)
        return max(found.latencies_s, default=0.0)

    bench.rounds_of(NAME, contenders, min(ROUNDS, bench.rounds), work)
    for name, found in bursts.items():
        _note(bench.records, name, clients, found, sum(map(length_s, requests)))


def _many(contender: Contender, clips: Sequence[Path], clients: int) -> Burst | None:
    """A burst; None where the contender takes one at a time and more was asked for."""
    try:
        return contender.many(clips, clients)
    except NotImplementedError:
        if clients > 1:
            return None
    began = time.perf_counter()
    latencies = tuple(contender.one(clip).seconds for clip in clips)
    return Burst(time.perf_counter() - began, latencies)


def _note(records: Records, name: str, clients: int, bursts: Sequence[Burst], audio_s: float) -> None:
    answered = [len(b.latencies_s) / (len(b.latencies_s) + len(b.errors)) for b in bursts]
    rates = [audio_s * share / b.wall_s for b, share in zip(bursts, answered, strict=True)]
    records.add(NAME, name, f"{clients} {RATE}", rates, unit="audio s/s")
    records.add(NAME, name, f"{clients} {LATENCY}", [x for b in bursts for x in b.latencies_s])
    problems = [sentence for b in bursts for sentence in b.errors]
    records.add(
        NAME, name, f"{clients} {ERRORS}", [len(problems)], unit="errors", note="; ".join(problems[:3])
    )


def tables(records: Records) -> list[Table]:
    """A block for each number of clients."""
    stock = records.value(NAME, "stock", f"1 {RATE}")
    rows = []
    for clients in CLIENTS:
        for name in records.contenders(NAME):
            rate, latency, errors = (
                records.get(NAME, name, f"{clients} {what}") for what in (RATE, LATENCY, ERRORS)
            )
            if rate is None:
                continue
            rows.append(
                (
                    name,
                    str(clients),
                    str(max(CLIPS, clients)),
                    significant(rate.p50),
                    times(ratio(rate.p50, stock)),
                    seconds(latency.p50 if latency else None),
                    seconds(latency.p95 if latency else None),
                    f"{errors.values[0]:.0f}" if errors else "-",
                )
            )
    missing, sentences = failures(records.failed(NAME), HEADER)
    errors_seen = [
        f"{r.contender}, {r.what}: {r.note}" for r in records.records if r.workload == NAME and r.note
    ]
    return [Table("16 x 5 s by several clients", HEADER, (*rows, *missing), (NOTE, *sentences, *errors_seen))]


def targets(records: Records) -> list[Target]:
    """Line 2."""

    def value(name: str, what: str) -> float | None:
        return records.value(NAME, name, what)

    def p95(name: str) -> float | None:
        record = records.get(NAME, name, f"8 {LATENCY}")
        return percentile(record.values, 95) if record else None

    found = []
    for name, least in (("ours-float32", 2.0), ("ours-int8", 4.0)):
        for service in ("service-1", "service-4"):
            rates = ratio(value(name, f"8 {RATE}"), value(service, f"8 {RATE}"))
            found += [
                least_target(2, f"8 clients: throughput of {name} against {service}", rates, least=least),
                target(
                    2, f"8 clients: p95 of {name} / {service}", ratio(p95(name), p95(service)), most=1 / 3
                ),
            ]
        errors = value(name, f"64 {ERRORS}")
        found += [
            target(2, f"64 clients: errors of {name}", errors, most=0, form="{:.0f}"),
            steady(name, ratio(value(name, f"64 {RATE}"), value(name, f"8 {RATE}"))),
        ]
    return found


def steady(name: str, found: float | None) -> Target:
    """64 clients have the throughput of 8, to a tenth."""
    held = None if found is None else 0.9 <= found <= 1.1
    return Target(2, f"64 clients: throughput of {name} / that of 8", times(found), held)
