"""The kinds of clients of a soak: each plays one scene and returns, and is then asked to play it again.

A scene raises WireError or OSError where the daemon ends what it should not have ended.
"""

from __future__ import annotations

import json
import math
import select
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

from svctl.framing import encode
from svctl.objects import transcript
from svctl.wire import VERSION_MAJOR, VERSION_MINOR, WireError
from tools.soak.answers import LOST, RIGHT, WRONG, difference
from tools.soak.daemon import BIN, INVALID, ROOMY, TIGHT
from tools.soak.load import ANSWER_S, TERMINAL, Load, Raw, Talk

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    Scene = Callable[[Load, random.Random], None]
    Message = dict[str, Any]

HELLO: Message = {"type": "hello", "major": VERSION_MAJOR, "minor": VERSION_MINOR, "client": "soak"}
CANCELLED = 0.12
"""Share of requests that are called off."""
MEAN_CANCEL_S = 0.1
"""After which: about what a short request takes, so that all stages are met."""
STATUSES = 3_000
"""Answers that a stuck reader asks for and never reads: of 1 KiB each, more than its buffer (2 MiB) holds."""
CLOSING = ("protocol", "frame_too_large", "unsupported", "timeout", "invalid_request")
"""What the daemon may say to somebody who sends nonsense or nothing."""


def steady(load: Load, rng: random.Random) -> None:
    """Ask for clips one after the other, sometimes several at once, calling some off."""
    with Talk(load, "steady", timed=True) as talk:
        for _ in range(rng.randint(1, 40)):
            for ask in load.draw(rng, rng.choice((1, 1, 1, 1, 2, 5))):
                called_off = rng.random() < CANCELLED
                after_s = rng.choice((0.0, rng.expovariate(1 / MEAN_CANCEL_S)))
                talk.ask(ask, rng, after_s if called_off else math.inf)
            talk.finish(rng)
            load.pause(rng)
            if load.over.is_set():
                return


def damaged(load: Load, rng: random.Random) -> None:
    """Ask for broken recordings, which have to be answered as they were the first time."""
    with Talk(load, "damaged") as talk:
        for _ in range(rng.randint(1, 10)):
            for ask in load.draw(rng, rng.choice((1, 1, 3)), intact=False, stream=rng.random() < 0.3):
                talk.ask(ask, rng)
            talk.finish(rng)
            load.pause(rng, 0.2)
            if load.over.is_set():
                return


def slow(load: Load, rng: random.Random) -> None:
    """Ask for much and read it only now and then: everything has to be there in the end."""
    with Talk(load, "slow reader") as talk:
        for ask in load.draw(rng, rng.randint(4, 12)):
            talk.ask(ask, rng)
            talk.pump(0.0)
        for _ in range(rng.randint(1, 4)):
            load.over.wait(rng.uniform(0.2, 1.5))
            talk.pump(0.0)
        talk.finish(rng)
    load.pause(rng, 0.2)


def upload(load: Load, rng: random.Random) -> None:
    """Stream clips, calling some off."""
    with Talk(load, "upload") as talk:
        for _ in range(rng.randint(1, 10)):
            called_off = rng.random() < CANCELLED
            after_s = rng.expovariate(1 / MEAN_CANCEL_S) if called_off else math.inf
            talk.ask(load.draw(rng, stream=True)[0], rng, after_s)
            talk.finish(rng)
            load.pause(rng)
            if load.over.is_set():
                return


def half_upload(load: Load, rng: random.Random) -> None:
    """Stream a part of a clip and then stop, in one of the ways in which clients do."""
    kind, tally = "half an upload", load.tally
    how = rng.choices(("close", "cancel", "shut", "silence", "half a frame"), (4, 4, 4, 1, 1))[0]
    content = load.draw(rng, stream=True)[0].clip.path.read_bytes()
    with Raw(load.daemon.socket) as raw:
        raw.send(HELLO, {"type": "transcribe", "id": 1, "source": "stream"})
        part = content[: round(len(content) * rng.uniform(0, 0.9))]
        for at in range(0, len(part), 2**16):
            raw.send({"type": "audio", "id": 1, "data": part[at : at + 2**16]})
        if how == "close":
            tally.ended(kind, "closed")
            return
        if how == "cancel":
            raw.send({"type": "cancel", "id": 1})
        elif how == "half a frame":
            raw.send_bytes(encode({"type": "audio", "id": 1, "data": bytes(200)})[: rng.randint(1, 200)])
        if how in ("shut", "cancel"):
            raw.socket.shutdown(socket.SHUT_WR)
        events = raw.rest()
    found = [event for event in events if event["type"] in TERMINAL]
    # Whoever ends its side asks for nothing more; the others are told that their time is up.
    wanted = {"shut": [], "cancel": [(1, "cancelled")]}.get(how, [(None, "timeout")])
    if [(event["id"], event.get("code")) for event in found] == wanted:
        tally.ended(kind, how)
    else:
        tally.fault(kind, WRONG, f"after {how}: {found} came, and {wanted} was expected")
    for event in found:
        if "code" in event:
            tally.error(event["code"])
    load.pause(rng, 0.2)


def stuck(load: Load, rng: random.Random) -> None:
    """Ask for more than the daemon keeps for one client, read nothing, and be dropped."""
    kind = "stuck reader"
    with Raw(load.daemon.socket) as raw:
        raw.send(HELLO, *({"type": "status", "id": number} for number in range(STATUSES)))
        poll = select.poll()
        poll.register(raw.socket, 0)
        if poll.poll(ANSWER_S * 1000):
            load.tally.ended(kind, "dropped")
        else:
            load.tally.fault(kind, WRONG, "it was not dropped")
    load.pause(rng, 20.0)


def nonsense(load: Load, rng: random.Random) -> None:
    """Send what is not this protocol, or nothing."""
    kind = "nonsense"
    how = rng.choice(
        (
            rng.randbytes(rng.randint(1, 2_000)),
            b"\xff\xff\xff\xff",
            encode({**HELLO, "major": 9}),
            encode(HELLO) + (200).to_bytes(4, "big") + rng.randbytes(200),
            encode(HELLO) * 2,
            encode({"type": "status", "id": 1}),
            b"",
        )
    )
    with Raw(load.daemon.socket) as raw:
        raw.send_bytes(how)
        events = raw.rest()
    codes = [event["code"] for event in events if event["type"] == "error"]
    for code in codes:
        load.tally.error(code)
    if len(codes) == 1 and codes[0] in CLOSING:
        load.tally.ended(kind, "closed")
    else:
        load.tally.fault(kind, WRONG, f"{how[:40]!r} was answered {codes}")
    load.pause(rng, 0.5)


def command(load: Load, rng: random.Random) -> None:
    """Run `svctl` on a few clips; kill it in half of the cases."""
    kind, tally = "svctl", load.tally
    asks = load.draw(rng, rng.randint(1, 4), plain=True)
    process = subprocess.Popen(
        [
            *(str(BIN / "svctl"), "transcribe", "--socket", load.daemon.socket, "-f", "jsonl"),
            *(str(ask.clip.path) for ask in asks),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    killed = rng.random() < 0.5
    if killed:
        load.over.wait(rng.uniform(0.0, 0.4))
        process.kill()
    try:
        out, err = process.communicate(timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        tally.fault(kind, LOST, "it did not end")
        return
    if killed:
        tally.ended(kind, "killed")
        return
    lines = out.decode().splitlines()
    if process.returncode or len(lines) != len(asks):
        said = err.decode(errors="replace")[-200:]
        tally.fault(kind, LOST, f"{len(lines)} of {len(asks)}, status {process.returncode}: {said}")
        return
    for ask, line in zip(asks, lines, strict=True):
        answer = load.expected[ask]
        wanted = transcript(str(ask.clip.path), answer["events"], answer)
        found = difference(wanted, json.loads(line))
        if found:
            tally.fault(kind, WRONG, f"{ask}: {found}")
        else:
            tally.ended(kind, RIGHT)
    load.pause(rng, 0.5)


def reload(load: Load, rng: random.Random) -> None:
    """Change the settings, valid and invalid ones in turns, and have them read again."""
    kind, tally = "reload", load.tally
    for valid in (True, False):
        load.daemon.configure(rng.choice((ROOMY, ROOMY, TIGHT)) if valid else rng.choice(INVALID))
        load.daemon.hang_up()
        # By message too, because a signal has no answer that could be looked at.
        wanted = "reloaded" if valid else "config"
        client = load.daemon.connect()
        try:
            said = client.call("reload", "reloaded", patience_s=ANSWER_S)["type"]
        except WireError as error:
            tally.error(error.code)
            said = error.code
        finally:
            client.close()
        if said == wanted:
            tally.ended(kind, said)
        else:
            tally.fault(kind, WRONG, f"{said} came, and {wanted} was expected")
        load.pause(rng, 1.0)


def status(load: Load, rng: random.Random) -> None:
    """Ask for the status and a sign of life over one connection."""
    client = load.daemon.connect()
    try:
        for _ in range(20):
            began_s = time.monotonic()
            client.call("ping", "pong", patience_s=ANSWER_S)
            load.tally.waited("ping", time.monotonic() - began_s)
            client.call("status", "status", patience_s=ANSWER_S)
            load.tally.ended("status", "answered")
            load.pause(rng, 0.5)
            if load.over.is_set():
                return
    finally:
        client.close()


SCENES: dict[str, Scene] = {
    "damaged": damaged,
    "slow": slow,
    "upload": upload,
    "half_upload": half_upload,
    "stuck": stuck,
    "nonsense": nonsense,
    "command": command,
    "reload": reload,
    "status": status,
}
"""One client of each, beside as many steady ones as are asked for."""
