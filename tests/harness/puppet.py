"""A client in a process of its own, of another user if wanted; it runs the lines it is told, until killed.

As a program: `python puppet.py SOCKET UID`, UID -1 for one's own; JSON strings in, JSON values out.
"""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from harness.daemon import script
from harness.wire_client import Closed, WireClient, memfd, texts

from svctl.framing import load_codec

PATIENCE_S = 120.0


class Puppet:
    """A process of the user `uid`. In its lines `client` is connected, or only `connect()` at hand."""

    def __init__(self, path, *, uid=-1, connect=True):
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(path), str(uid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.run("client = connect()" if connect else "")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def tell(self, *lines):
        """Have lines run, and do not wait for it."""
        self.process.stdin.write(json.dumps("\n".join(lines)) + "\n")
        self.process.stdin.flush()

    def hear(self):
        """Wait for the end of what was told; gives the value of its last line where that is an expression."""
        answer = self.process.stdout.readline()
        assert answer, "the other process has ended; its last words are on standard error"
        return json.loads(answer)

    def run(self, *lines):
        """Have lines run to their end."""
        self.tell(*lines)
        return self.hear()

    def kill(self):
        """End it without any chance to say goodbye."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


def become(uid):
    """Be another user for good, without any group or privilege of ours."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def run(program, scope):
    """Run a program; the value of its last line where that is an expression."""
    lines = ast.parse(program)
    value = None
    if lines.body and isinstance(lines.body[-1], ast.Expr):
        value = ast.Expression(lines.body.pop().value)
    exec(compile(lines, "puppet", "exec"), scope)
    return None if value is None else eval(compile(value, "puppet", "eval"), scope)


def main():
    """Do as we are told, until nobody tells us anything any more."""
    path, uid = sys.argv[1], int(sys.argv[2])
    load_codec()  # while this user may still read it
    if uid >= 0:
        become(uid)

    def connect(**options):
        return WireClient(path, timeout_s=PATIENCE_S, **options)

    scope = {"Closed": Closed, "connect": connect, "memfd": memfd, "os": os}
    scope |= {"script": script, "texts": texts, "time": time}
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line), scope)), flush=True)


if __name__ == "__main__":
    main()
