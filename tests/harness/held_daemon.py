"""The real daemon, whose engine waits while it is told to.

`python held_daemon.py CONTROL_FOLDER ARGUMENT...`

While the file `hold` is in the control folder no batch begins; what it does is written to `engine.log` there.
So a test decides what becomes one batch of the real engine.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from harness.fakes import POLL_S  # noqa: E402

from sensevoiced import parts  # noqa: E402
from sensevoiced.__main__ import main  # noqa: E402


class HeldEngine:
    def __init__(self, engine, control):
        self._engine = engine
        self._control = Path(control)

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def run(self, batch):
        hold = self._control / "hold"
        if hold.exists():
            self._note("at hold")
        while hold.exists():
            time.sleep(POLL_S)
        self._note(f"batch {len(batch)}")
        return self._engine.run(batch)

    def _note(self, text):
        with (self._control / "engine.log").open("a") as file:
            file.write(text + "\n")


def held(config, control, real=parts.parts_of):
    """The parts that `config` names, around an engine that can be held."""
    found = real(config)
    return dataclasses.replace(found, load_engine=lambda: HeldEngine(found.load_engine(), control))


if __name__ == "__main__":
    parts.parts_of = lambda config: held(config, sys.argv[1])
    sys.exit(main(sys.argv[2:]))
