"""One warm request for a clip of 5, 15 or 30 s, all contenders in turns, and the memory they hold then."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.audio import length_s
from benchmarks.measure import memory
from benchmarks.ours import Ours
from benchmarks.records import ratio
from benchmarks.table import Table, Target, failures, least_target, mebibytes, seconds, times

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.contender import Answer, Contender
    from benchmarks.records import Records

NAME = "clip"
LENGTHS = (5, 15, 30)
JUDGED = "15 s"
SAME = "as stock"
IN_FORCE = "threads in force"
WHATS = tuple(f"{length} s" for length in LENGTHS)
HEADER = ("", *WHATS, "p95 15 s", "RTF", "stock/it", "RSS", "PSS", "text", "n")
NOTE = (
    "ours-*: round trip over a warm connection, opening the file and everything else included; svctl-*: the "
    "same daemon asked by one `svctl transcribe FILE` process a request. stock and sherpa-*: the clock runs "
    "inside their process, and sherpa-onnx has neither VAD nor transport in it. funasr-cli starts anew for "
    "each file. RSS and PSS: all processes of it, summed; text: clips with the tokens (or raw text) of stock."
)
REST_S = 0.5
"""Before each turn: threads of the contender before may still spin, and the kernel take back its memory."""
LEFT_OUT = "service-4"
"""One request at a time keeps one worker busy: its row would be that of service-1."""


def run(bench: Bench) -> None:
    """Measure every contender on every clip, round by round."""
    clips = {f"{length} s": bench.audio.dense(length) for length in LENGTHS}
    contenders = bench.warm(NAME, [c for c in bench.contenders if c.name != LEFT_OUT])
    samples: dict[tuple[str, str], list[float]] = {}
    said: dict[tuple[str, str], Answer] = {}

    def work(contender: Contender, number: int) -> float:
        bench.say(f"{NAME}: round {number + 1}, {contender.name}")
        slowest = 0.0
        if not contender.name.startswith("funasr-cli"):
            # Warm is who has just been asked: after the others' turns the caches are theirs.
            time.sleep(REST_S)
            contender.one(bench.audio.dense(min(LENGTHS)))
        for what, clip in clips.items():
            answer = contender.one(clip)
            samples.setdefault((contender.name, what), []).append(answer.seconds)
            said[contender.name, what] = answer
            slowest = max(slowest, answer.seconds)
        return slowest

    for contender in contenders:  # once without a clock: the first request of a shape initialises libraries
        if contender.name != "funasr-cli":
            with bench.guarded(NAME, contender):
                for clip in clips.values():
                    contender.one(clip)
    contenders = [c for c in contenders if c.name in bench.running]
    bench.rounds_of(NAME, contenders, bench.rounds, work)
    for contender in contenders:
        for what, clip in clips.items():
            if values := samples.get((contender.name, what)):
                bench.records.add(NAME, contender.name, what, values, note=f"{length_s(clip):.1f} s of audio")
        held = memory(contender.processes())
        if held.rss:
            bench.records.add(NAME, contender.name, "RSS", [held.rss], unit="bytes")
            bench.records.add(NAME, contender.name, "PSS", [held.pss], unit="bytes")
        if isinstance(contender, Ours):
            with bench.guarded(NAME, contender):
                status = contender.status()
                note = f"{status['precision']} on {status['device']}, {status.get('backend') or 'torch'}"
                bench.records.add(
                    NAME, contender.name, IN_FORCE, [status["threads"]], unit="threads", note=note
                )
        equal = [
            same(said[contender.name, what], said["stock", what])
            for what in clips
            if ("stock", what) in said and (contender.name, what) in said
        ]
        bench.records.add(NAME, contender.name, SAME, equal, unit="clips")


def same(one: Answer, other: Answer) -> bool:
    """Equal tokens where both give them (-1: one that it does not tell), otherwise equal raw texts."""
    if one.tokens is None or other.tokens is None:
        return one.text.split() == other.text.split()
    pairs = zip(one.tokens, other.tokens, strict=False)
    return len(one.tokens) == len(other.tokens) and all(a == b or -1 in (a, b) for a, b in pairs)


def tables(records: Records) -> list[Table]:
    """Medians, p95, real-time factor, ratio to stock, and memory."""
    rows = []
    for name in records.contenders(NAME):
        found = [records.get(NAME, name, what) for what in WHATS]
        judged = records.get(NAME, name, JUDGED)
        to_stock = ratio(records.value(NAME, "stock", JUDGED), judged.p50 if judged else None)
        equal = records.get(NAME, name, SAME)
        rows.append(
            (
                name,
                *(seconds(r.p50 if r else None) for r in found),
                seconds(judged.p95 if judged else None),
                f"{judged.p50 / 15:.4f}" if judged else "-",
                times(to_stock),
                mebibytes(records.value(NAME, name, "RSS")),
                mebibytes(records.value(NAME, name, "PSS")),
                f"{sum(equal.values):.0f}/{len(equal.values)}" if equal else "-",
                str(len(judged.values)) if judged else "-",
            )
        )
    missing, sentences = failures(records.failed(NAME), HEADER)
    title = "One warm request (medians of interleaved rounds)"
    forces = [records.get(NAME, name, IN_FORCE) for name in records.contenders(NAME)]
    in_force = "; ".join(f"{r.contender}: {r.note}, {r.values[0]:.0f} threads" for r in forces if r)
    notes = (NOTE, *(f"In force: {text}." for text in [in_force] if text), *sentences)
    return [Table(title, HEADER, (*rows, *missing), notes)]


def targets(records: Records) -> list[Target]:
    """Line 1."""

    def faster(than: str, name: str) -> float | None:
        return ratio(records.value(NAME, than, JUDGED), records.value(NAME, name, JUDGED))

    equal = records.get(NAME, "ours-float32", SAME)
    return [
        least_target(
            1, "15 s clip: float32 against stock AutoModel", faster("stock", "ours-float32"), least=1.7
        ),
        Target(
            1,
            "... with the same text (tokens, where the text is equal)",
            f"{sum(equal.values):.0f} of {len(equal.values)} clips" if equal else "-",
            all(equal.values) if equal else None,
        ),
        least_target(1, "... against sherpa-onnx float32", faster("sherpa-fp32", "ours-float32"), least=1.0),
        least_target(1, "15 s clip: int8 against stock AutoModel", faster("stock", "ours-int8"), least=3.5),
        least_target(1, "... against sherpa-onnx int8", faster("sherpa-int8", "ours-int8"), least=2.0),
    ]
