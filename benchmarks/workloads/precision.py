"""What a precision costs in accuracy: token agreement, CER, and whether a batch's company changes a text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contender import ContenderError, environment
from benchmarks.table import Table, Target, failures
from tools.demo.edits import distance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.bench import Bench
    from benchmarks.records import Records

NAME = "precision"
ROOT = Path(__file__).resolve().parents[2]
REFERENCE = "float32"
CHILD_S = 3600.0
AGREED, IDENTICAL, RECORDINGS = "tokens agreed", "identical recordings", "recordings"
CHECKED, DIFFERENT = "checked in company", "different in company"
CER, SAME_TEXTS, TEXTS = "CER", "same texts", "texts"
HEADER = ("", "model", "token agreement", "identical", "recordings", "in company: other text", "of")
NOTE = (
    "Against float32, through the engine, utterance by utterance as the front end cuts them. Random weights "
    "have no opinion, so that their near ties are more than a trained model's. In company: each utterance "
    "alone and in two batches of 2 to 16 others; everything but scores has to be equal."
)
CER_HEADER = ("", "condition", "CER", "change", "zh", "en", "yue", "ja", "ko", "same texts")
CER_NOTE = (
    "The demo model on its evaluation set (synthetic speech of held-out voices), with and without ITN; "
    "change: points of CER against float32; same texts: of all its transcripts."
)


def run(bench: Bench) -> None:
    """Children for each model and precision; nothing else runs meanwhile."""
    bench.retire(bench.ours)
    precisions = [REFERENCE, *(one.precision for one in bench.ours if one.precision != REFERENCE)]
    files = [str(file) for file in bench.audio.recordings]
    for label, model in (("full-size", str(bench.machine.model)), ("demo", "demo")):
        with bench.guarded(NAME):
            _agreement(bench, label, model, precisions, files)
    with bench.guarded(NAME):
        _cer(bench, precisions)


def _agreement(bench: Bench, label: str, model: str, precisions: Sequence[str], files: Sequence[str]) -> None:
    reference: list[dict[str, Any]] = []
    for precision in precisions:
        bench.say(f"{NAME}: {label} model, {precision}")
        found = _child(
            bench,
            "benchmarks.engine_child",
            {
                "model": model,
                "vad": str(bench.machine.vad),
                "device": bench.machine.device,
                "precision": precision,
                "files": files,
            },
        )
        reference = reference or found["utterances"]
        agreed, identical, count = agreement(reference, found["utterances"])
        name = f"{label} {precision}"
        bench.records.add(NAME, name, AGREED, [agreed], unit="share")
        bench.records.add(NAME, name, IDENTICAL, [identical], unit="recordings")
        bench.records.add(NAME, name, RECORDINGS, [count], unit="recordings")
        bench.records.add(NAME, name, CHECKED, [found["checked"]], unit="utterances")
        examples = json.dumps(found["different"][:3], ensure_ascii=False) if found["different"] else ""
        bench.records.add(NAME, name, DIFFERENT, [len(found["different"])], unit="utterances", note=examples)


def _cer(bench: Bench, precisions: Sequence[str]) -> None:
    bench.say(f"{NAME}: demo evaluation set, {', '.join(precisions)}")
    asked = {"device": bench.machine.device, "precisions": precisions}
    for precision, found in _child(bench, "benchmarks.cer_child", asked).items():
        for condition, languages in found["conditions"].items():
            totals = [sum(pair[i] for pair in languages.values()) for i in (0, 1)]
            for what, (wrong, letters) in {"": totals, **languages}.items():
                key = f"{condition}: {CER}{' ' + what if what else ''}"
                bench.records.add(NAME, f"evaluation {precision}", key, [100 * wrong / letters], unit="%")
        bench.records.add(
            NAME, f"evaluation {precision}", SAME_TEXTS, [found["identical"]], unit="transcripts"
        )
        bench.records.add(NAME, f"evaluation {precision}", TEXTS, [found["transcripts"]], unit="transcripts")


def _child(bench: Bench, module: str, asked: dict[str, Any]) -> dict[str, Any]:
    out = bench.machine.work / "child.json"
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = process.communicate(json.dumps({**asked, "out": str(out)}), timeout=CHILD_S)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise ContenderError(f"{module} ended with {process.returncode}: {said.strip()[-300:]}")
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def agreement(reference: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> tuple[float, int, int]:
    """Share of the reference's tokens that an edit keeps, recordings that are identical, and recordings."""
    tokens = edits = 0
    differing, files = set(), set()
    for one, two in zip(reference, other, strict=True):
        files.add(one["file"])
        tokens += len(one["ids"])
        if one["ids"] != two["ids"]:
            differing.add(one["file"])
            edits += distance(one["ids"], two["ids"])
    return 1 - edits / max(1, tokens), len(files) - len(differing), len(files)


def tables(records: Records) -> list[Table]:
    """Agreement, and CER."""
    rows, errors = [], []
    for name in records.contenders(NAME):
        model, precision = name.split()

        def value(what: str, name: str = name) -> float | None:
            return records.value(NAME, name, what)

        if model != "evaluation":
            numbers = (IDENTICAL, RECORDINGS, DIFFERENT, CHECKED)
            agreed = value(AGREED)
            share = f"{100 * agreed:.2f} %" if agreed is not None else "-"
            rows.append((precision, model, share, *(f"{value(what) or 0:.0f}" for what in numbers)))
            continue
        for key in [w for w in records.whats(NAME) if w.endswith(f": {CER}")]:
            cer, before = value(key), records.value(NAME, f"evaluation {REFERENCE}", key)
            if cer is not None and before is not None:
                parts = (value(f"{key} {language}") for language in CER_HEADER[4:9])
                errors.append(
                    (
                        precision,
                        key.removesuffix(f": {CER}").split(",")[0],
                        f"{cer:.2f} %",
                        f"{cer - before:+.2f}",
                        *(f"{part or 0:.2f}" for part in parts),
                        f"{100 * (value(SAME_TEXTS) or 0) / (value(TEXTS) or 1):.1f} %",
                    )
                )
    missing, sentences = failures(records.failed(NAME), HEADER)
    return [
        Table("Precisions: agreement with float32", HEADER, (*rows, *missing), (NOTE, *sentences)),
        Table("Precisions: CER of the demo model", CER_HEADER, tuple(errors), (CER_NOTE,)),
    ]


def targets(records: Records) -> list[Target]:
    """Lines 8 and 9."""
    found = []
    for name in records.contenders(NAME):
        model, precision = name.split()
        if model == "evaluation" and precision != REFERENCE:
            changes = [
                (records.value(NAME, name, key) or 0)
                - (records.value(NAME, f"evaluation {REFERENCE}", key) or 0)
                for key in records.whats(NAME)
                if key.endswith(f": {CER}")
            ]
            text = ", ".join(f"{change:+.2f}" for change in changes) + " points"
            found.append(
                Target(8, f"CER change on the evaluation set is in the table, {precision}", text, True)
            )
        elif model != "evaluation":
            agreed, count = records.value(NAME, name, AGREED), records.value(NAME, name, RECORDINGS)
            if agreed is not None and precision != REFERENCE:
                found.append(
                    Target(
                        8,
                        f"token agreement on real recordings is in the table, {precision}, {model} model",
                        f"{100 * agreed:.2f} % on {count:.0f}",
                        True,
                    )
                )
            different = records.value(NAME, name, DIFFERENT)
            checked = records.value(NAME, name, CHECKED)
            found.append(
                Target(
                    9,
                    f"same text whatever the company, {precision}, {model} model",
                    "-" if different is None else f"{different:.0f} of {checked:.0f} differ",
                    None if different is None else different == 0,
                )
            )
    return found
