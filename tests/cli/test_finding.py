"""How svctl finds its daemon, what it waits for, and what it says of one that cannot be used."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import subprocess
from pathlib import Path

import pytest
from harness.fake_server import done, loading, segment

from svctl import wire


def test_what_is_no_socket_is_named_so(svctl, tmp_path):
    """A file or a folder in the socket's place is no daemon that needs a start."""
    for place in ("/etc/passwd", tmp_path):
        assert svctl("ping", "--socket", place) == (69, "", f"svctl: {place} is not a socket.\n")


def test_a_socket_for_others_names_the_group_to_join(svctl, tmp_path, obey_modes):
    """EACCES on a socket that a group may use names the command; without a group there is none to name."""
    path = tmp_path / "closed.sock"
    gid = next(entry.gr_gid for entry in grp.getgrall() if entry.gr_gid) if obey_modes else os.getgid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        os.chown(path, -1, gid)
        path.chmod(0o060)
        user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(gid).gr_name
        remedy = f"which takes a new login after: sudo usermod -aG {group} {user}."
        sentence = f"This user may not connect to {path}; its group may, {remedy}"
        assert svctl("ping", "--socket", path, **obey_modes) == (77, "", f"svctl: {sentence}\n")
        path.chmod(0)
        assert svctl("ping", "--socket", path, **obey_modes) == (
            77,
            "",
            f"svctl: This user may not connect to {path}.\n",
        )


def test_a_folder_that_hides_the_socket_is_named(svctl, tmp_path, obey_modes):
    """Where svctl cannot even see whether there is a socket, it says so and promises no group."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0)
    path = tmp_path / "closed" / "api.sock"
    sentence = f"This user may not look into {path.parent}, where the daemon's socket should be."
    assert svctl("ping", "--socket", path, **obey_modes) == (77, "", f"svctl: {sentence}\n")


def test_no_patience_is_enough_for_an_idle_daemon(svctl, server, files):
    """--wait 0 does not wait for a loading or full daemon; one that is ready answers."""
    assert svctl("ping", "--wait", "0")[0] == 0
    assert svctl("status", "--wait=0")[0] == 0
    assert svctl("transcribe", "--wait", "0", "-f", "plain", "first.wav") == (0, "hello world\n", "")


def test_a_reload_waits_for_a_loading_daemon(svctl, serve):
    """A daemon that says when to come back is asked again, unless nobody wants to wait."""
    refusals = [1, 1]
    server = serve(loading(refusals))
    assert svctl("reload") == (0, "The configuration has been read again.\n", "")
    assert len(server.requests) == 3
    refusals.append(1)
    assert svctl("reload", "--wait", "0") == (75, "", "svctl: Loading.\n")


def test_a_daemon_that_starts_is_waited_for_when_asked(start, serve, tmp_path):
    """--wait S covers a socket that is not there yet; without it svctl fails at once."""
    process = start("transcribe", "--wait", "60", "-f", "plain", "-", stdin=subprocess.PIPE)
    assert start("transcribe", "x.wav").wait(60) == 69
    assert process.poll() is None
    serve()
    assert process.communicate(b"late", timeout=60) == (b"late\n", b"")
    assert start("ping", "--wait", "0.1", "--socket", tmp_path / "never").wait(60) == 69


def test_no_daemon_is_one_sentence_with_the_remedy(svctl, tmp_path):
    """Without a daemon svctl names the socket and the command that starts it, exit status 69."""
    runtime = {"SENSEVOICE_SOCKET": "", "XDG_RUNTIME_DIR": str(tmp_path)}
    sentence = (
        f"svctl: No daemon listens at {tmp_path}/sensevoice/api.sock or /run/sensevoice/api.sock; "
        "start it with: systemctl --user start sensevoiced.socket\n"
    )
    if Path("/run/sensevoice/api.sock").exists():
        pytest.skip("a system daemon listens here")
    assert svctl("ping", env=runtime) == (69, "", sentence)
    status, _, err = svctl("ping", env={"SENSEVOICE_SOCKET": ""})
    assert (status, "systemctl start sensevoiced.socket" in err) == (69, True)
    assert "sensevoiced --socket /nowhere/s" in svctl("ping", "--socket", "/nowhere/s")[2]


def test_a_stale_socket_is_no_daemon(svctl, tmp_path):
    """F31: a socket file that nobody listens on is told like an absent daemon."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "api.sock"))
    status, _, err = svctl("transcribe", "x.wav")
    assert (status, err.startswith("svctl: No daemon listens at ")) == (69, True)


def test_a_newer_daemon_is_one_line_with_both_versions(svctl, serve):
    """F07: another major version is told on one line naming both, exit status 69."""
    server = serve(major=wire.VERSION_MAJOR + 1)
    status, out, err = svctl("ping")
    assert (status, out) == (69, "")
    assert err == (
        f"svctl: The daemon at {server.path} speaks protocol 2.1 and this svctl 1.1; "
        "install the same version of both.\n"
    )


def test_a_newer_minor_version_is_served(svctl, serve, files):
    """F07: a daemon of a newer minor version may send events and keys that this svctl does not know."""

    def script(peer, message):
        peer.send({"type": "mood", "id": message["id"], "mood": "fine"})
        peer.send(segment(message["id"], 0, "hi", colour="blue"))
        peer.send(done(message["id"], 1))

    serve(script, minor=wire.VERSION_MINOR + 1)
    assert svctl("transcribe", "first.wav") == (0, "[EN][NEUTRAL] hi\n", "")


def test_too_many_connections_are_waited_for(svctl, serve):
    """F10: a daemon without a free connection is asked again."""
    refused = []

    def greet(peer, hello):
        if refused:
            peer.send({"type": "welcome", "major": hello["major"], "minor": 0, "server": "late/1"})
        else:
            refused.append(True)
            peer.send(
                {"type": "error", "code": "too_many_connections", "message": "Too many.", "retry_after_ms": 1}
            )
            peer.hang_up()

    serve(greet=greet)
    status, out, _ = svctl("ping")
    assert (status, out.startswith("late/1 answers")) == (0, True)
