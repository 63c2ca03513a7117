"""The fake daemon where the wall clock jumps a day to and fro at every look at it.

`python jumping_daemon.py CONTROL_FOLDER FLAG...`
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

DAY_S = 86_400


def jump():
    """Replace the wall clock of this process."""
    steps = itertools.cycle((DAY_S, -DAY_S, 0))
    wall, wall_ns = time.time, time.time_ns
    time.time = lambda: wall() + next(steps)
    time.time_ns = lambda: wall_ns() + next(steps) * 10**9


if __name__ == "__main__":
    jump()
    from harness import fake_daemon

    sys.exit(fake_daemon.main())
