"""Where a warm request's time goes, stage by stage, as the daemon's `done` says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.table import Table, failures, seconds

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.records import Records
    from benchmarks.table import Target

NAME = "stages"
LENGTHS = (1, 5, 15, 30)
ROUND_TRIP, CLIENT, TOTAL = "round trip", "client", "total_s"
LABELS = {
    CLIENT: "client and socket",
    "serving_s": "serving",
    "queued_s": "queued",
    "decode_s": "decode",
    "fbank_s": "fbank",
    "vad_s": "VAD",
    "overlap_s": "less: hidden behind the engine",
    "wait_s": "wait",
    "engine_s": "engine",
    "richtext_s": "richtext",
    TOTAL: "all of the daemon",
    ROUND_TRIP: "round trip",
    "frontend_s": "(decode + fbank + VAD)",
}
"""Keys of `timings` in the order in which the data passes, by the names that people use."""
SHOWN = (5, 15)
"""Lengths in the table; all are in the JSON."""
NOTE = (
    "client and socket: the round trip less the daemon's total_s; the others are `timings` of its `done`. "
    "Clips of 1 and 30 s: in the JSON."
)


def run(bench: Bench) -> None:
    """All of ours in turns, clip by clip."""
    clips = {length: bench.audio.dense(length) for length in LENGTHS}
    ours = bench.warm_ours(NAME)
    samples: dict[tuple[str, str], list[float]] = {}
    for one in ours:
        with bench.guarded(NAME, one):
            for clip in clips.values():
                one.one(clip)
    for _ in range(bench.rounds):
        for one in ours:
            with bench.guarded(NAME, one):
                for length, clip in clips.items():
                    answer, done = one.ask(clip)
                    timings = {key: float(value) for key, value in done["timings"].items()}
                    found = {
                        ROUND_TRIP: answer.seconds,
                        CLIENT: answer.seconds - timings.get(TOTAL, 0.0),
                        **timings,
                    }
                    for key, value in found.items():
                        samples.setdefault((one.name, f"{length} s: {key}"), []).append(value)
    for (name, what), values in samples.items():
        bench.records.add(NAME, name, what, values)


def tables(records: Records) -> list[Table]:
    """Stages down; precisions and lengths across."""
    columns = [(name, length) for name in records.contenders(NAME) for length in SHOWN]
    keys = list(dict.fromkeys(what.partition(": ")[2] for what in records.whats(NAME)))
    rows = [
        (
            LABELS.get(key, key),
            *(seconds(records.value(NAME, name, f"{length} s: {key}")) for name, length in columns),
        )
        for key in [*(k for k in LABELS if k in keys), *(k for k in keys if k not in LABELS)]
    ]
    header = ("", *(f"{name.removeprefix('ours-')}, {length} s" for name, length in columns))
    missing, sentences = failures(records.failed(NAME), header) if columns else ([], [])
    return [Table("Stages of ours (medians)", header, (*rows, *missing), (NOTE, *sentences))]


def targets(_records: Records) -> list[Target]:
    """Nothing is aimed at here."""
    return []
