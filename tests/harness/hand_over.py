"""Hands descriptors over as systemd does, or as nobody should: `python hand_over.py JSON COMMAND...`.

JSON: `fds`, which become 3, 4 and so on; `count`, `names` and `pid` for the variables of sd_listen_fds(3).
"""

from __future__ import annotations

import fcntl
import json
import os
import sys

OUT_OF_THE_WAY = 64

wanted, command = json.loads(sys.argv[1]), sys.argv[2:]
# First to where none of them belongs.
copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, OUT_OF_THE_WAY) for fd in wanted["fds"]]
os.closerange(3, OUT_OF_THE_WAY)
for number, copy in enumerate(copies):
    os.dup2(copy, 3 + number)
os.environ["LISTEN_FDS"] = wanted["count"]
os.environ["LISTEN_FDNAMES"] = wanted["names"]
os.environ["LISTEN_PID"] = wanted["pid"] or str(os.getpid())
os.execvp(command[0], command)
