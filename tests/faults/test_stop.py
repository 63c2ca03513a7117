"""F29: SIGTERM finishes what was accepted in its time, a second one nothing; only our socket is removed."""

from __future__ import annotations

import signal
import socket
import stat
import time

from harness.asking import ask
from harness.daemon import script, wait_until
from harness.figures import note, within
from harness.socket_unit import SocketUnit
from harness.wire_client import texts

from sensevoiced.daemon import CLOSE_S
from sensevoiced.serving.server import CUT_OFF_S

RUNNING, QUEUED, UPLOADING = range(8), range(8, 16), 16


def load_up(daemon, client):
    """Eight requests in the engine's batch, eight behind them, and one that is half uploaded."""
    for request in RUNNING:
        ask(
            client,
            request,
            script({"say": f"running {request}", "decode_gate": "all", "engine_gate": "hold"}),
        )
    daemon.wait_status(lambda status: status["queue"]["jobs_active"] == len(RUNNING), "eight jobs")
    # The first of them opens the batch alone; the other seven are the next one, and wait with it.
    daemon.open_gate("all")
    daemon.wait_engine_at("hold")
    for request in QUEUED:
        ask(client, request, script(f"queued {request}"))
    client.transcribe(UPLOADING, source="stream")
    client.send({"type": "audio", "id": UPLOADING, "data": script("first half")})
    daemon.wait_status(lambda status: status["queue"]["jobs_active"] == UPLOADING + 1, "all accepted")


def test_f29_a_stopping_daemon_finishes_what_it_accepted(start, manager, record_property):
    """Running, queued and half-uploaded requests finish; new ones are `shutting_down`; the socket goes.

    Exit 0, a moment after the last answer.
    """
    daemon = start(environ={"NOTIFY_SOCKET": manager.path})
    with daemon.client() as client, daemon.client() as idle:
        load_up(daemon, client)
        began_s = time.monotonic()
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: manager.count("STOPPING=1") == 1, "STOPPING")
        told_s = time.monotonic() - began_s
        wait_until(lambda: not daemon.socket.exists(), "no new connections")
        ask(idle, 1, script("too late"))
        assert idle.events(1)[-1]["code"] == "shutting_down"
        assert idle.status()["state"] == "draining"
        client.send({"type": "audio", "id": UPLOADING, "data": script("second half")})
        client.send({"type": "end", "id": UPLOADING})
        began_s = time.monotonic()
        daemon.open_gate("hold")
        for request in RUNNING:
            assert texts(client.events(request)) == [f"running {request}"]
        for request in QUEUED:
            assert texts(client.events(request)) == [f"queued {request}"]
        assert texts(client.events(UPLOADING)) == ["first half", "second half"]
        assert daemon.wait_end() == 0
        took_s = time.monotonic() - began_s
        assert idle.until_closed() == []
    assert "Traceback" not in daemon.text()
    assert daemon.engine_log().endswith("closed\n")
    within(record_property, "SIGTERM: STOPPING=1 after", told_s, 0.1, "s")
    within(
        record_property, "17 accepted requests finished, exit 0 after the engine went on", took_s, 2.0, "s"
    )


def test_f29_the_drain_has_an_end(start, record_property):
    """What does not finish in time is answered `shutting_down`, even while its batch still runs."""
    drain_s = 0.3
    daemon = start(settings=f"[serving]\ndrain_timeout_s = {drain_s}")
    with daemon.client() as client:
        ask(client, 1, script({"say": "x", "engine_gate": "never"}))
        daemon.wait_engine_at("never")
        began_s = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert client.events(1)[-1]["code"] == "shutting_down"
    assert daemon.wait_end() == 0
    limit_s = drain_s + CLOSE_S + CUT_OFF_S
    took_s = time.monotonic() - began_s
    within(record_property, "SIGTERM with a stuck batch: exit 0 after", took_s, limit_s, "s", slack=3)


def test_f29_a_stop_right_after_the_socket_appeared_removes_it(start):
    """However early SIGTERM comes, once there is a socket: exit 0, and nothing is left at the path."""
    for _ in range(3):
        daemon = start(ready=False)
        wait_until(lambda one=daemon: "listening at" in one.text(), "the socket")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_end() == 0
        assert not daemon.socket.exists()


def test_f29_a_second_signal_ends_at_once(start, record_property):
    """Nobody who asks twice wants to wait: all 17 requests are answered `shutting_down`, and it is over."""
    daemon = start()
    with daemon.client() as client:
        load_up(daemon, client)
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: "to finish" in daemon.text(), "draining")
        began_s = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_end(10.0) == 0
        took_s = time.monotonic() - began_s
        for request in (*RUNNING, *QUEUED, UPLOADING):
            assert client.events(request)[-1]["code"] == "shutting_down"
    within(record_property, "second SIGTERM, 17 unfinished requests: exit 0 after", took_s, 1.0, "s")
    assert "Traceback" not in daemon.text()
    assert not daemon.socket.exists()


def test_f29_a_second_signal_ends_what_comes_after_the_drain_too(start, record_property):
    """A client that does not take its last answers, and a batch that does not end, hold nobody up."""
    daemon = start(settings="[serving]\ndrain_timeout_s = 0.05")
    with daemon.client() as client:
        ask(client, 1, script({"say": "x", "engine_gate": "never"}))
        daemon.wait_engine_at("never")
        daemon.signal(signal.SIGTERM)
        assert client.events(1)[-1]["code"] == "shutting_down"  # the drain is over, the batch is not
        began_s = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_end(10.0) == 0
    within(
        record_property, "second SIGTERM after the drain: exit after", time.monotonic() - began_s, 1.0, "s"
    )
    assert "told to stop again" in daemon.text()


def test_f29_an_inherited_socket_stays(tmp_path):
    """It is systemd's: after the end it is still there, and connections queue up for the next daemon."""
    with SocketUnit(tmp_path) as unit:
        daemon = unit.start(tmp_path / "one")
        try:
            assert daemon.status()["state"] == "ready"
            assert daemon.stop() == 0
        finally:
            daemon.kill()
        assert stat.S_ISSOCK(unit.path.stat().st_mode)
        with socket.socket(socket.AF_UNIX) as next_client:
            next_client.connect(str(unit.path))


def test_f29_a_socket_that_is_not_the_one_we_made_stays(start, record_property):
    """Somebody removed ours and bound another one there: that one is not ours to remove."""
    daemon = start()
    daemon.socket.unlink()
    with socket.socket(socket.AF_UNIX) as another:
        another.bind(str(daemon.socket))
        made = daemon.socket.stat().st_ino
        assert daemon.stop() == 0
        assert daemon.socket.stat().st_ino == made
    note(record_property, "socket removed only where it is the one that was bound (device and inode)")
