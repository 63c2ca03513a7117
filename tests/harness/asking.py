"""Small steps of tests around the fake engine: asking for a script, gates, counters, waiting for quiet."""

from __future__ import annotations

import itertools
import os

from harness.wire_client import memfd

_gates = itertools.count()


def gate():
    """A gate's name that no other test of this run uses."""
    return f"gate{next(_gates)}"


def ask(client, request, content, **fields):
    """Send a request for a script; its descriptor is closed here at once, as a client may."""
    fd = memfd(content)
    client.transcribe(request, fd, **fields)
    os.close(fd)


def jobs(daemon):
    """The daemon's counters of jobs."""
    return daemon.status()["jobs"]


def idle(daemon):
    """Wait until no job is left."""
    return daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 0, "no active job")


def essence(events):
    """What events say, less what may differ from time to time: whose request it was, and what it cost."""
    return [
        {name: value for name, value in event.items() if name not in ("id", "timings")} for event in events
    ]
