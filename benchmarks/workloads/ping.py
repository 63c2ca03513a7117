"""What the client costs: `svctl ping` and `svctl transcribe` of a 1 s clip beside a bare interpreter."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.contender import ContenderError, environment
from benchmarks.ours import BIN
from benchmarks.records import ratio
from benchmarks.table import Table, failures, seconds, target, times

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.bench import Bench
    from benchmarks.records import Records
    from benchmarks.table import Target

NAME = "ping"
RUNS = 100
BARE, PING, TRANSCRIBE, DAEMON, OVER = (
    "python3 -c pass",
    "svctl ping",
    "svctl transcribe, 1 s clip",
    "daemon's time, 1 s clip",
    "svctl transcribe less the daemon's time",
)
HEADER = ("", "median", "p95", "x bare", "n")
NOTE = (
    "Whole processes in turns, of the same interpreter; the daemon's time is total_s of its `done` for the "
    "same clip over a warm connection, in the same round."
)


def run(bench: Bench) -> None:
    """One daemon, the first of ours, is enough: the client is the same for all."""
    for ours in bench.warm_ours(NAME)[:1]:
        bench.say(f"{NAME}: {RUNS} runs")
        clip = bench.audio.dense(1)
        place = ["--socket", str(ours.socket)]
        svctl = str(BIN / "svctl")
        commands = {
            BARE: [sys.executable, "-c", "pass"],
            PING: [svctl, "ping", *place],
            TRANSCRIBE: [svctl, "transcribe", *place, str(clip)],
        }
        samples: dict[str, list[float]] = {}
        with bench.guarded(NAME, ours):
            for number in range(RUNS):
                names = list(commands)
                for name in names[number % 3 :] + names[: number % 3]:
                    samples.setdefault(name, []).append(_run(commands[name]))
                done = ours.ask(clip)[1]
                samples.setdefault(DAEMON, []).append(float(done["timings"]["total_s"]))
            samples[OVER] = [a - b for a, b in zip(samples[TRANSCRIBE], samples[DAEMON], strict=True)]
            for name, values in samples.items():
                bench.records.add(NAME, ours.name, name, values)


def _run(command: Sequence[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=environment()
    )
    spent = time.perf_counter() - began
    if done.returncode:
        raise ContenderError(f"{command[0]} ended with {done.returncode}: {done.stderr.decode()[-200:]}")
    return spent


def tables(records: Records) -> list[Table]:
    """Each command."""
    rows = []
    for name in records.contenders(NAME):
        bare = records.value(NAME, name, BARE)
        for what in (BARE, PING, TRANSCRIBE, DAEMON, OVER):
            record = records.get(NAME, name, what)
            if record is not None:
                rows.append(
                    (
                        what,
                        seconds(record.p50),
                        seconds(record.p95),
                        times(ratio(record.p50, bare)),
                        str(len(record.values)),
                    )
                )
    missing, sentences = failures(records.failed(NAME), HEADER)
    return [Table("The client", HEADER, (*rows, *missing), (NOTE, *sentences))]


def targets(records: Records) -> list[Target]:
    """Line 6."""
    name = next(iter(records.contenders(NAME)), "")

    def over_bare(what: str) -> float | None:
        return ratio(records.value(NAME, name, what), records.value(NAME, name, BARE))

    return [
        target(6, "svctl ping over python3 -c pass", over_bare(PING), most=1.5, form="{:.2f} x"),
        target(
            6,
            "svctl transcribe of a 1 s clip less the daemon's time, over python3 -c pass",
            over_bare(OVER),
            most=2,
            form="{:.2f} x",
        ),
    ]
