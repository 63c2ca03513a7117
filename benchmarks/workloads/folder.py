"""A folder of 200 short clips: `svctl transcribe` over all of them, stock FunASR one after another."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.audio import length_s
from benchmarks.ours import Command
from benchmarks.records import ratio
from benchmarks.table import Table, failures, seconds, significant, times

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.contender import Contender
    from benchmarks.records import Records
    from benchmarks.table import Target

NAME = "folder"
COUNT = 200
WALL = "wall"
HEADER = ("", "all", "per clip", "audio s/s", "RTF", "stock/it", "n")


def run(bench: Bench) -> None:
    """Ours in turns, as one process each; stock and sherpa-onnx once, clip after clip in their process."""
    clips = bench.audio.short_clips(COUNT)
    bench.warm(NAME, bench.chosen("ours-"))
    contenders = bench.warm(NAME, bench.chosen("svctl-", "stock", "sherpa-", "funasr-cli"))
    samples: dict[str, list[float]] = {}

    def work(contender: Contender, number: int) -> float:
        bench.say(f"{NAME}: round {number + 1}, {contender.name}")
        if isinstance(contender, Command):
            samples.setdefault(contender.name, []).append(contender.run(clips).seconds)
            return 0.0
        if contender.name == "funasr-cli":
            wall_s = contender.many(clips, 1).wall_s
        else:
            began = time.perf_counter()
            for clip in clips:
                contender.one(clip)
            wall_s = time.perf_counter() - began
        samples.setdefault(contender.name, []).append(wall_s)
        return float("inf")

    bench.rounds_of(NAME, contenders, min(2, bench.rounds), work)
    audio_s = sum(map(length_s, clips))
    for name, values in samples.items():
        bench.records.add(NAME, name, WALL, values, note=f"{COUNT} clips, {audio_s:.0f} s of audio")


def tables(records: Records) -> list[Table]:
    """Each of them."""
    rows, note = [], ""
    for name in records.contenders(NAME):
        wall = records.get(NAME, name, WALL)
        if wall is None:
            continue
        audio_s = float(wall.note.split(", ")[1].split()[0])
        note = wall.note
        rows.append(
            (
                name,
                seconds(wall.p50),
                seconds(wall.p50 / COUNT),
                significant(audio_s / wall.p50),
                significant(wall.p50 / audio_s),
                times(ratio(records.value(NAME, "stock", WALL), wall.p50)),
                str(len(wall.values)),
            )
        )
    missing, sentences = failures(records.failed(NAME), HEADER)
    text = f"{note}: svctl-* and funasr-cli: one process for all, its start included; others clip after clip."
    return [Table("A folder of short clips", HEADER, (*rows, *missing), (text, *sentences))]


def targets(_records: Records) -> list[Target]:
    """Nothing is aimed at here."""
    return []
