"""Makes one page, and one JSON document, of everything that a run has noted; measures nothing."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

from benchmarks.records import Records
from benchmarks.table import WIDTH, Target, targets_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.bench import Workload


def pages(written: Mapping[str, Any], workloads: Sequence[Workload]) -> list[str]:
    """What `document` wrote, for reading: the machine, what was aimed at, every workload's tables."""
    records = Records.from_json(written)
    chosen = [workload for workload in workloads if workload.NAME in written["workloads"]]
    found = [heading(written)]
    targets = targets_of(records, chosen)
    if targets:
        found.append(targets_table(targets).markdown().rstrip())
    tables = [table for workload in chosen for table in workload.tables(records)]
    return found + [table.markdown().rstrip() for table in tables]


def targets_of(records: Records, workloads: Sequence[Workload]) -> list[Target]:
    """Of all workloads that were asked for."""
    return [target for workload in workloads for target in workload.targets(records)]


def document(records: Records, workloads: Sequence[Workload], about: Mapping[str, Any]) -> dict[str, Any]:
    """Every sample, with what is needed to read it."""
    targets = targets_of(records, workloads)
    return {
        **about,
        "workloads": [workload.NAME for workload in workloads],
        "targets": [{"line": t.line, "aim": t.aim, "found": t.found, "verdict": t.verdict} for t in targets],
        **records.to_json(),
    }


def as_json(written: Mapping[str, Any]) -> str:
    """The document as text."""
    return json.dumps(written, indent=1, ensure_ascii=False)


def heading(about: Mapping[str, Any]) -> str:
    """What a reader has to know to compare."""
    facts = about["machine"]
    ours, peers = (", ".join(f"{name} {v}" for name, v in facts[who].items()) for who in ("ours", "peers"))
    start, end = about["load_at_start"], about["load_at_end"]
    machine = (
        f"{facts['cpu']}, {facts['cores']} cores ({', '.join(facts['flags'])}), {facts['ram_gib']} GiB, "
        f"{', '.join(facts['gpu']) or 'no GPU'}; device {about['device']}; Linux {facts['kernel']}, "
        f"Python {facts['python']}."
    )
    circumstances = (
        f"Checkpoint: {about['checkpoint']}. Load average {start['load_average'][0]} at the start and "
        f"{end['load_average'][0]} at the end; in {start['cpu_pressure_60s_percent']} % and "
        f"{end['cpu_pressure_60s_percent']} % of the minute before something waited for a CPU. "
        f"Rounds: {about['rounds']}; {about['minutes']:.0f} minutes."
    )
    sentences = [
        machine,
        f"Ours: {ours}. Peers: {peers or 'none installed (make bench-setup)'}.",
        circumstances,
        *about["notes"],
    ]
    if about["interrupted"]:
        sentences.append("INTERRUPTED: only what had been measured by then.")
    return "\n\n".join(["## Benchmark", *("\n".join(textwrap.wrap(s, WIDTH)) for s in sentences)])
