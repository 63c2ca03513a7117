"""Section D of the abuse table: start, stop, reload, kill, and what systemd may get wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from harness.daemon import Canary, DaemonProcess, script, wait_until
from harness.notifications import Notifications
from harness.wire_client import Closed, WireClient, memfd, texts

ACTIVATE = Path(__file__).parents[1] / "harness" / "activate.py"


@pytest.fixture
def manager(tmp_path):
    """The service manager's notification socket."""
    notifications = Notifications(tmp_path)
    yield notifications
    notifications.close()


def ask(client, request, content, **fields):
    """Send a request for a script; its descriptor is closed here at once."""
    fd = memfd(content)
    client.transcribe(request, fd, **fields)
    os.close(fd)


def test_f27_a_stuck_engine_stops_the_pings_and_abort_shows_where(start, manager):
    """Pings come while all is well and end while a batch is stuck, and SIGABRT prints every stack."""
    daemon = start(
        settings="[batch]\nstuck_after_s = 0.2",
        environ={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "300000"},
    )
    wait_until(lambda: manager.count("WATCHDOG=1") >= 3, "pings")
    with daemon.client() as client, daemon.client() as other:
        ask(client, 1, script({"say": "x", "engine_gate": "never"}))
        daemon.wait_engine_at("never")

        def starved():
            before = manager.count("WATCHDOG=1")
            return wait_until(lambda: other.status()["uptime_s"], "alive") and (
                daemon.status()["engine_busy_s"] > 1.0 and manager.count("WATCHDOG=1") == before
            )

        wait_until(starved, "stuck for long enough")
        before = manager.count("WATCHDOG=1")
        busy_s = daemon.status()["engine_busy_s"]
        wait_until(lambda: daemon.status()["engine_busy_s"] > busy_s + 0.5, "several intervals more")
        assert manager.count("WATCHDOG=1") == before
        daemon.signal(signal.SIGABRT)
        assert daemon.wait_end() == -signal.SIGABRT
        with pytest.raises(Closed):
            client.events(1)
    assert "Fatal Python error: Aborted" in daemon.text()
    assert "wait_for_gate" in daemon.text()


def test_f28_ready_comes_after_the_warm_up_and_waiting_requests_are_served(start, manager):
    """Until then: connections, pings and status are answered, more time is asked for, and requests wait."""
    daemon = start(
        environ={"NOTIFY_SOCKET": manager.path, "FAKE_LOAD_GATE": "load", "FAKE_WARM_UP_GATE": "warm"},
        ready=False,
    )
    wait_until(daemon.socket.exists, "socket", 30.0)
    with wait_until(lambda: connect(daemon.socket), "connection") as client:
        ask(client, 1, script("early bird"))
        assert client.ping()["type"] == "pong"
        assert client.status()["state"] == "loading"
        client.send({"type": "reload", "id": 5})
        assert client.receive()["code"] == "busy"
        wait_until(lambda: manager.count("EXTEND_TIMEOUT_USEC=") >= 2, "more time asked for")
        daemon.open_gate("load")
        wait_until(lambda: "warm_up\n" in daemon.engine_log(), "warm-up begun")
        assert client.status()["state"] == "loading"
        assert manager.count("READY=1") == 0
        daemon.open_gate("warm")
        assert texts(client.events(1)) == ["early bird"]
        wait_until(lambda: manager.count("READY=1") == 1, "READY")
        assert client.status()["state"] == "ready"
    assert daemon.stop() == 0


def connect(path):
    """A connection, or None where nobody listens yet."""
    try:
        return WireClient(path)
    except OSError:
        return None


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"FAKE_LOAD_FAILS": "1"}, "cannot be loaded: OSError: the fake weights are unreadable"),
        ({"FAKE_FRONTEND_FAILS": "1", "FAKE_LOAD_GATE": "never"}, "front end does not start"),
    ],
)
def test_f28_a_failed_start_is_told_and_never_ready(start, manager, environ, sentence):
    """Exit status 1, one sentence on stderr and as STATUS, no READY, and the socket is gone."""
    daemon = start(environ={"NOTIFY_SOCKET": manager.path, **environ}, ready=False)
    assert daemon.wait_end(30.0) == 1
    assert sentence in daemon.text().splitlines()[-1]
    assert daemon.text().splitlines()[-1].startswith("sensevoiced: ")
    assert "Traceback" not in daemon.text()
    statuses = [line for message in manager.messages() for line in message if line.startswith("STATUS=")]
    assert any(sentence in status for status in statuses)
    assert manager.count("READY=1") == 0
    assert not daemon.socket.exists()


def test_f28_stop_while_loading(start):
    """SIGTERM does not wait for the model; who waits for it is told."""
    daemon = start(environ={"FAKE_LOAD_GATE": "never"}, ready=False)
    with wait_until(lambda: connect(daemon.socket), "connection", 30.0) as client:
        ask(client, 1, script("x"))
        daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 1, "accepted")
        daemon.signal(signal.SIGTERM)
        assert client.events(1)[-1]["code"] == "shutting_down"
    assert daemon.wait_end() == 0


def test_f29_a_stopping_daemon_finishes_what_it_accepted(start, manager):
    """Running, queued and half-uploaded requests finish; new ones are `shutting_down`; the socket goes.

    Exit 0.
    """
    daemon = start(environ={"NOTIFY_SOCKET": manager.path})
    with daemon.client() as client, daemon.client() as idle:
        for request in range(8):
            ask(client, request, script(f"running {request}", {"say": "more", "engine_gate": "hold"}))
        daemon.wait_engine_at("hold")
        for request in range(8, 16):
            ask(client, request, script(f"queued {request}"))
        client.transcribe(16, source="stream")
        client.send({"type": "audio", "id": 16, "data": script("first half")})
        daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 17, "all accepted")
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: manager.count("STOPPING=1") == 1, "STOPPING")
        wait_until(lambda: not daemon.socket.exists(), "no new connections")
        ask(idle, 1, script("too late"))
        assert idle.events(1)[-1]["code"] == "shutting_down"
        assert idle.status()["state"] == "draining"
        client.send({"type": "audio", "id": 16, "data": script("second half")})
        client.send({"type": "end", "id": 16})
        daemon.open_gate("hold")
        for request in range(8):
            assert texts(client.events(request)) == [f"running {request}", "more"]
        for request in range(8, 16):
            assert texts(client.events(request)) == [f"queued {request}"]
        assert texts(client.events(16)) == ["first half", "second half"]
        assert daemon.wait_end() == 0
        assert idle.until_closed() == []
    assert "Traceback" not in daemon.text()
    assert daemon.engine_log().endswith("closed\n")


def test_f29_the_drain_has_an_end(start):
    """What does not finish in time is answered `shutting_down`, even while its batch still runs."""
    daemon = start(settings="[serving]\ndrain_timeout_s = 0.3")
    with daemon.client() as client:
        ask(client, 1, script({"say": "x", "engine_gate": "never"}))
        daemon.wait_engine_at("never")
        daemon.signal(signal.SIGTERM)
        assert client.events(1)[-1]["code"] == "shutting_down"
    assert daemon.wait_end() == 0


def test_f29_a_second_signal_ends_at_once(start):
    """Nobody who asks twice wants to wait for a batch."""
    daemon = start()
    with daemon.client() as client:
        ask(client, 1, script({"say": "x", "engine_gate": "never"}))
        daemon.wait_engine_at("never")
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: "to finish" in daemon.text(), "draining")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_end(10.0) == 0
        assert client.events(1)[-1]["code"] == "shutting_down"


def test_f29_a_second_signal_ends_what_comes_after_the_drain_too(start):
    """A client that does not take its last answers, and a batch that does not end, hold nobody up."""
    daemon = start(settings="[serving]\ndrain_timeout_s = 0.05")
    with daemon.client() as client:
        ask(client, 1, script({"say": "x", "engine_gate": "never"}))
        daemon.wait_engine_at("never")
        daemon.signal(signal.SIGTERM)
        assert client.events(1)[-1]["code"] == "shutting_down"  # the drain is over, the batch is not
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_end(10.0) == 0
    assert "told to stop again" in daemon.text()


def test_f30_many_reloads_under_load_lose_nothing(start, manager):
    """20 SIGHUPs, good and bad settings in turn.

    Requests go on, notifications pair up, a bad file changes nothing.
    """
    daemon = start(environ={"NOTIFY_SOCKET": manager.path}, settings='log_level = "debug"')
    canary = Canary(daemon)
    with daemon.client() as client:
        for n in range(20):
            daemon.config.write_text("[serving]\nmax_jobs = " + ("100" if n % 2 else "-5") + "\n")
            ask(client, n, script(f"reload {n}"))
            daemon.signal(signal.SIGHUP)
            wait_until(lambda n=n: manager.count("READY=1") == n + 2, "reload done")
            assert texts(client.events(n)) == [f"reload {n}"]
    assert manager.count("RELOADING=1") == 20
    stamps = [
        int(line.partition("=")[2])
        for message in manager.messages()
        for line in message
        if line.startswith("MONOTONIC_USEC=")
    ]
    assert stamps == sorted(stamps)
    assert daemon.text().count("the signal to reload came to nothing") == 10
    canary.check()


def test_f30_reload_says_what_it_did(start):
    """What is applied, what needs a restart, and what is wrong: to the client that asked."""
    daemon = start(settings="[serving]\nmax_jobs_per_connection = 1")
    with daemon.client() as client:
        daemon.config.write_text('device = "cpu"\n[serving]\nmax_jobs_per_connection = 2\nbacklog = 7\n')
        client.send({"type": "reload", "id": 1})
        answer = client.receive()
        assert (answer["type"], answer["id"]) == ("reloaded", 1)
        assert "Applied: serving.max_jobs_per_connection." in answer["message"]
        assert "A restart is needed for: device, serving.backlog." in answer["message"]
        for request in (2, 3):
            ask(client, request, script({"say": "x", "decode_gate": "go"}))
        daemon.open_gate("go")
        assert [client.events(request)[-1]["type"] for request in (2, 3)] == ["done", "done"]
        daemon.config.write_text("threads = -1")
        client.send({"type": "reload", "id": 4})
        error = client.receive()
        assert (error["code"], error["id"]) == ("config", 4)
        assert "threads takes 0 to 1024" in error["message"]


class Activated:
    """A listening socket of our own, as a socket unit keeps it, and daemons started on it."""

    def __init__(self, folder, name="sensevoiced.socket"):
        self.path = folder / "kept.sock"
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(self.path))
        self.listening.listen(16)
        self.listening.set_inheritable(True)
        self.wrapper = [sys.executable, str(ACTIVATE), str(self.listening.fileno()), name]

    def start(self, folder, **options):
        daemon = DaemonProcess(folder, wrapper=self.wrapper, pass_fds=[self.listening.fileno()], **options)
        daemon.socket = self.path
        return daemon


def test_f31_after_a_kill_the_next_daemon_serves_the_same_socket(tmp_path):
    """The client in mid-request sees the end, the next one is queued and served; no file is left over."""
    unit = Activated(tmp_path)
    first = unit.start(tmp_path / "one")
    try:
        with first.client() as client:
            ask(client, 1, script({"say": "x", "engine_gate": "never"}))
            first.wait_engine_at("never")
            first.kill()
            with pytest.raises(Closed):
                client.events(1)
    finally:
        first.kill()
    waiting = WireClient(unit.path, hello=False)
    waiting.send({"type": "hello", "major": 1, "minor": 0})
    second = unit.start(tmp_path / "two")
    try:
        assert waiting.receive()["type"] == "welcome"
        ask(waiting, 1, script("served"))
        assert texts(waiting.events(1)) == ["served"]
        waiting.close()
        assert second.stop() == 0
    finally:
        second.kill()
    assert stat.S_ISSOCK(unit.path.stat().st_mode), "an inherited socket is not ours to remove"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["kept.sock", "one", "two"]
    assert not (tmp_path / "one" / "run").exists()
    unit.listening.close()


def test_f31_a_daemon_of_its_own_takes_over_after_a_kill(start):
    """The socket file of a killed daemon does not stop the next."""
    daemon = start()
    daemon.kill()
    assert daemon.socket.exists()
    daemon.log.write_text("")
    daemon.start()
    Canary(daemon).check()


def test_f32_a_second_daemon_is_refused(start):
    """It says so and ends with 1; the first serves on."""
    daemon = start()
    canary = Canary(daemon)
    second = start(ready=False, environ={"SENSEVOICE_SOCKET": "/nowhere"}, socket=daemon.socket)
    assert second.wait_end(30.0) == 1
    assert "Another sensevoiced is running" in second.text()
    canary.check()


@pytest.mark.parametrize("environ", [{"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_FDS": "2"}])
def test_f33_variables_that_are_not_ours_are_ignored(start, environ):
    """Without our pid the daemon binds its own socket."""
    daemon = start(environ=environ)
    assert daemon.socket.exists()
    Canary(daemon).check()


@pytest.mark.parametrize(
    ("number", "sentence"),
    [("99", "handed over 99 sockets"), ("two", "not a number"), ("1", "not a socket")],
)
def test_f33_what_systemd_got_wrong_is_said_and_78(start, tmp_path, number, sentence):
    """A setting that cannot be used, in one sentence."""
    launcher = "import os, sys; os.dup2(os.open('/dev/null', os.O_RDONLY), 3); os.environ.update("
    launcher += "LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
    daemon = start(wrapper=[sys.executable, "-c", launcher, number], ready=False)
    assert daemon.wait_end(30.0) == 78
    assert sentence in daemon.text()


def test_f33_children_inherit_nothing_of_systemds(tmp_path, manager):
    """Neither the variables nor the socket reach a process that the daemon starts."""
    unit = Activated(tmp_path)
    daemon = unit.start(
        tmp_path / "one", environ={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "30000000"}
    )
    try:
        with daemon.client() as client:
            ask(client, 1, script({"say": "x", "spawn": True}))
            (segment, _) = client.events(1)
        seen = json.loads(segment["text"])
        assert [name for name in seen["environ"] if name.startswith(("LISTEN", "NOTIFY", "WATCHDOG"))] == []
        assert [name for name in seen["files"] if name.startswith("socket:")] == []
    finally:
        daemon.kill()
        unit.listening.close()


def test_a_failing_engine_ends_the_daemon_to_be_started_afresh(start):
    """After many failures in a row it exits with 70 (EX_SOFTWARE)."""
    daemon = start(settings="[batch]\nmax_failures_in_a_row = 3")
    with daemon.client() as client:
        for request in range(3):
            ask(client, request, script({"say": "x", "engine_fail": "internal"}))
            assert client.events(request)[-1]["code"] == "internal"
        assert daemon.wait_end() == 70


def test_a_defect_in_a_batch_fails_the_request_and_nothing_else(start):
    """The exception is logged once, the client gets `internal`, the daemon serves on."""
    daemon = start()
    with daemon.client() as client:
        ask(client, 1, script({"say": "x", "crash": True}))
        assert client.events(1)[-1]["code"] == "internal"
        ask(client, 2, script("fine"))
        assert texts(client.events(2)) == ["fine"]
    assert "as the script says" in daemon.text()


def test_jobs_log_nothing_to_stdout_and_journald_gets_priorities(tmp_path):
    """With JOURNAL_STREAM every line begins with its syslog level."""
    command = [sys.executable, "-m", "sensevoiced", "--config", "/dev/null", "--model", "/nowhere"]
    environ = {**os.environ, "JOURNAL_STREAM": "1:2"}
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (78, "")
    assert ended.stderr.count("\n") == 1
