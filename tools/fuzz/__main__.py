"""`python -m tools.fuzz --seconds N`: fuzzes each target for its share of the time, and names what breaks it.

Never imports the fuzzer: each target has a process of its own, which a finding ends.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

TARGETS = ("frames", "recordings")
FUZZER = "atheris"
PROCESS = (sys.executable, "-m", "tools.fuzz.process")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""As a child of the front end runs; threads that wait for one another would halve the inputs tried."""
FOLDER = Path(".fuzz")
"""Corpus, logs and findings; git ignores it."""
INPUT_TIMEOUT_S = 30
"""One input takes milliseconds, or a second of audio's worth of decoding; so long is a hang."""
RSS_LIMIT_MIB = 2_048
"""What a child may have in all (`child_memory_bytes`)."""
START_S = 120.0
"""For imports and the seeds, on top of a target's share: a machine may be busy."""
TAIL_LINES = 30
_FINAL = re.compile(r"number_of_executed_units:\s*(\d+)")
_PULSE = re.compile(r"cov: (\d+) ft: \d+ corp: (\d+)/")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one target."""

    target: str
    held: bool
    sentence: str


def main(argv: list[str] | None = None) -> int:
    """Fuzz; 0 where nothing broke, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="corpus, logs and findings")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one")
    args = parser.parse_args(argv)
    if find_spec(FUZZER) is None:
        sys.stderr.write(
            f"fuzz: {FUZZER} is not installed here (pip install {FUZZER}), so nothing was run.\n"
        )
        return 1
    targets = args.target or TARGETS
    outcomes = []
    for target in targets:
        outcomes.append(explore(target, args.seconds / len(targets), args.folder / target))
        sys.stdout.write(outcomes[-1].sentence + "\n")
        sys.stdout.flush()
    return 0 if all(outcome.held for outcome in outcomes) else 1


def explore(target: str, seconds: float, folder: Path) -> Outcome:
    """Fuzz one target in a process of its own; inputs that broke it before come first."""
    module = import_module(f"tools.fuzz.{target}")
    folders = _, seeds, findings = (folder / "corpus", folder / "seeds", folder / "findings")
    for each in folders:
        each.mkdir(parents=True, exist_ok=True)
    for name, data in module.seeds().items():
        (seeds / name).write_bytes(data)
    words = folder / "words"
    words.write_text("".join(f'"{word}"\n' for word in module.DICTIONARY))
    command = [
        *(*PROCESS, target),
        f"-max_total_time={max(1, round(seconds))}",
        f"-max_len={module.MAX_BYTES}",
        f"-timeout={INPUT_TIMEOUT_S}",
        f"-rss_limit_mb={RSS_LIMIT_MIB}",
        f"-artifact_prefix={findings}/",
        f"-dict={words}",
        "-print_final_stats=1",
        *map(str, folders),
    ]
    log = folder / "log"
    with log.open("wb") as output:
        try:
            status = subprocess.run(
                command,
                env=os.environ | ONE_THREAD,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=seconds + START_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
    return judged(target, status, log, findings)


def judged(target: str, status: int | None, log: Path, findings: Path) -> Outcome:
    """Say in a sentence what the fuzzer found; where something broke, with the end of its log."""
    said = log.read_text(errors="replace")
    if status == 0:
        runs, pulses = _FINAL.findall(said), _PULSE.findall(said)
        coverage, inputs = pulses[-1] if pulses else ("?", "?")
        held = f"{target}: {runs[-1] if runs else '?'} inputs run, nothing broke"
        return Outcome(target, held=True, sentence=f"{held} ({inputs} kept, {coverage} places reached).")
    what = "it did not end in time" if status is None else f"it ended with status {status}"
    named = sorted(findings.iterdir(), key=lambda path: path.stat().st_mtime)
    where = f"the input is {named[-1]}" if named else "no input is to blame"
    tail = "\n".join(said.splitlines()[-TAIL_LINES:])
    return Outcome(target, held=False, sentence=f"{tail}\n{target}: {what}; {where}, the log is {log}.")


if __name__ == "__main__":
    sys.exit(main())
