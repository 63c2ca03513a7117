"""Owns the child that does the fixed computation, to hold a contender's variance against the machine's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.contender import ContenderError, environment

PROGRAM = Path(__file__).with_name("fixed.py")


class FixedWork:
    """One child; `run` gives the seconds of one computation."""

    def __init__(self, seconds: float, threads: int) -> None:
        """Start it, and let it find how much work takes `seconds`."""
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(seconds), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
            start_new_session=True,
        )
        self.products = int(self._line())

    def run(self) -> float:
        """Do it once."""
        if self._process.stdin is None:
            raise ContenderError("the fixed computation has no input")
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise ContenderError("the fixed computation has ended")
        return line
