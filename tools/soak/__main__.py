"""`python -m tools.soak`: starts a daemon, loads it for a while, and says what grew, broke or was lost."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svctl.wire import WireError
from tools.soak import clients, material, report
from tools.soak.answers import LOST, Tally
from tools.soak.daemon import ROOMY, Daemon
from tools.soak.load import Load, take_references
from tools.soak.watch import Watch, rest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tools.soak.clients import Scene
    from tools.soak.watch import Sample

REST_S = 60.0
"""For what load leaves behind to go: children beyond those kept warm end after 15 s without work."""
POLL_S = 0.5
SAY_EVERY_S = 60.0
AFTER_FAULT_S = 0.5
"""Before a client comes back after the daemon has broken off: a dead one would be asked a thousand times."""


def main() -> int:
    """Run, print, and give the exit status: 0 held, 1 not held, 130 interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the load lasts")
    parser.add_argument("--seed", type=int, default=1, help="of what is asked, damaged and cancelled")
    parser.add_argument("--clients", type=int, default=4, help="steady ones, beside one of each other kind")
    parser.add_argument("--json", type=Path, help="write everything, every sample too, into this file")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))  # short: a socket's path has room for 107 bytes
    try:
        run = _run(folder, args)
        for table in report.tables(run):
            print(table.markdown())
        if args.json is not None:
            args.json.write_text(json.dumps(report.document(run), indent=1))
        found = report.checks(run)
        print(report.verdict(found))
        held = all(check.held is not False for check in found)
        if not held:
            shutil.copy(folder / "log", Path(tempfile.gettempdir()) / "soak.log")
            print(f"soak: the daemon's log is {Path(tempfile.gettempdir()) / 'soak.log'}")
    except KeyboardInterrupt:
        return 130
    except (RuntimeError, WireError) as error:
        _say(f"came to nothing: {error}")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if held else 1


def _run(folder: Path, args: argparse.Namespace) -> report.Run:
    clips = folder / "clips"
    clips.mkdir()
    asks = material.asks(material.make(clips, args.seed), args.seed)
    daemon = Daemon(folder)
    try:
        daemon.wait_ready()
        _say(f"{len(asks)} answers are taken alone")
        load = Load(daemon, Tally())
        take_references(load, asks)
        before = _settled(daemon)
        watch = Watch(daemon.pid, lambda: load.tally.requests)
        watch.start()
        _say(f"{args.seconds:.0f} s of load begin")
        cpu_s, began_s = _cpu_s(), time.monotonic()
        broken = _play(load, args)
        took_s, cpu_s = time.monotonic() - began_s, _cpu_s() - cpu_s
        watch.stop()
        survived = daemon.running
        after = _at_rest(daemon, before)
        status = _last_status(daemon)
        exit_status = daemon.stop()
    finally:
        daemon.stop()
    tally = load.tally
    return report.Run(
        seconds=took_s,
        seed=args.seed,
        outcomes=tally.outcomes,
        errors=tally.errors,
        latencies_s=tally.latencies_s,
        sentences=tally.sentences,
        samples=watch.samples,
        pid=daemon.pid,
        before=before,
        after=after,
        status=status,
        survived=survived,
        exit_status=exit_status,
        tracebacks=daemon.log.read_text(errors="replace").count("Traceback"),
        load_cpu_s=cpu_s,
        broken=broken,
    )


def _play(load: Load, args: argparse.Namespace) -> list[str]:
    """Let all clients play until the time is over or the daemon is gone; gives what broke on our side."""
    scenes = {**{f"steady {number}": clients.steady for number in range(args.clients)}, **clients.SCENES}
    pool = ThreadPoolExecutor(len(scenes))
    futures = {
        name: pool.submit(_repeat, load, name, scene, random.Random(f"{args.seed} {name}"))
        for name, scene in scenes.items()
    }
    until_s, players = time.monotonic() + args.seconds, futures.values()
    said_s = time.monotonic()
    try:
        while time.monotonic() < until_s and load.daemon.running and not any(map(Future.done, players)):
            time.sleep(POLL_S)
            if time.monotonic() >= said_s + SAY_EVERY_S:
                said_s = time.monotonic()
                _say(f"{load.tally.requests:,} requests, {len(load.tally.sentences)} faults")
    finally:
        load.over.set()
        # Each waits for its answers no longer than ANSWER_S; all but our own defects end by themselves.
        pool.shutdown(wait=True, cancel_futures=True)
        load.daemon.configure(ROOMY)
        load.daemon.hang_up()
    errors = {name: future.exception() for name, future in futures.items()}
    return [f"{name}: {type(error).__name__}: {error}" for name, error in errors.items() if error is not None]


def _repeat(load: Load, name: str, scene: Scene, rng: random.Random) -> None:
    while not load.over.is_set():
        try:
            scene(load, rng)
        except (WireError, OSError) as error:
            load.tally.fault(name, LOST, f"the connection: {type(error).__name__}: {error}")
            load.over.wait(AFTER_FAULT_S)


def _settled(daemon: Daemon) -> dict[int, Sample]:
    """Wait until the last answer's descriptors and threads are gone: two looks find the same."""
    looks = [rest(daemon.pid)]

    def same(now: Mapping[int, Sample]) -> bool:
        looks.append(now)
        return all(_held(now.get(pid)) == _held(then) for pid, then in looks[-2].items())

    time.sleep(POLL_S)
    return _wait(lambda: rest(daemon.pid), same)


def _held(sample: Sample | None) -> tuple[int, int] | None:
    return None if sample is None else (sample.descriptors, sample.threads)


def _at_rest(daemon: Daemon, before: Mapping[int, Sample]) -> dict[int, Sample]:
    """Wait until the daemon holds what it held before, or has had its time; gives the last look."""

    def calm(found: Mapping[int, Sample]) -> bool:
        now, then = found.get(daemon.pid), before[daemon.pid]
        return now is None or (
            len(found) <= len(before) and now.descriptors <= then.descriptors and now.threads <= then.threads
        )

    return _wait(lambda: rest(daemon.pid), calm)


def _wait(look: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    until_s = time.monotonic() + REST_S
    while not good(found := look()) and time.monotonic() < until_s:
        time.sleep(POLL_S)
    return found


def _last_status(daemon: Daemon) -> dict[str, Any]:
    with contextlib.suppress(WireError, OSError):
        return daemon.status()
    return {}


def _cpu_s() -> float:
    """CPU time of this process and of the clients that it ran and that have ended; the daemon has not."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _say(sentence: str) -> None:
    print(f"soak: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
