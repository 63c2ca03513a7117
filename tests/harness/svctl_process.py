"""svctl as its users run it: a process of its own, which finds no daemon but the test's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import svctl

RUN_S = 120.0
"""No run takes a second; only a hang should fail on a machine that is busy with other things."""


def run_svctl(socket, *words, cwd, data=b"", program=("-m", "svctl")):
    """Run it to its end: exit status, standard output and standard error as text."""
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(svctl.__file__).parents[1]),
        "SENSEVOICE_SOCKET": str(socket),
        "LC_ALL": "C",
    }
    command = [sys.executable, *program, *map(os.fspath, words)]
    process = subprocess.run(command, cwd=cwd, env=environ, input=data, capture_output=True, timeout=RUN_S)
    return process.returncode, process.stdout.decode(), process.stderr.decode()
