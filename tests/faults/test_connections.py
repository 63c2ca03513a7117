"""Section B of the abuse table: connections that are too many, do nothing, or never stop talking."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import threading
import time
from pathlib import Path

import pytest
from harness.abuse import latency_s
from harness.asking import ask
from harness.daemon import Canary, script, wait_until
from harness.figures import note, within
from harness.puppet import Puppet
from harness.users import FOR_ALL, NOBODY, let_in, needs_root, public_folder
from harness.wire_client import WireClient, memfd, texts

from sensevoiced.config import ServingConfig
from svctl.framing import encode

KIB = 2**10
CROWD = 1_000
IDLE_S = 10.0
EXCESS = 50
WITHOUT_DESCRIPTORS_S = 3.0
"""Long enough for the daemon to try again a few times."""


@pytest.fixture
def many_descriptors():
    """Let this process hold a crowd of connections."""
    wanted = 2 * CROWD
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != hard < wanted:
        pytest.skip(f"a process may have {hard} descriptors here, and {wanted} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_f09_a_thousand_idle_connections(start, record_property, many_descriptors):
    """All are accepted and cost little memory and nobody's time; each is closed at the idle limit."""
    daemon = start(settings=f"[serving]\nmax_connections_per_uid = 1024\nidle_timeout_s = {IDLE_S}")
    canary = Canary(daemon)
    alone_s = latency_s(canary)
    before = daemon.resident_bytes()
    crowd, greeted_s = {}, {}
    with contextlib.ExitStack() as stack:
        for _ in range(CROWD):
            began_s = time.monotonic()
            client = stack.enter_context(daemon.client())
            crowd[client.socket.fileno()] = client
            greeted_s[client] = began_s
        each = (daemon.resident_bytes() - before) / CROWD
        assert daemon.status()["connections"] == CROWD + 1
        beside_s = latency_s(canary)
        within(record_property, "RSS of an idle connection", each / KIB, 64, "KiB", slack=1)
        within(record_property, f"canary beside {CROWD} of them", beside_s / alone_s, 1.2, "x")
        closed_s = closing_times(crowd, greeted_s)
        assert min(closed_s) >= IDLE_S
        within(record_property, f"closed, of {IDLE_S:g} s, late by", max(closed_s) - IDLE_S, 1.0, "s")
    assert daemon.status()["connections_closed"] == {"timeout": CROWD}
    canary.check()


def closing_times(crowd, greeted_s):
    """Seconds from each connection's beginning to its end, which has to be a `timeout`; clients by socket."""
    poll, took_s = select.poll(), []
    for fd in crowd:
        poll.register(fd, select.POLLIN)
    while len(took_s) < len(crowd):
        ended = poll.poll(60_000)
        now_s = time.monotonic()
        assert ended, "the daemon keeps idle connections"
        for fd, _ in ended:
            poll.unregister(fd)
            (error,) = crowd[fd].until_closed()
            assert error["code"] == "timeout"
            took_s.append(now_s - greeted_s[crowd[fd]])
    return took_s


def test_f10_each_connection_above_the_cap_is_turned_away_and_counted(
    start, record_property, many_descriptors
):
    """`too_many_connections` and the end for exactly the excess; the others are served; room comes back."""
    cap = ServingConfig().max_connections_per_uid
    daemon = start()
    canary = Canary(daemon)
    took_s = []
    with contextlib.ExitStack() as stack:
        inside = [stack.enter_context(daemon.client()) for _ in range(cap)]
        for _ in range(EXCESS):
            began_s = time.monotonic()
            with daemon.client(hello=False) as excess:
                (error,) = excess.until_closed()
            took_s.append(time.monotonic() - began_s)
            assert (error["code"], error["id"]) == ("too_many_connections", None)
            assert error["retryable"]
            assert error["retry_after_ms"] >= 100
        rejected = inside[0].status()["clients_rejected"]
        assert rejected == EXCESS
        note(
            record_property,
            f"{rejected} of {cap} + {EXCESS} turned away, each within {1000 * max(took_s):.0f} ms",
        )
        assert texts(inside[-1].ask(1, memfd(script("inside")))) == ["inside"]
        inside.pop().close()
        wait_until(lambda: joined(daemon), "room for another").close()
    canary.check()


def joined(daemon):
    """A connection, or None where the daemon has too many."""
    try:
        return WireClient(daemon.socket)
    except AssertionError:
        return None


@needs_root
def test_f10_one_users_connections_leave_room_for_anothers(start):
    """Who is at the cap of one user keeps nobody else out, who has a cap of their own."""
    with public_folder() as folder:
        daemon = let_in(start(folder=folder, settings=FOR_ALL + "[serving]\nmax_connections_per_uid = 4"))
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(daemon.client())
            assert joined(daemon) is None
            other = stack.enter_context(Puppet(daemon.socket, uid=NOBODY))
            assert other.run("texts(client.ask(1, memfd(script('let in'))))") == ["let in"]
            errors = "[connect(hello=False).until_closed()[0]['code'] for _ in range(2)]"
            held = "held = [connect() for _ in range(3)]"
            assert other.run(held, errors) == ["too_many_connections"] * 2


def test_f11_without_free_descriptors_the_daemon_waits_and_recovers(start, record_property):
    """No crash, no busy loop while connections and descriptors flood in, and service soon after they go.

    Connections that came before are answered all the while; a file that cannot be received is `busy`.
    """
    daemon = start(settings="[serving]\nhello_timeout_s = 60")
    canary = Canary(daemon)
    _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        inside = [stack.enter_context(daemon.client()) for _ in range(3)]
        highest = max(int(entry.name) for entry in Path(f"/proc/{daemon.pid}/fd").iterdir())
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (highest + 7, hard))
        crowd = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(100)]
        for sock in crowd[:12]:
            sock.connect(str(daemon.socket))
        wait_until(lambda: "for want of" in daemon.text(), "the shortage is noticed")
        full = daemon.descriptors()
        watcher, *senders = inside
        for client in senders:
            ask(client, 1, script("x"))
            assert client.until_closed()[-1]["code"] == "busy"
            wait_until(lambda: daemon.descriptors() == full, "somebody else has that descriptor")
        waiting = iter(crowd[12:])
        began_s, began_cpu_s = time.monotonic(), cpu_s(daemon.pid)

        def flooded():
            if (sock := next(waiting, None)) is not None:
                sock.setblocking(False)
                sock.connect(str(daemon.socket))
            return time.monotonic() - began_s > WITHOUT_DESCRIPTORS_S

        wait_until(flooded, "a few tries to accept")
        used = (cpu_s(daemon.pid) - began_cpu_s) / (time.monotonic() - began_s)
        within(record_property, "CPU while out of descriptors", 100 * used, 20, "% of a core", slack=1)
        assert watcher.status()["state"] == "ready"
    # The stack has closed all of them.
    began_s = time.monotonic()
    with daemon.client() as client:
        assert texts(client.ask(1, memfd(script("back")))) == ["back"]
    within(record_property, "served again after", time.monotonic() - began_s, 3, "s")
    canary.check()


def cpu_s(pid):
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_messages_of_an_idle_connection_end_it(start):
    """A connection without a request is closed after the idle time, one that waits for us is not."""
    daemon = start(settings="[serving]\nidle_timeout_s = 0.2")
    with daemon.client() as waiting, daemon.client() as idler:
        ask(waiting, 1, script({"say": "x", "engine_gate": "wall"}))
        assert idler.until_closed()[-1]["code"] == "timeout"
        daemon.open_gate("wall")
        assert waiting.events(1)[-1]["type"] == "done"


def test_a_flood_of_messages_leaves_others_their_turn(daemon):
    """A client whose bytes never run out does not keep the event loop to itself."""
    enough = threading.Event()
    pings = b"".join(encode({"type": "ping", "id": n}) for n in range(1000))
    with daemon.client() as flood, daemon.client(timeout_s=5) as other:

        def send():
            while not enough.is_set():
                flood.send_raw(pings)
            flood.socket.shutdown(socket.SHUT_WR)

        def receive():
            while flood.socket.recv(2**20):
                pass

        threads = [threading.Thread(target=work) for work in (send, receive)]
        for thread in threads:
            thread.start()
        try:
            for request in range(20):
                assert other.ping(request)["id"] == request
        finally:
            enough.set()
            for thread in threads:
                thread.join()
