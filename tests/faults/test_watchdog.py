"""F27: signs of life come while work goes on and end where it hangs; systemd's abort shows where that is."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness.asking import ask
from harness.daemon import Canary, script, wait_until
from harness.figures import note, within
from harness.socket_unit import SocketUnit, pending
from harness.svctl_process import run_svctl
from harness.wire_client import Closed, WireClient, texts

from svctl.wire import ERRORS

DEADLINE_S = 1.5
"""WatchdogSec= of these tests: a sign of life is due every half second, on a machine that may be busy."""
SILENT_SETTINGS = "[batch]\nstuck_after_s = 0.2"
HANGS = {"engine_gate": "wait_for_gate", "block_loop": "block_the_loop"}
"""A hang that a script can ask for, and its function: on the engine's thread, on the event loop's."""


def watched(manager):
    """What systemd tells a service that has a watchdog."""
    return {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": str(round(DEADLINE_S * 1e6))}


def abort_when_overdue(daemon, manager):
    """Do as systemd does: SIGABRT after a deadline without a sign of life. Gives the seconds of silence."""
    wait_until(lambda: manager.silence_s("WATCHDOG=1") > DEADLINE_S, "a deadline missed")
    silence_s = manager.silence_s("WATCHDOG=1")
    daemon.signal(signal.SIGABRT)
    assert daemon.wait_end() == -signal.SIGABRT
    return silence_s


@pytest.mark.parametrize("hang", HANGS)
def test_f27_a_hang_stops_the_pings_and_abort_shows_every_stack(start, manager, record_property, hang):
    """A stuck batch, a blocked event loop: no ping any more, and SIGABRT prints the stacks of all threads."""
    daemon = start(settings=SILENT_SETTINGS, environ=watched(manager))
    wait_until(lambda: manager.count("WATCHDOG=1") >= 3, "pings")
    with daemon.client() as client:
        ask(client, 1, script({"say": "x", hang: "never"}))
        daemon.wait_engine_at("never")
        threads = daemon.threads()
        silence_s = abort_when_overdue(daemon, manager)
        with pytest.raises(Closed):
            client.events(1)
    log = daemon.text()
    assert "Fatal Python error: Aborted" in log
    stacks = log.count("Thread 0x") + log.count("Current thread 0x")
    assert stacks >= 2
    assert f"in {HANGS[hang]}" in log
    assert "in _one_turn" in log, "the engine's thread"
    assert "in run_forever" in log, "the event loop's"
    note(
        record_property,
        f"{hang}: SIGABRT after {silence_s:.1f} s of silence (deadline {DEADLINE_S} s), "
        f"stacks of {stacks} of {threads} threads in the log",
    )


def test_f27_a_stuck_batch_is_told_and_pings_come_back_after_it(start, manager):
    """While only the engine hangs, log and STATUS= say so, status is answered, and the batch's end heals."""
    daemon = start(settings=SILENT_SETTINGS, environ=watched(manager))
    canary = Canary(daemon)
    with daemon.client() as client, daemon.client() as other:
        ask(client, 1, script({"say": "x", "engine_gate": "later"}))
        daemon.wait_engine_at("later")
        wait_until(lambda: any("Stuck: a batch" in said for said in manager.values("STATUS")), "STATUS")
        before = manager.count("WATCHDOG=1")
        wait_until(lambda: other.status()["engine_busy_s"] > DEADLINE_S, "several intervals more")
        assert manager.count("WATCHDOG=1") == before
        daemon.open_gate("later")
        assert texts(client.events(1)) == ["x"]
        wait_until(lambda: manager.count("WATCHDOG=1") >= before + 2, "pings again")
    assert daemon.text().count("no more signs of life") == 1
    assert "Stuck" not in manager.values("STATUS")[-1]
    canary.check()


@pytest.mark.parametrize("hang", HANGS)
def test_f27_clients_of_an_aborted_daemon_hear_that_they_may_try_again(
    start, tmp_path, record_property, hang
):
    """In the batch, queued, or not even accepted: one sentence, exit status 69, of a code worth a retry."""
    daemon = start(settings=SILENT_SETTINGS)
    (tmp_path / "hangs.wav").write_bytes(script({"say": "x", hang: "never"}))
    (tmp_path / "waits.wav").write_bytes(script("y"))
    with ThreadPoolExecutor(4) as pool:

        def transcribe(name):
            run = run_svctl(daemon.socket, "transcribe", name, cwd=tmp_path)
            return run, time.monotonic()

        runs = [pool.submit(transcribe, "hangs.wav")]
        daemon.wait_engine_at("never")
        runs += [pool.submit(transcribe, "waits.wav") for _ in range(3)]
        if hang == "engine_gate":
            daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 4, "three more jobs")
        else:
            wait_until(lambda: pending(daemon.socket) == 3, "three connections in the kernel's queue")
        began_s = time.monotonic()
        daemon.signal(signal.SIGABRT)
        answers = [run.result() for run in runs]
    for (status, out, err), _ in answers:
        assert (status, out) == (ERRORS["unavailable"][1], "")
        (sentence,) = err.splitlines()
        assert sentence.endswith("try again.")
    assert ERRORS["unavailable"][:2] == (True, 69)
    slowest_s = max(ended_s for _, ended_s in answers) - began_s
    within(record_property, f"{hang}: svctl ends with 69 after the abort", slowest_s, 1.0, "s")


def test_f27_the_next_daemon_serves_who_waited(tmp_path, record_property):
    """On systemd's socket, whoever was not accepted by the blocked daemon is served by its successor."""
    (tmp_path / "waits.wav").write_bytes(script("served after all"))
    with SocketUnit(tmp_path) as unit, ThreadPoolExecutor(1) as pool:
        first = unit.start(tmp_path / "one")
        second = None
        try:
            with WireClient(unit.path) as client:
                ask(client, 1, script({"say": "x", "block_loop": "never"}))
                first.wait_engine_at("never")
                waiting = pool.submit(run_svctl, unit.path, "transcribe", "waits.wav", cwd=tmp_path)
                wait_until(lambda: pending(unit.path) == 1, "a connection in the kernel's queue")
                first.signal(signal.SIGABRT)
                assert first.wait_end() == -signal.SIGABRT
                began_s = time.monotonic()
                second = unit.start(tmp_path / "two")
                assert waiting.result() == (0, "[EN][NEUTRAL] served after all\n", "")
                note(
                    record_property,
                    f"served by the next daemon {time.monotonic() - began_s:.2f} s after its start",
                )
            Canary(second).check()
        finally:
            for daemon in (first, second):
                if daemon is not None:
                    daemon.kill()


def test_f27_signs_of_life_come_in_time(start, manager, record_property):
    """Loading (more time asked for), idle and working: never a deadline without a sign.

    No WATCHDOG=1 before READY=1: it would start systemd's clock while imports may be silent for long.
    """
    daemon = start(environ={**watched(manager), "FAKE_LOAD_GATE": "load"}, ready=False)
    wait_until(lambda: manager.count("EXTEND_TIMEOUT_USEC=") >= 4, "more time asked for", 60.0)
    assert manager.count("WATCHDOG=1") == 0
    daemon.open_gate("load")
    daemon.wait_ready()
    wait_until(lambda: manager.count("WATCHDOG=1") >= 4, "pings of an idle daemon")
    with daemon.client() as client:
        ask(client, 1, script({"say": "x", "engine_gate": "work"}))
        daemon.wait_engine_at("work")
        before = manager.count("WATCHDOG=1")
        wait_until(lambda: manager.count("WATCHDOG=1") >= before + 4, "pings during a batch")
        daemon.open_gate("work")
        assert texts(client.events(1)) == ["x"]
    for when, assignment in (("loading", "EXTEND_TIMEOUT_USEC="), ("idle and working", "WATCHDOG=1")):
        gap_s = manager.longest_gap_s(assignment)
        within(record_property, f"longest silence while {when}", gap_s, DEADLINE_S, "s", slack=1)
    Canary(daemon).check()


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
