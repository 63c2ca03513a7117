"""What systemd is told, and what it tells us."""

from __future__ import annotations

import os
import socket
import threading

import pytest
from harness.daemon import wait_until
from harness.notifications import Notifications

from sensevoiced.notify import Notifier, forget, inherited, watchdog_interval_s


def test_messages_arrive_whole_and_in_order(tmp_path):
    """Each call is one datagram of assignments."""
    manager = Notifications(tmp_path)
    notifier = Notifier(manager.path)
    notifier.loading("Loading demo", 20.0)
    notifier.ready("demo on cpu")
    notifier.watchdog()
    notifier.reloading()
    notifier.stopping("Bye")
    notifier.close()
    wait_until(lambda: len(manager.messages()) == 5, "five messages")
    loading, ready, watchdog, reloading, stopping = manager.messages()
    assert loading == ["EXTEND_TIMEOUT_USEC=20000000", "STATUS=Loading demo"]
    assert ready == ["READY=1", "STATUS=demo on cpu"]
    assert watchdog == ["WATCHDOG=1"]
    assert reloading[0] == "RELOADING=1"
    assert reloading[1].startswith("MONOTONIC_USEC=")
    assert stopping == ["STOPPING=1", "STATUS=Bye"]
    manager.close()


def test_a_status_cannot_forge_an_assignment(tmp_path):
    """Line breaks in a sentence stay within its STATUS."""
    manager = Notifications(tmp_path)
    Notifier(manager.path).status("broken\nREADY=1\n" + "x" * 500)
    (message,) = wait_until(manager.messages, "the message")
    assert message[0].startswith("STATUS=broken READY=1 xxx")
    assert len(message) == 1
    assert len(message[0]) < 250
    manager.close()


def test_abstract_addresses_are_understood():
    """The address may name a socket outside the file system with a leading @."""
    name = f"sensevoice-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        notifier = Notifier("@" + name)
        notifier.watchdog()
        assert manager.recv(100) == b"WATCHDOG=1"
        notifier.close()


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "/nowhere/notify.sock"])
def test_without_a_manager_nothing_happens(address):
    """No address, a strange one or a dead one: messages are dropped."""
    notifier = Notifier(address)
    notifier.ready("fine")
    notifier.close()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "9" * 400}, None),
    ],
)
def test_the_watchdog_is_only_for_the_process_that_it_names(environ, expected):
    """A number of microseconds, for us or for nobody in particular."""
    assert watchdog_interval_s(environ) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, []),
        ({"LISTEN_FDS": "1"}, []),
        ({"LISTEN_FDS": "1", "LISTEN_PID": "1"}, []),
        ({"LISTEN_FDS": "0", "LISTEN_PID": "me"}, []),
        ({"LISTEN_FDS": "1", "LISTEN_PID": "me"}, [(3, "")]),
        ({"LISTEN_FDS": "2", "LISTEN_PID": "me", "LISTEN_FDNAMES": "api:x"}, [(3, "api"), (4, "x")]),
        ({"LISTEN_FDS": "many", "LISTEN_PID": "me"}, None),
        ({"LISTEN_FDS": "-1", "LISTEN_PID": "me"}, None),
        ({"LISTEN_FDS": "4000000000", "LISTEN_PID": "me"}, None),
    ],
)
def test_f33_descriptors_are_ours_only_when_our_pid_is_named(environ, expected):
    """LISTEN_PID of another process means that the variables leaked to us."""
    mine = {name: str(os.getpid()) if value == "me" else value for name, value in environ.items()}
    assert inherited(mine) == expected


def test_f33_children_see_nothing_of_it():
    """The variables are for this process alone."""
    environ = {
        "LISTEN_FDS": "1",
        "LISTEN_PID": "1",
        "NOTIFY_SOCKET": "@x",
        "WATCHDOG_USEC": "1",
        "PATH": "/bin",
    }
    forget(environ)
    assert environ == {"PATH": "/bin"}


def test_a_full_queue_delays_ready_and_drops_signs_of_life(tmp_path):
    """The manager's queue is short: what decides waits for room, what comes again does not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify.sock"))
        notifier = Notifier(str(tmp_path / "notify.sock"))
        for _ in range(2000):
            notifier.watchdog()
        making_room = threading.Thread(target=manager.recv, args=(100,))
        making_room.start()
        notifier.ready("fine")
        making_room.join()
        manager.setblocking(False)
        received = []
        while not received or not received[-1].startswith(b"READY=1"):
            received.append(manager.recv(100))
        assert len(received) < 2000
        notifier.close()
