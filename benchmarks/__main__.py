"""`python -m benchmarks`: runs what was asked for, prints the tables, and writes every sample as JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import measure, plan, report
from benchmarks.audio import Audio, shared_data
from benchmarks.bench import Bench
from benchmarks.checkpoint import checkpoint, vad
from benchmarks.contender import Machine
from benchmarks.ours import Command, Ours
from benchmarks.records import Records

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.bench import Workload
    from benchmarks.contender import Contender

ROOT = Path(__file__).resolve().parent.parent
PRECISIONS = {"cpu": ("float32", "bfloat16", "int8"), "cuda": ("float32", "bfloat16", "float16")}


def main() -> int:
    """Run, print, and return the exit status."""
    args = _arguments()
    if args.show:
        wanted = [w for w in plan.WORKLOADS if not args.only or w.NAME in args.only]
        print("\n\n".join(report.pages(json.loads(args.show.read_text()), wanted)))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    work = Path(tempfile.mkdtemp(prefix="svbench-"))  # short: a socket's path has room for 107 bytes
    try:
        bench = _bench(args, work)
        workloads = _workloads(args, bench)
        about = {
            "machine": measure.machine_facts(ROOT / ".venv-bench"),
            "device": args.device,
            "checkpoint": bench.machine.model.name,
            "quick": args.quick,
            "rounds": args.rounds,
            "load_at_start": measure.load(),
        }

        def save(*, interrupted: bool = True) -> dict[str, Any]:
            now = {"load_at_end": measure.load(), "minutes": bench.minutes, "notes": bench.audio.notes}
            written = report.document(bench.records, workloads, {**about, **now, "interrupted": interrupted})
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(report.as_json(written))
            return written

        interrupted = _run(bench, workloads, save)
        print("\n\n".join(report.pages(save(interrupted=interrupted), workloads)))
        bench.say(f"all samples are in {args.json}")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 130 if interrupted else 0


def _run(bench: Bench, workloads: Sequence[Workload], save: Callable[[], object]) -> bool:
    """Every workload, saved after each; True where somebody interrupted it. Nothing runs any more then."""
    try:
        for workload in workloads:
            bench.say(f"{workload.NAME} begins")
            with bench.guarded(workload.NAME):
                workload.run(bench)
            save()
            if workload.NAME == plan.LAST_WITH_PEERS:
                bench.retire([c for c in bench.contenders if not isinstance(c, Ours | Command)])
    except KeyboardInterrupt:
        return True
    finally:
        # a second Ctrl-C must not leave half of them running
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        bench.say("ending what was started")
        bench.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    return False


def _bench(args: argparse.Namespace, work: Path) -> Bench:
    args.cache.mkdir(parents=True, exist_ok=True)
    machine = Machine(
        model=args.model or checkpoint(args.cache),
        vad=vad(args.cache),
        device=args.device,
        threads=len(os.sched_getaffinity(0)),
        cache=args.cache,
        work=work,
    )
    return Bench(
        machine=machine,
        contenders=_contenders(args, machine),
        audio=Audio(args.cache / "audio", shared_data(ROOT), machine.vad),
        records=Records(),
        rounds=args.rounds,
        quick=args.quick,
    )


def _contenders(args: argparse.Namespace, machine: Machine) -> list[Contender]:
    from benchmarks.peers import peers  # noqa: PLC0415 - tests of this file do without

    ours = [Ours(machine, precision) for precision in PRECISIONS[args.device.partition(":")[0]]]
    found: list[Contender] = [*ours, *(Command(one) for one in ours), *peers(machine)]
    wanted = [name for name in args.only if name not in _names()] or (
        list(plan.QUICK_CONTENDERS) if args.quick else []
    )
    unknown = [name for name in wanted if not any(c.name == name for c in found)]
    if unknown:
        known = ", ".join((*_names(), *(c.name for c in found)))
        sys.exit(f"benchmarks: there is no {', '.join(unknown)}; there are {known}")
    return [c for c in found if not wanted or c.name in wanted]


def _workloads(args: argparse.Namespace, bench: Bench) -> list[Workload]:
    wanted = [name for name in args.only if name in _names()] or (
        list(plan.QUICK) if args.quick else _names()
    )
    bench.say(f"{', '.join(wanted)} for {', '.join(c.name for c in bench.contenders)}")
    return [workload for workload in plan.WORKLOADS if workload.NAME in wanted]


def _names() -> list[str]:
    return [workload.NAME for workload in plan.WORKLOADS]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few rows in less than three minutes")
    parser.add_argument("--device", default=os.environ.get("DEVICE") or "cpu", help="cpu or cuda:N")
    parser.add_argument("--only", default="", help="names of workloads and contenders, with commas")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of each comparison (5; quick: 3)")
    parser.add_argument("--json", type=Path, default=ROOT / ".bench" / "results.json", help="for all samples")
    parser.add_argument(
        "--cache", type=Path, default=ROOT / ".bench", help="for the checkpoint and the clips"
    )
    parser.add_argument(
        "--show", type=Path, metavar="JSON", help="print the tables of an earlier run, and end"
    )
    parser.add_argument("--model", type=Path, help="a checkpoint folder in the place of the random one")
    args = parser.parse_args()
    args.only = [name for name in args.only.split(",") if name]
    args.rounds = args.rounds or (3 if args.quick else 5)
    if args.rounds < 1 or args.device.partition(":")[0] not in PRECISIONS:
        parser.error("--rounds takes 1 or more, --device cpu or cuda:N")
    return args


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
