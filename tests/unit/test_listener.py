"""The listening socket: taken over or made, and never at another's cost."""

from __future__ import annotations

import os
import socket
import stat
import threading

import pytest

from sensevoiced.config import ConfigError
from sensevoiced.serving.listener import ListenError, bind, inherit, peer_of


@pytest.fixture
def path(tmp_path):
    """Where the socket is to be; the folder is not there yet."""
    return tmp_path / "run" / "api.sock"


def stale_socket(path):
    """Leave a socket behind that nobody listens at."""
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))


def test_a_missing_folder_and_the_socket_are_made_with_their_modes(path):
    """0750 and 0660: the group may connect, others may not even look."""
    door = bind(path, 0o660, 16)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert door.own
    door.close()
    assert not path.exists()


def test_a_private_socket_gets_a_private_folder(path):
    """Without a group in the socket's mode there is none in the folder's."""
    bind(path, 0o600, 16).close()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_f32_a_live_daemon_is_left_alone(path):
    """The second gets a sentence, and the first keeps its socket and its clients."""
    door = bind(path, 0o660, 16)
    with pytest.raises(ListenError, match="running"):
        bind(path, 0o660, 16)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        connection, _ = door.socket.accept()
        assert peer_of(connection).pid == os.getpid()
        assert peer_of(connection).uid == os.geteuid()
        connection.close()
    door.close()


def test_f32_a_live_server_without_our_lock_is_left_alone(path):
    """Whatever listens there, it listens on."""
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ListenError, match="listening"):
            bind(path, 0o660, 16)
    assert path.exists()


def test_f32_a_stale_socket_is_taken_over(path):
    """What a killed daemon left behind does not stop the next one."""
    stale_socket(path)
    door = bind(path, 0o660, 16)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert client.getpeername() == str(path)
    door.close()
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's socket")
def test_f32_a_stale_socket_of_another_user_is_left_alone(path):
    """It is theirs to remove."""
    stale_socket(path)
    os.chown(path, 65534, -1)
    with pytest.raises(ListenError, match="uid 65534"):
        bind(path, 0o660, 16)
    assert path.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "symlink", "fifo"])
def test_f32_what_is_no_socket_is_never_removed(path, kind):
    """A file, a folder, a link (even to a stale socket) and a FIFO stay, and nothing comes beside them."""
    path.parent.mkdir()
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        stale_socket(path.with_name("real"))
        path.symlink_to("real")
    before, beside = path.lstat(), sorted(path.parent.iterdir())
    with pytest.raises(ListenError, match="not a socket"):
        bind(path, 0o660, 16)
    assert path.lstat().st_ino == before.st_ino
    assert sorted(path.parent.iterdir()) == beside


def test_f32_a_folder_that_others_may_write_is_refused(path):
    """Others could put their socket in place of ours; a sticky folder prevents that."""
    path.parent.mkdir()
    path.parent.chmod(0o777)
    with pytest.raises(ListenError, match="everybody"):
        bind(path, 0o660, 16)
    path.parent.chmod(0o770)
    with pytest.raises(ListenError, match="its group"):
        bind(path, 0o660, 16)
    path.parent.chmod(0o1777)
    bind(path, 0o660, 16).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")
def test_f32_a_folder_of_another_user_is_refused(path):
    """Its owner could put another socket in place of ours."""
    path.parent.mkdir()
    os.chown(path.parent, 65534, -1)
    with pytest.raises(ListenError, match="belongs to uid 65534"):
        bind(path, 0o660, 16)


def test_f32_of_daemons_that_race_exactly_one_wins(path):
    """100 rounds of two at once, over a stale socket every time."""
    for _ in range(100):
        stale_socket(path)
        start, doors, refusals = threading.Barrier(2), [], []

        def race(start=start, doors=doors, refusals=refusals):
            start.wait()
            try:
                doors.append(bind(path, 0o660, 16))
            except ListenError as error:
                refusals.append(error)

        racers = [threading.Thread(target=race) for _ in range(2)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert (len(doors), len(refusals)) == (1, 1)
        doors[0].close()


def test_the_socket_of_a_successor_is_not_removed(path):
    """At the end only the file that we made goes."""
    door = bind(path, 0o660, 16)
    path.unlink()
    stale_socket(path)
    door.close()
    assert path.exists()


def test_a_path_too_long_for_a_socket_is_a_setting_that_cannot_be_used(tmp_path):
    """The kernel's limit of 107 bytes gets a sentence."""
    with pytest.raises(ConfigError, match="too long"):
        bind(tmp_path / ("x" * 120), 0o660, 16)


def listening(path):
    """A socket that listens, as systemd would pass it."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def test_an_inherited_socket_is_served_and_left_in_place(tmp_path):
    """It belongs to systemd: closing ours removes nothing."""
    sock = listening(tmp_path / "api.sock")
    door = inherit([(os.dup(sock.fileno()), "sensevoiced.socket")])
    assert not door.own
    assert door.address == str(tmp_path / "api.sock")
    assert not door.socket.get_inheritable()
    door.close()
    assert (tmp_path / "api.sock").exists()
    sock.close()


def test_f33_of_several_sockets_the_one_named_api_is_taken(tmp_path):
    """Names decide where there is a choice."""
    one, two = listening(tmp_path / "one"), listening(tmp_path / "two")
    fds = [os.dup(one.fileno()), os.dup(two.fileno())]
    door = inherit([(fds[0], "metrics"), (fds[1], "api")])
    assert door.address == str(tmp_path / "two")
    door.close()
    os.close(fds[0])
    with pytest.raises(ConfigError, match="handed over 2 sockets, 0 of them named 'api'"):
        inherit([(one.fileno(), "a"), (two.fileno(), "b")])
    one.close()
    two.close()


def test_f33_what_is_no_listening_unix_stream_socket_is_refused(tmp_path):
    """A file, a datagram socket, a connected pair, a TCP socket, a closed number: each with a sentence."""
    plain = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(ConfigError, match="not a socket"):
        inherit([(plain, "")])
    os.close(plain)
    with pytest.raises(ConfigError, match="not open"):
        inherit([(plain, "")])
    left, right = socket.socketpair()
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    tcp = socket.socket(socket.AF_INET)
    tcp.listen()
    for wrong in (left, datagram, tcp):
        with pytest.raises(ConfigError, match="no listening Unix stream socket"):
            inherit([(wrong.fileno(), "")])
    for sock in (left, right, datagram, tcp):
        sock.close()
