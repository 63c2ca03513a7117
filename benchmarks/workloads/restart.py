"""From kill -9 to the next answer, under a supervisor that keeps the socket and restarts as systemd does."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.asking import ask
from benchmarks.contender import ContenderError
from benchmarks.records import ratio
from benchmarks.table import Table, Target, failures, least_target, seconds, target
from benchmarks.workloads import start

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.ours import Ours
    from benchmarks.records import Records

NAME = "restart"
ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "systemd" / "sensevoiced.service"
ACTIVATE = ROOT / "tests" / "harness" / "activate.py"
KILLED, PAUSE = "kill to answer", "RestartSec"
HEADER = ("", "kill -9 to next answer", "of which RestartSec", "start to first answer", "n")
NOTE = (
    "The listening socket is kept, as a socket unit does; the supervisor waits for the unit's RestartSec and "
    "starts the daemon again. The next request is sent in the moment of the kill."
)
POLL_S = 0.01


class Supervisor:
    """Stands for systemd: owns the socket, and starts the daemon again when it has ended."""

    def __init__(self, ours: Ours, pause_s: float) -> None:
        """Listen at the daemon's socket, and start it."""
        self._ours = ours
        self._pause_s = pause_s
        self._over = threading.Event()
        self._command = ours.command()
        ours.socket.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(ours.socket))
        self._listener.listen(128)
        self._process = self._start()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """End the daemon as an out-of-memory killer does; its children see to themselves."""
        os.kill(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End all of it."""
        self._over.set()
        self._thread.join()
        self._process.kill()
        self._process.wait()
        self._listener.close()
        self._ours.socket.unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._over.is_set():
            if self._process.poll() is None:
                time.sleep(POLL_S)
            elif not self._over.wait(self._pause_s):
                self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        number = self._listener.fileno()
        with (self._ours.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, str(ACTIVATE), str(number), "sensevoiced.socket", *self._command],
                env=self._ours.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(number,),
                start_new_session=True,
            )


def pause_s(unit: str) -> float:
    """RestartSec of a unit's text, in seconds; systemd's own 0.1 where it says nothing."""
    found = re.search(r"^RestartSec=([\d.]+)(ms|s)?$", unit, re.MULTILINE)
    return 0.1 if found is None else float(found[1]) / (1000 if found[2] == "ms" else 1)


def run(bench: Bench) -> None:
    """Kill each of ours a few times, and ask at once."""
    pause = pause_s(UNIT.read_text())
    clip = bench.audio.dense(5)
    for ours in bench.ours:
        bench.retire([ours])
    for ours in bench.ours:
        bench.say(f"{NAME}: {ours.name}")
        with bench.guarded(NAME, ours):
            supervisor = Supervisor(ours, pause)
            try:
                _answered(ours, clip)
                values = []
                for _ in range(min(3, bench.rounds)):
                    began = time.perf_counter()
                    supervisor.kill()
                    _answered(ours, clip)
                    values.append(time.perf_counter() - began)
            finally:
                supervisor.close()
            bench.records.add(NAME, ours.name, KILLED, values)
            bench.records.add(NAME, ours.name, PAUSE, [pause])


def _answered(ours: Ours, clip: Path) -> None:
    """Ask until it is answered: a connection that the dying daemon had accepted breaks."""
    until = time.perf_counter() + 120
    while True:
        try:
            client = ours.connected()
        except ContenderError:
            if time.perf_counter() > until:
                raise
            time.sleep(POLL_S)
            continue
        try:
            ask(client, clip)
        except ContenderError:
            if time.perf_counter() > until:
                raise
        else:
            return
        finally:
            client.close()


def tables(records: Records) -> list[Table]:
    """Each of ours."""
    rows = []
    for name in records.contenders(NAME):
        killed = records.get(NAME, name, KILLED)
        rows.append(
            (
                name,
                seconds(killed.p50 if killed else None),
                seconds(records.value(NAME, name, PAUSE)),
                seconds(records.value(start.NAME, name, start.ANSWER)),
                str(len(killed.values)) if killed else "-",
            )
        )
    missing, sentences = failures(records.failed(NAME), HEADER)
    return [Table("After kill -9", HEADER, (*rows, *missing), (NOTE, *sentences))]


def targets(records: Records) -> list[Target]:
    """Line 3, last third."""
    found = []
    service = records.value(start.NAME, "service-1", start.ANSWER)
    for name in records.contenders(NAME):
        killed, pause = records.value(NAME, name, KILLED), records.value(NAME, name, PAUSE)
        first = records.value(start.NAME, name, start.ANSWER)
        found.append(
            least_target(
                3,
                f"kill -9 to next answer, {name} against the service's start",
                ratio(service, killed),
                least=6,
            )
        )
        own = killed - pause if killed is not None and pause is not None else None
        found.append(
            target(
                3,
                f"... without RestartSec, over its own start to first answer, {name}",
                ratio(own, first),
                most=1.15,
            )
        )
    return found
