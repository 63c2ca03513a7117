"""More load than the daemon admits: `python overload.py SOCKET UID SECONDS TIMES CLIP...`.

It begins at the end of its standard input. First each clip alone, for its right answer; then, for a few
seconds, as many at a time as keep the daemon busy, for the rate at which it works; then TIMES that rate for
SECONDS, whatever is answered. It prints `{}` when that begins, and what came of it, as JSON, at its end.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from harness.crowd import Member, percentile
from harness.puppet import become
from harness.wire_client import texts

from svctl.framing import load_codec

MEMBERS = 16
"""Connections; each may have 32 unfinished requests, and one user 128."""
BUSY = 32
"""At a time while the rate is measured."""
RATE_S = 5.0
TICK_S = 0.01


class Load:
    """One user's requests of some clips in turn, over several connections."""

    def __init__(self, members, clips):
        self._members = itertools.cycle(members)
        self._clips = itertools.cycle(clips.items())
        self._numbers = itertools.count()
        self.right = {}
        self.accepted_s, self.refused_s = [], []
        self.codes = Counter()
        self.wrong = 0

    def ask(self):
        """Ask for the next clip; gives the future of its answer."""
        name, fd = next(self._clips)
        done = next(self._members).ask(next(self._numbers), fd).done
        done.add_done_callback(lambda future: self._take(name, future))
        return done

    def _take(self, name, future):
        answer = future.result()
        if answer.last["type"] == "done":
            self.accepted_s.append(answer.took_s)
            self.wrong += texts(answer.events) != self.right.setdefault(name, texts(answer.events))
            return
        self.codes[answer.last["code"]] += 1
        self.refused_s.append(answer.took_s)
        # A refusal says when to come back; a load like this one does not care.
        self.wrong += not (answer.last["retryable"] and answer.last["retry_after_ms"])

    def forget(self):
        """Begin to count."""
        self.accepted_s, self.refused_s = [], []
        self.codes.clear()


async def rate_of(load):
    """Requests a second that the daemon answers when it is kept busy."""
    began_s, waiting = time.monotonic(), {load.ask() for _ in range(BUSY)}
    while time.monotonic() - began_s < RATE_S:
        _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        waiting |= {load.ask() for _ in range(BUSY - len(waiting))}
    await asyncio.wait(waiting)
    return len(load.accepted_s) / (time.monotonic() - began_s)


async def offer(load, rate, times, seconds):
    """Ask `times` as often, and wait for all answers; gives how often, and how many had finished until then.

    What the machine gets done varies with its company: there are `times` as many requests as finish, too.
    """
    began_s, waiting, offered = time.monotonic(), set(), 0
    while (passed_s := time.monotonic() - began_s) < seconds:
        for _ in range(int(times * max(rate * passed_s, len(load.accepted_s))) - offered):
            future = load.ask()
            waiting.add(future)
            future.add_done_callback(waiting.discard)
            offered += 1
        await asyncio.sleep(TICK_S)
    finished = len(load.accepted_s)
    if waiting:
        await asyncio.wait(waiting)
    return offered, finished


async def main(socket, seconds, times, clips):
    """Say what came of it."""
    members = [await Member.join(socket) for _ in range(MEMBERS)]
    load = Load(members, clips)
    for _ in clips:
        await load.ask()
    load.forget()
    rate = await rate_of(load)
    load.forget()
    print("{}", flush=True)
    offered, meanwhile = await offer(load, rate, times, seconds)
    print(
        json.dumps(
            {
                "rate": rate,
                "offered": offered,
                "meanwhile": meanwhile,
                "accepted": len(load.accepted_s),
                "accepted_s": [percentile(load.accepted_s, share) for share in (0.5, 0.99, 1)],
                "refused": len(load.refused_s),
                "refused_ms": [1000 * percentile(load.refused_s, share) for share in (0.5, 0.99, 1)],
                "codes": load.codes,
                "wrong": load.wrong,
                "load_cpu_s": time.process_time(),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    load_codec()
    become(int(sys.argv[2]))
    opened = {name: os.open(name, os.O_RDONLY | os.O_CLOEXEC) for name in sys.argv[5:]}
    sys.stdin.read()
    asyncio.run(main(sys.argv[1], float(sys.argv[3]), float(sys.argv[4]), opened))
