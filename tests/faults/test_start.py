"""F28: what clients and systemd see of a start, from the socket to READY=1, or to the end of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from harness.asking import ask
from harness.daemon import Canary, script, wait_until
from harness.figures import note, within
from harness.wire_client import WireClient, texts


def connect(path):
    """A connection, or None where nobody listens yet."""
    try:
        return WireClient(path)
    except OSError:
        return None


def test_f28_ready_comes_after_the_warm_up_and_waiting_requests_are_served(start, manager, record_property):
    """Until then: connections, pings and status are answered, more time is asked for, and requests wait."""
    began_s = time.monotonic()
    daemon = start(
        environ={"NOTIFY_SOCKET": manager.path, "FAKE_LOAD_GATE": "load", "FAKE_WARM_UP_GATE": "warm"},
        ready=False,
    )
    wait_until(daemon.socket.exists, "socket", 30.0)
    with wait_until(lambda: connect(daemon.socket), "connection") as client:
        ask(client, 1, script("early bird"))
        assert client.ping()["type"] == "pong"
        answered_s = time.monotonic() - began_s
        assert client.status()["state"] == "loading"
        client.send({"type": "reload", "id": 5})
        assert client.receive()["code"] == "busy"
        wait_until(lambda: manager.count("EXTEND_TIMEOUT_USEC=") >= 3, "more time asked for")
        daemon.open_gate("load")
        wait_until(lambda: "warm_up\n" in daemon.engine_log(), "warm-up begun")
        assert client.status()["state"] == "loading"
        assert manager.count("READY=1") == 0
        daemon.open_gate("warm")
        assert texts(client.events(1)) == ["early bird"]
        wait_until(lambda: manager.count("READY=1") == 1, "READY")
        assert client.status()["state"] == "ready"
        Canary(daemon).check()
    extends_s = [int(value) / 1e6 for value in manager.values("EXTEND_TIMEOUT_USEC")]
    gap_s = manager.longest_gap_s("EXTEND_TIMEOUT_USEC=")
    assert gap_s < min(extends_s), "each asks for more than passes until the next"
    note(record_property, f"ping answered {answered_s:.2f} s after the start, long before READY=1")
    note(record_property, f"EXTEND_TIMEOUT_USEC={min(extends_s):g} s every {gap_s:.1f} s while loading")
    assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"FAKE_LOAD_FAILS": "1"}, "cannot be loaded: OSError: the fake weights are unreadable"),
        ({"FAKE_FRONTEND_FAILS": "1", "FAKE_LOAD_GATE": "never"}, "front end does not start"),
    ],
)
def test_f28_a_failed_start_is_told_and_never_ready(start, manager, record_property, environ, sentence):
    """Exit status 1, one sentence on stderr and as STATUS, no READY, and the socket is gone."""
    began_s = time.monotonic()
    daemon = start(environ={"NOTIFY_SOCKET": manager.path, **environ}, ready=False)
    assert daemon.wait_end(30.0) == 1
    took_s = time.monotonic() - began_s
    assert sentence in daemon.text().splitlines()[-1]
    assert daemon.text().splitlines()[-1].startswith("sensevoiced: ")
    assert "Traceback" not in daemon.text()
    assert any(sentence in status for status in manager.values("STATUS"))
    assert manager.count("READY=1") == 0
    assert not daemon.socket.exists()
    note(record_property, f"load failure: exit 1 and STATUS={sentence!r} after {took_s:.1f} s")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--model", "/nowhere"), "/nowhere"),
        (("--log-level", "loud"), "--log-level takes one of"),
    ],
)
def test_f28_what_fails_before_anything_is_loaded_is_told_too(tmp_path, manager, words, sentence):
    """A setting that cannot be used, or a model that is not there: 78, and the sentence in STATUS= too."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "NOTIFY_SOCKET": manager.path}
    command = [sys.executable, "-m", "sensevoiced", "--config", "/dev/null", *words]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (78, "")
    line = ended.stderr.splitlines()[-1]
    assert line.startswith("sensevoiced: ")
    assert sentence in line
    told = wait_until(lambda: manager.values("STATUS"), "STATUS")
    assert told == [line.removeprefix("sensevoiced: ")[: len(told[0])]]
    assert manager.count("READY=1") == 0


def test_f28_stop_while_loading(start, record_property):
    """SIGTERM does not wait for the model; who waits for it is told."""
    daemon = start(environ={"FAKE_LOAD_GATE": "never"}, ready=False)
    with wait_until(lambda: connect(daemon.socket), "connection", 30.0) as client:
        ask(client, 1, script("x"))
        daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 1, "accepted")
        began_s = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert client.events(1)[-1]["code"] == "shutting_down"
    assert daemon.wait_end() == 0
    within(record_property, "SIGTERM while loading: exit after", time.monotonic() - began_s, 3.5, "s")


def test_f28_a_start_that_hangs_is_given_up(start, manager):
    """After load_timeout_s no more time is asked for; systemd's own limit then ends it, with all stacks."""
    daemon = start(
        settings="load_timeout_s = 0.5",
        environ={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "300000", "FAKE_LOAD_GATE": "never"},
        ready=False,
    )
    wait_until(lambda: manager.count("EXTEND_TIMEOUT_USEC=") >= 2, "more time asked for", 60.0)
    wait_until(lambda: "asked for no more time" in daemon.text(), "the end of it")
    asked = manager.count("EXTEND_TIMEOUT_USEC=")
    with daemon.client() as client:
        wait_until(lambda: client.status()["uptime_s"] > 1.5, "several heartbeats more")
    assert manager.count("EXTEND_TIMEOUT_USEC=") == asked
    daemon.signal(signal.SIGABRT)  # TimeoutStartFailureMode=abort of the unit
    assert daemon.wait_end() == -signal.SIGABRT
    assert "in load_engine" in daemon.text()
    assert manager.count("READY=1") == 0


def test_nothing_is_written_to_stdout_and_journald_gets_priorities(tmp_path):
    """With JOURNAL_STREAM a failing start is still one line on stderr."""
    command = [sys.executable, "-m", "sensevoiced", "--config", "/dev/null", "--model", "/nowhere"]
    environ = {**os.environ, "JOURNAL_STREAM": "1:2"}
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (78, "")
    assert ended.stderr.count("\n") == 1
