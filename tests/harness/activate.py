"""Hands an inherited listening socket on as systemd does.

`python activate.py FD NAME COMMAND...` (sd_listen_fds(3)).
"""

from __future__ import annotations

import os
import sys

fd, name, *command = sys.argv[1:]
if fd != "3":
    os.dup2(int(fd), 3)
    os.close(int(fd))
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=name)
os.execvp(command[0], command)
