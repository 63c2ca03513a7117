"""F33: what systemd hands over is taken where it is meant for us, and refused where it makes no sense."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest
from harness.asking import ask
from harness.daemon import Canary, script
from harness.figures import note
from harness.socket_unit import SocketUnit
from harness.wire_client import WireClient

HAND_OVER = Path(__file__).parents[1] / "harness" / "hand_over.py"


@pytest.fixture
def start_with(start):
    """Start a daemon that is handed some descriptors, with what the variables say of them."""

    def run(*fds, count=None, names="", pid="", **options):
        given = {"fds": fds, "count": str(len(fds)) if count is None else count, "names": names, "pid": pid}
        wrapper = [sys.executable, str(HAND_OVER), json.dumps(given)]
        return start(wrapper=wrapper, pass_fds=fds, **options)

    return run


@pytest.fixture
def sockets(tmp_path):
    """Two listening Unix sockets, and one of every kind that is of no use."""
    (tmp_path / "sockets").mkdir()
    made = {name: socket.socket(socket.AF_UNIX) for name in ("one", "two")}
    for name, sock in made.items():
        sock.bind(str(tmp_path / "sockets" / name))
        sock.listen()
    made["datagram"] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made["connected"], made["its other end"] = socket.socketpair()
    made["unbound"] = socket.socket(socket.AF_UNIX)
    made["tcp"] = socket.socket()
    made["tcp"].bind(("127.0.0.1", 0))
    made["tcp"].listen()
    yield made
    for sock in made.values():
        sock.close()


@pytest.mark.parametrize(
    "environ", [{"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_FDS": "2"}, {"LISTEN_PID": "me too"}]
)
def test_f33_variables_that_are_not_ours_are_ignored(start, environ):
    """Without our pid the daemon binds its own socket."""
    daemon = start(environ=environ)
    assert daemon.socket.exists()
    Canary(daemon).check()


def test_f33_descriptors_of_another_process_are_left_alone(start_with, sockets):
    """A wrong LISTEN_PID with a socket that would fit: it is not touched, and the daemon binds its own."""
    daemon = start_with(sockets["one"].fileno(), pid="1")
    assert daemon.socket.exists()
    Canary(daemon).check()


def test_f33_no_descriptors_at_all_means_a_socket_of_our_own(start_with):
    """LISTEN_FDS=0 with our pid: as if nothing had been said."""
    daemon = start_with(count="0")
    assert daemon.socket.exists()
    Canary(daemon).check()


def test_f33_of_two_sockets_the_one_named_api_is_served(start_with, sockets):
    """FileDescriptorName=api decides; nobody accepts at the other."""
    daemon = start_with(sockets["one"].fileno(), sockets["two"].fileno(), names="metrics:api")
    daemon.socket = Path(sockets["two"].getsockname())
    Canary(daemon).check()
    with pytest.raises(TimeoutError):
        WireClient(sockets["one"].getsockname(), timeout_s=0.2)


def test_f33_a_single_socket_is_served_whatever_its_name(start_with, sockets):
    """Row changed: a name that we do not know is wrong only where there is a choice.

    systemd names a socket after its unit, which an administrator may call as they like.
    """
    daemon = start_with(sockets["one"].fileno(), names="whatever")
    daemon.socket = Path(sockets["one"].getsockname())
    Canary(daemon).check()


WRONG = {
    "LISTEN_FDS=99": ((), "99", "", "handed over 99 sockets"),
    "LISTEN_FDS=4000000000": ((), "4000000000", "", "not a number of descriptors"),
    "LISTEN_FDS=-1": ((), "-1", "", "not a number of descriptors"),
    "LISTEN_FDS=two": ((), "two", "", "not a number of descriptors"),
    "two sockets without a name": (("one", "two"), None, "", "2 sockets, 0 of them named 'api'"),
    "two sockets with wrong names": (("one", "two"), None, "a:b", "2 sockets, 0 of them named 'api'"),
    "two sockets with the same name": (("one", "two"), None, "api:api", "2 sockets, 2 of them named 'api'"),
    "/dev/null": (("null",), None, "", "is not a socket"),
    "a datagram socket": (("datagram",), None, "", "no listening Unix stream socket"),
    "a connected socket": (("connected",), None, "", "no listening Unix stream socket"),
    "a socket that does not listen": (("unbound",), None, "", "no listening Unix stream socket"),
    "a TCP socket": (("tcp",), None, "", "no listening Unix stream socket"),
    "a descriptor that is not there": ((), "1", "", "handed over through LISTEN_FDS"),
}


@pytest.mark.parametrize(("kinds", "count", "names", "sentence"), WRONG.values(), ids=WRONG)
def test_f33_what_systemd_got_wrong_is_said_and_78(
    start_with, sockets, manager, record_property, *, kinds, count, names, sentence
):
    """A setting that cannot be used: one sentence, on stderr and in STATUS=, and nothing is bound instead."""
    null = os.open(os.devnull, os.O_RDONLY)
    fds = [null if kind == "null" else sockets[kind].fileno() for kind in kinds]
    daemon = start_with(*fds, count=count, names=names, ready=False, environ={"NOTIFY_SOCKET": manager.path})
    assert daemon.wait_end(30.0) == 78
    os.close(null)
    (line,) = daemon.text().splitlines()
    assert line.startswith("sensevoiced: ")
    assert sentence in line
    assert not daemon.socket.exists()
    note(record_property, f"{len(WRONG)} ways to hand over nonsense: one sentence, exit 78, nothing bound")


def test_f33_children_inherit_nothing_of_systemds(tmp_path, manager):
    """Neither the variables nor the socket reach a process that the daemon starts."""
    with SocketUnit(tmp_path) as unit:
        daemon = unit.start(
            tmp_path / "one", environ={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "30000000"}
        )
        try:
            with daemon.client() as client:
                ask(client, 1, script({"say": "x", "spawn": True}))
                (segment, _) = client.events(1)
            seen = json.loads(segment["text"])
            leaked = [name for name in seen["environ"] if name.startswith(("LISTEN", "NOTIFY", "WATCHDOG"))]
            assert leaked == []
            assert [name for name in seen["files"] if name.startswith("socket:")] == []
            Canary(daemon).check()
        finally:
            daemon.kill()
