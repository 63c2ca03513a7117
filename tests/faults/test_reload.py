"""F30: SIGHUP and `reload` change what may change, all of it or nothing, and no request notices."""

from __future__ import annotations

import os
import signal
import threading
import time

from harness.asking import ask
from harness.daemon import Canary, script, wait_until
from harness.figures import note
from harness.wire_client import texts

ROUNDS, CLIENTS = 50, 4
WRONG = 'log_level = "debug"\n[serving]\nmax_jobs_per_connection = 1\nmax_jobs = -5\n'
"""Its last line cannot be used, so nothing of it may come into force."""


def right(number):
    """Settings that differ from round to round."""
    return f"[serving]\nmax_jobs_per_connection = {5 + number}\n"


def states(manager):
    """What systemd was told of reloads, in order, without the READY=1 of the start."""
    told = [message[0] for message in manager.messages() if message[0] in ("READY=1", "RELOADING=1")]
    return told[1:]


def reload_over_the_wire(client):
    """The daemon's answer to `reload`."""
    client.send({"type": "reload", "id": 1_000_000})
    return client.receive()


def test_f30_fifty_reloads_under_load_lose_nothing(start, manager, record_property):
    """Good and bad settings in turn, while four clients ask on and on.

    Every request gets its own answer, notifications pair up, a bad file changes nothing, nothing is leaked.
    """
    daemon = start(environ={"NOTIFY_SOCKET": manager.path}, settings=right(0))
    canary = Canary(daemon)
    over, wrong, answered = threading.Event(), [], []

    def keep_asking(number):
        with daemon.client() as client:
            while not over.is_set():
                said = [f"client {number}", f"request {len(answered)}"]
                ask(client, 1, script(*said))
                events = client.events(1)
                answered.append(number)
                if texts(events) != said or events[-1]["type"] != "done":
                    wrong.append(events)

    crowd = [threading.Thread(target=keep_asking, args=(number,)) for number in range(CLIENTS)]
    for one in crowd:
        one.start()
    slowest_s = 0.0
    try:
        wait_until(lambda: set(answered) == set(range(CLIENTS)), "all at work")
        for number in range(ROUNDS):
            daemon.config.write_text(WRONG if number % 2 else right(number))
            began_s = time.monotonic()
            daemon.signal(signal.SIGHUP)
            wait_until(lambda n=number: manager.count("READY=1") == n + 2, "reload done")
            slowest_s = max(slowest_s, time.monotonic() - began_s)
    finally:
        over.set()
        for one in crowd:
            one.join()
    assert wrong == []
    assert states(manager) == ["RELOADING=1", "READY=1"] * ROUNDS
    reloading = [message for message in manager.messages() if "RELOADING=1" in message]
    stamps = [int(message[1].removeprefix("MONOTONIC_USEC=")) for message in reloading]
    assert stamps == sorted(set(stamps)), "each later than the one before"
    assert daemon.text().count("the signal to reload came to nothing") == ROUNDS // 2
    assert "DEBUG" not in daemon.text()
    daemon.config.write_text(right(ROUNDS - 2))
    with daemon.client() as client:
        assert reload_over_the_wire(client)["message"] == "Nothing to apply.", "the last good one is in force"
    canary.check()
    note(
        record_property,
        f"{ROUNDS} SIGHUPs, {len(answered)} requests of {CLIENTS} clients, none lost or mixed up",
    )
    note(
        record_property,
        f"slowest reload {slowest_s * 1000:.0f} ms; descriptors {canary.descriptors} before and "
        f"{daemon.descriptors()} after, threads {canary.threads} and {daemon.threads()}",
    )


def test_f30_signals_that_come_all_at_once_end_in_the_last_settings(start, manager, record_property):
    """The kernel merges signals of a kind; whatever comes of it pairs up, and the last file counts."""
    daemon = start(environ={"NOTIFY_SOCKET": manager.path}, settings=right(0))
    canary = Canary(daemon)
    daemon.config.write_text(right(7))
    for _ in range(ROUNDS):
        daemon.signal(signal.SIGHUP)
    with daemon.client() as client:
        wait_until(lambda: manager.count("READY=1") >= 2, "a reload")
        assert reload_over_the_wire(client)["message"] == "Nothing to apply."
    canary.check()
    reloads = len(states(manager)) // 2
    assert states(manager) == ["RELOADING=1", "READY=1"] * reloads
    note(record_property, f"{ROUNDS} SIGHUPs at once became {reloads - 1} reloads")


def test_f30_limits_and_log_level_change_together_or_not_at_all(start):
    """What is applied, what needs a restart, and what is wrong: to the client that asked."""
    daemon = start(settings="[serving]\nmax_jobs_per_connection = 1")
    with daemon.client() as client:
        daemon.config.write_text(
            'device = "cpu"\nlog_level = "debug"\n[serving]\nmax_jobs_per_connection = 2\nbacklog = 7\n'
        )
        answer = reload_over_the_wire(client)
        assert answer["type"] == "reloaded"
        assert "Applied: log_level, serving.max_jobs_per_connection." in answer["message"]
        assert "A restart is needed for: device, serving.backlog." in answer["message"]
        for request in (2, 3):
            ask(client, request, script({"say": "x", "decode_gate": "go"}))
        daemon.open_gate("go")
        assert [client.events(request)[-1]["type"] for request in (2, 3)] == ["done", "done"]
        wait_until(lambda: "DEBUG" in daemon.text(), "the new log level")
        daemon.config.write_text(
            'log_level = "error"\n[serving]\nmax_jobs_per_connection = 1\n[batch]\nx = 1\n'
        )
        error = reload_over_the_wire(client)
        assert error["code"] == "config"
        assert "[batch]" in error["message"]
        before = daemon.text().count("DEBUG")
        for request in (4, 5):
            ask(client, request, script({"say": "x", "decode_gate": "go"}))
        assert [client.events(request)[-1]["type"] for request in (4, 5)] == ["done", "done"]
        wait_until(lambda: daemon.text().count("DEBUG") > before, "the old log level")


def test_f30_a_file_that_is_gone_or_unreadable_changes_nothing(start):
    """Removed, a folder, a FIFO, endless, not UTF-8, no TOML: the settings in force stay.

    The sentence names the file, and the event loop never waits for it: over the wire or by a signal.
    """
    daemon = start(settings=right(3))
    canary = Canary(daemon)
    with daemon.client() as client:
        for spoil in (
            lambda file: file.unlink(),
            lambda file: file.write_bytes(b"\xff\xfe"),
            lambda file: file.write_text("[serving"),
            lambda file: os.truncate(file, 2**40),
            lambda file: (file.unlink(), os.mkfifo(file)),
            lambda file: (file.unlink(), file.mkdir()),
        ):
            spoil(daemon.config)
            refused = daemon.text().count("came to nothing")
            daemon.signal(signal.SIGHUP)
            wait_until(lambda n=refused: daemon.text().count("came to nothing") > n, "the signal is answered")
            error = reload_over_the_wire(client)
            assert error["code"] == "config"
            assert str(daemon.config) in error["message"]
        daemon.config.rmdir()
        daemon.config.write_text(right(3))
        assert reload_over_the_wire(client)["message"] == "Nothing to apply."
    canary.check()
