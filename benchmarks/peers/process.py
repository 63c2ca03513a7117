"""Owns one process group of a peer: started in a session of its own, logged to a file, killed as a whole."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil

from benchmarks.contender import ContenderError, environment
from benchmarks.measure import family

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-bench"
"""Where `make bench-setup` puts the peers."""
BIN = ENVIRONMENT / "bin"
PYTHON = BIN / "python"
WORKERS = Path(__file__).with_name("workers")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
TERM_S = 10.0
"""For a server to end by itself; after that nobody asks."""
POLL_S = 0.01
REASON_CHARS = 200
"""Of the reason in an error's sentence: some libraries print all they know."""


def missing() -> str | None:
    """Say that the peers are not installed; None where they are."""
    return None if (ENVIRONMENT / "installed").exists() else "not installed: make bench-setup"


def alive(pid: int) -> bool:
    """Whether a process still holds memory; one that only nobody has waited for does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Group:
    """A process and all that it starts."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        cwd: Path | None = None,
        talking: bool = False,
        **extra: str,
    ) -> None:
        """Start `command`, with pipes for stdin and stdout where it is `talking`; `extra` is environment."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        pipe = subprocess.PIPE if talking else None
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=pipe or subprocess.DEVNULL,
                stdout=pipe or errors,
                stderr=errors,
                cwd=cwd,
                env=environment(**OFFLINE, **extra),
                start_new_session=True,
                encoding="utf-8",
            )

    @property
    def stdin(self) -> IO[str]:
        """Its standard input."""
        assert self._process.stdin is not None  # noqa: S101 - the caller asked for pipes
        return self._process.stdin

    @property
    def stdout(self) -> IO[str]:
        """Its standard output."""
        assert self._process.stdout is not None  # noqa: S101 - the caller asked for pipes
        return self._process.stdout

    def pids(self) -> list[int]:
        """All its processes now."""
        return family(self._process.pid)

    def status(self) -> int | None:
        """The exit status, None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for its end; gives the exit status."""
        return self._process.wait()

    def log(self) -> str:
        """All it wrote to its log."""
        return self._log.read_text(errors="replace")

    def failure(self, what: str) -> ContenderError:
        """`what`, with how the process ended and why: the last exception of its log, or its last line."""
        status = self.status()
        ending = "" if status is None else f", exit status {status}"
        log = self.log().strip()
        reasons = re.findall(r"^[\w.]+(?:Error|Exception)\b.*", log, re.MULTILINE) or log.splitlines() or [""]
        return ContenderError(f"{what}{ending}: {reasons[-1][:REASON_CHARS]}")

    def end(self) -> None:
        """End it the regular way, and then whatever is left of its group the hard way."""
        pids = self.pids()
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(TERM_S)
        self._signal(signal.SIGKILL)
        self._process.wait()
        until = time.monotonic() + TERM_S
        while any(alive(pid) for pid in pids) and time.monotonic() < until:
            time.sleep(POLL_S)  # their gigabytes go back a moment after the signal
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
