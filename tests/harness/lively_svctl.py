"""svctl with a quicker pulse, so that no test waits for minutes: `python lively_svctl.py WORD...`."""

from __future__ import annotations

import sys

from svctl import __main__ as command
from svctl import connection, verbs

PULSE_S = 0.1
"""In the place of the seconds of svctl."""

if __name__ == "__main__":
    connection.KEEP_ALIVE_S = verbs._WATCH_S = PULSE_S
    sys.exit(command.main())
