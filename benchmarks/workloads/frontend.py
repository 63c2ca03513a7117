"""What the front end costs: CPU seconds of its children for each second of audio, format by format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.measure import cpu_s
from benchmarks.ours import Ours
from benchmarks.table import Table, Target, failures, target

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.records import Records

NAME = "frontend"
NOBODY = "front end"
HEADER = ("", "CPU s of one core per s of audio", "decode", "fbank", "VAD", "x real time", "n")
NOTE = (
    "The CPU time of the daemon's child processes, by /proc, over the ten-minute file in each format; real "
    "FSMN-VAD where it is there. The stages are the children's own account of it, from the daemon's `done`."
)
STAGES = {"decode": "decode_s", "fbank": "fbank_s", "VAD": "vad_s"}
"""Column to key of `timings`."""


def run(bench: Bench) -> None:
    """A daemon with the demo model: the front end is the same, and the engine out of the way."""
    precision = bench.ours[0].precision if bench.ours else "float32"
    ours = Ours(bench.machine, precision, model="demo", name="frontend-demo")
    files = bench.audio.encoded()
    with bench.guarded(NAME, ours):
        try:
            ours.start(bench.audio.dense(5))
            for kind, file in files.items():
                bench.say(f"{NAME}: {kind}")
                values: list[float] = []
                stages: dict[str, list[float]] = {}
                for _ in range(min(3, bench.rounds)):
                    children = [pid for pid in ours.processes() if pid != ours.pid]
                    before = cpu_s(children)
                    done = ours.ask(file)[1]
                    audio_s = float(done["duration"])
                    values.append((cpu_s(children) - before) / audio_s)
                    for name, key in STAGES.items():
                        if key in done["timings"]:
                            stages.setdefault(name, []).append(float(done["timings"][key]) / audio_s)
                bench.records.add(NAME, NOBODY, kind, values, unit="s/s")
                for name, found in stages.items():
                    bench.records.add(NAME, NOBODY, f"{kind}: {name}", found, unit="s/s")
        finally:
            ours.stop()


def tables(records: Records) -> list[Table]:
    """Each format."""
    rows = []
    for kind in [what for what in records.whats(NAME) if ": " not in what]:
        record = records.get(NAME, NOBODY, kind)
        if record is None:
            continue
        stages = (records.value(NAME, NOBODY, f"{kind}: {name}") for name in STAGES)
        rows.append(
            (
                kind,
                f"{record.p50:.5f}",
                *("-" if value is None else f"{value:.5f}" for value in stages),
                f"{1 / record.p50:.0f}" if record.p50 else "-",
                str(len(record.values)),
            )
        )
    missing, sentences = failures(records.failed(NAME), HEADER)
    return [Table("Front end", HEADER, (*rows, *missing), (NOTE, *sentences))]


def targets(records: Records) -> list[Target]:
    """Line 7, first half."""
    return [
        target(
            7,
            f"front end, CPU s of one core per s of audio (<= 0.004), {kind}",
            records.value(NAME, NOBODY, kind),
            most=0.004,
            form="{:.5f}",
        )
        for kind in records.whats(NAME)
        if ": " not in kind
    ]
