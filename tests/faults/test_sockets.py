"""F32: a daemon takes its place at a path only where it harms nobody, and only one daemon does."""

from __future__ import annotations

import os
import socket

import pytest
from harness.daemon import Canary, DaemonProcess, wait_until
from harness.figures import note
from harness.users import NOBODY, needs_root


def left_over(path):
    """A socket that nobody listens at."""
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))


def listening(path):
    """A socket at which something else listens."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


def another_users(make):
    """What `make` makes, given to another user."""

    def made(path):
        kept = make(path)
        os.chown(path, NOBODY, NOBODY)
        return kept

    return made


def link_to(make):
    """A link to what `make` makes."""

    def made(path):
        kept = make(path.with_name("real"))
        path.symlink_to("real")
        return kept

    return made


OCCUPANTS = {
    "a regular file": (lambda path: path.write_text("precious"), "is not a socket"),
    "a directory": (lambda path: path.mkdir(), "is not a socket"),
    "a FIFO": (os.mkfifo, "is not a socket"),
    "a link to a stale socket": (link_to(left_over), "is not a socket"),
    "a link to a live socket": (link_to(listening), "is not a socket"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "is not a socket"),
    "another program's live socket": (listening, "A server is listening"),
}
OTHERS_OCCUPANTS = {
    "another user's stale socket": (another_users(left_over), "stale socket of uid 65534"),
    "another user's live socket": (another_users(listening), "A server is listening"),
}
BOTH = [
    *(pytest.param(*given, id=name) for name, given in OCCUPANTS.items()),
    *(pytest.param(*given, id=name, marks=needs_root) for name, given in OTHERS_OCCUPANTS.items()),
]


def refused(start, manager, path, sentence):
    """Start a daemon that has to refuse: 1, and one sentence, for systemd too."""
    daemon = start(ready=False, socket=path, environ={"NOTIFY_SOCKET": manager.path})
    assert daemon.wait_end(30.0) == 1
    (line,) = daemon.text().splitlines()
    assert line.startswith("sensevoiced: ")
    assert sentence in line
    (told,) = wait_until(lambda: manager.values("STATUS"), "STATUS")
    assert told == line.removeprefix("sensevoiced: ")[: len(told)]
    assert manager.count("READY=1") == 0


@pytest.mark.parametrize(("occupy", "sentence"), BOTH)
def test_f32_what_is_there_stays_there(start, manager, tmp_path, record_property, *, occupy, sentence):
    """Refused with a sentence; the occupant is the same file as before, and one that listens still does."""
    path = tmp_path / "run" / "api.sock"
    path.parent.mkdir(mode=0o755)
    server = occupy(path)
    before, beside = path.lstat(), {entry.name for entry in path.parent.iterdir()}
    refused(start, manager, path, sentence)
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_uid) == (before.st_ino, before.st_mode, before.st_uid)
    found = {entry.name for entry in path.parent.iterdir()}
    assert found - beside <= {".api.sock.sensevoiced.lock"}
    if isinstance(server, socket.socket):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        server.close()
    note(record_property, f"{len(BOTH)} kinds of occupant: one sentence, exit 1, and left as they were")


FOLDERS = {
    "0777": (0o777, 0, "may be written by everybody"),
    "0775": (0o775, 0, "may be written by its group"),
    "another user's": (0o755, NOBODY, "belongs to uid 65534"),
}


@needs_root
@pytest.mark.parametrize(("mode", "owner", "sentence"), FOLDERS.values(), ids=FOLDERS)
def test_f32_a_folder_in_which_others_could_replace_the_socket_is_refused(
    start, manager, tmp_path, record_property, *, mode, owner, sentence
):
    """As watchman has it: writable by everybody or by a group, or somebody else's; a sticky one is fine."""
    path = tmp_path / "run" / "api.sock"
    path.parent.mkdir()
    path.parent.chmod(mode)
    os.chown(path.parent, owner, 0)
    refused(start, manager, path, sentence)
    assert list(path.parent.iterdir()) == []
    note(record_property, "folders open to all, to a group, or another user's: refused; sticky ones taken")
    os.chown(path.parent, 0, 0)
    path.parent.chmod(mode | 0o1000)
    Canary(start(socket=path)).check()


def test_f32_a_live_daemon_is_left_alone(start, manager, record_property):
    """The second says so and ends with 1; the first serves on."""
    daemon = start()
    canary = Canary(daemon)
    refused(start, manager, daemon.socket, "Another sensevoiced is running")
    note(record_property, "a live daemon: refused, and it serves on")
    canary.check()


def race(folder, rounds):
    """Start two daemons at once over the leftovers of the last round's winner, again and again."""
    path = folder / "run" / "api.sock"
    for number in range(rounds):
        racers = [DaemonProcess(folder / f"{number}-{n}", socket=path, ready=False) for n in range(2)]
        try:
            wait_until(lambda pair=racers: decided(pair), "one ready, one ended", 120.0)
            (winner,) = [racer for racer in racers if racer.process.poll() is None]
            (loser,) = [racer for racer in racers if racer is not winner]
            assert loser.wait_end() == 1
            assert "Another sensevoiced is running" in loser.text().splitlines()[-1]
            assert winner.status()["pid"] == winner.pid
        finally:
            for racer in racers:
                racer.kill()  # so that the next round finds a stale socket
        assert path.exists()


def decided(racers):
    """Whether one of them is ready, and one has ended."""
    return any("ready after" in racer.text() for racer in racers) and any(
        racer.process.poll() is not None for racer in racers
    )


def test_f32_of_two_daemons_that_race_one_wins(tmp_path, record_property):
    """Both find a stale socket: exactly one takes it over, and the other does not take it away again."""
    race(tmp_path, 5)
    note(record_property, "5 races of two daemons over a stale socket: one winner each")


@pytest.mark.slow
def test_f32_of_two_daemons_that_race_one_wins_a_hundred_times(tmp_path, record_property):
    """The same, as often as the row says."""
    race(tmp_path, 100)
    note(record_property, "100 races of two daemons over a stale socket: one winner each")
