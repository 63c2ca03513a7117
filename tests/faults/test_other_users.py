"""What one user can do about another's files and requests: nothing.

Played by processes of other uids over a socket that everybody may use.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from harness.asking import ask, gate
from harness.daemon import Canary, script
from harness.puppet import Puppet
from harness.users import FOR_ALL, NOBODY, SOMEBODY, let_in, needs_root, public_folder
from harness.wire_client import WireClient, memfd, texts

pytestmark = needs_root
LABEL = "/home/alice/operation-nightingale.wav"
SAID = "the password is swordfish"


@pytest.fixture
def folder():
    """A folder that every user may enter."""
    with public_folder() as found:
        yield found


@pytest.fixture
def daemon(start, folder):
    """A daemon for all users, run by root, with the canary after the test."""
    found = let_in(start(folder=folder, settings=FOR_ALL))
    canary = Canary(found)
    yield found
    canary.check()


@pytest.fixture
def other(daemon):
    """A client of another user, to be told what to do."""
    with Puppet(daemon.socket, uid=NOBODY) as puppet:
        yield puppet


class Tripwire:
    """A FIFO that only its owner may read: whoever opens it, if only for a moment, lets our writer in.

    (fifo(7): open for writing waits for a reader, and the kernel counts readers that are gone again.)
    """

    def __init__(self, path):
        os.mkfifo(path, 0o600)
        self._thread = threading.Thread(target=self._write, args=(path,), daemon=True)
        self._thread.start()

    def _write(self, path):
        os.close(os.open(path, os.O_WRONLY))

    def touched(self, within_s=0.0):
        self._thread.join(within_s)
        return not self._thread.is_alive()


def test_f20_another_user_cannot_have_a_file_opened(daemon, other, folder, record_property):
    """Every path is `forbidden`, whatever leads to it, and the daemon opens none of them."""
    secret = folder / "secret.wav"
    tripwire = Tripwire(secret)
    (folder / "link").symlink_to(secret)
    names = [secret, folder / "link", f"{folder}/../{folder.name}/secret.wav", f"//{secret}"]
    names += [f"/proc/{daemon.pid}/root{secret}", f"/proc/self/root{secret}", "/dev/stdin", "/proc/self/mem"]
    for request, name in enumerate(map(str, names)):
        (error,) = other.run(f"client.ask({request}, source='path', path={name!r}, label={name!r})")
        assert (error["code"], error["id"]) == ("forbidden", request)
    # A descriptor's request opens nothing either, though a path stands in it, as a path or as a label.
    path = str(secret)
    both = f"client.ask(50, memfd(script('own')), path={path!r}, label={path!r})"
    assert texts(other.run(both)) == ["own"]
    assert other.run(f"client.ask(51, path={path!r})")[-1]["code"] == "invalid_request"
    assert other.run("client.ping()")["type"] == "pong"
    assert not tripwire.touched()
    record_property("figure", f"{len(names)} of {len(names)} paths forbidden to another user, none opened")
    with daemon.client() as own:
        assert own.ask(1, source="path", path=path)[-1]["code"] == "bad_input"
    assert tripwire.touched(within_s=30.0), "the wire itself works"


def test_f20_a_descriptor_gives_no_more_than_its_user_has(daemon, other, folder):
    """What its user may not read is not read by way of a descriptor that was opened for anything else."""
    secret, box = folder / "secret.wav", folder / "box.wav"
    for path, mode in ((secret, 0o600), (box, 0o622)):
        path.write_bytes(script("secret"))
        path.chmod(mode)
    opened = "[os.path.exists({0!r}), os.access({0!r}, os.R_OK)]"
    assert other.run(opened.format(str(secret))) == [True, False]
    for request, expression in enumerate(
        (
            f"os.open({str(secret)!r}, os.O_PATH)",
            f"os.open({str(box)!r}, os.O_WRONLY)",
            f"os.open({str(folder)!r}, os.O_RDONLY | os.O_DIRECTORY)",
            f"os.open({str(folder)!r}, os.O_PATH | os.O_DIRECTORY)",
        )
    ):
        (error,) = other.run(f"client.ask({request}, {expression})")
        assert error["code"] == "bad_input"
    assert texts(other.run("client.ask(9, memfd(script('own')))")) == ["own"]


def test_f13_another_user_cannot_end_or_feed_a_request(daemon, other):
    """Ids belong to a connection: cancel, audio and end with another's id change nothing for the other."""
    held, uploaded = gate(), gate()
    with daemon.client() as client:
        ask(client, 1, script({"say": SAID, "engine_gate": held}))
        daemon.wait_engine_at(held)
        client.transcribe(2, source="stream")
        client.send(
            {"type": "audio", "id": 2, "data": script("first half", {"say": "-", "decode_gate": uploaded})}
        )
        daemon.wait_status(lambda status: status["queue"]["utterances"] == 1, "half of the upload")
        for request in (1, 2):
            other.run(f"client.send({{'type': 'cancel', 'id': {request}}})")
        assert other.run("client.ping()")["type"] == "pong"
        for kind in ({"type": "audio", "id": 2, "data": b"{}"}, {"type": "end", "id": 2}):
            error = other.run(f"client.send({kind!r})", "client.receive()")
            assert (error["code"], error["id"]) == ("invalid_request", 2)
        # The same numbers for requests of its own: they are others, and their end is theirs alone.
        other.run("client.transcribe(1, source='stream')", "client.send({'type': 'cancel', 'id': 1})")
        assert [event["code"] for event in other.run("client.events(1)")] == ["cancelled"]
        # It is told before it is counted out.
        daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 2, "the other two go on")
        daemon.open_gate(held)
        daemon.open_gate(uploaded)
        client.send({"type": "audio", "id": 2, "data": script("second half")})
        client.send({"type": "end", "id": 2})
        assert texts(client.events(1)) == [SAID]
        assert texts(client.events(2)) == ["first half", "-", "second half"]
        assert other.run("client.silent()")


def strings(value):
    """All texts in a message, keys included."""
    if isinstance(value, dict):
        return {text for pair in value.items() for part in pair for text in strings(part)}
    if isinstance(value, list):
        return {text for part in value for text in strings(part)}
    return {value} if isinstance(value, str) else set()


def test_f20_what_another_user_sees_of_a_request_is_numbers(daemon, other, folder):
    """Neither status, nor refusals, nor the process table show a label, a path, a text or who asked."""
    recording = folder / "operation-nightingale.wav"
    held = gate()
    recording.write_bytes(script(SAID, {"say": "more", "engine_gate": held}))
    recording.chmod(0o600)
    before = strings(other.run("client.status()"))
    with daemon.client() as client, recording.open("rb") as file:
        client.transcribe(1, file.fileno(), label=LABEL)
        client.transcribe(2, source="path", path=str(recording), label=LABEL)
        daemon.wait_engine_at(held)
        status = other.run("client.status()")
        assert status["queue"]["jobs_active"] == 2
        assert strings(status) == before
        shown = f"/proc/{daemon.pid}"
        seen = other.run(
            "found = b''",
            f"for name in ['cmdline', *(f'task/{{task}}/comm' for task in os.listdir('{shown}/task'))]:",
            f"    found += open(f'{shown}/{{name}}', 'rb').read()",
            "repr(found)",
        )
        assert "fake_daemon" in seen
        assert "nightingale" not in seen
        for private in ("environ", "fd", "mem", "maps"):
            lines = ["try:", f"    os.close(os.open('{shown}/{private}', os.O_RDONLY))", "    may = True"]
            assert other.run(*lines, "except PermissionError: may = False", "may") is False
        daemon.open_gate(held)
        assert texts(client.events(1)) == [SAID, "more"]
        assert texts(client.events(2)) == [SAID, "more"]
        assert other.run("client.ping()")["type"] == "pong"
        assert other.run("client.kept") == []


def test_f17_one_users_requests_leave_room_for_anothers(start, folder):
    """Who is at the limit of one user is `busy` for itself alone, and is told only its own numbers."""
    limits = "[serving]\nmax_jobs_per_uid = 3\nmax_jobs = 6"
    daemon = let_in(start(folder=folder, settings=FOR_ALL + limits))
    wall = gate()
    with Puppet(daemon.socket, uid=NOBODY) as first, Puppet(daemon.socket, uid=SOMEBODY) as second:
        for request in range(3):
            first.run(f"client.transcribe({request}, memfd({script({'say': 'x', 'decode_gate': wall})!r}))")
        daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 3, "the first user's are in")
        (error,) = first.run("client.ask(9, memfd(script('one too many')))")
        assert error["code"] == "busy"
        assert str(NOBODY) in error["message"]
        assert texts(second.run("client.ask(1, memfd(script('mine')))")) == ["mine"]
        daemon.open_gate(wall)
        assert [first.run(f"client.events({request})")[-1]["type"] for request in range(3)] == ["done"] * 3


def test_f20_a_socket_for_its_group_keeps_others_out(start, folder):
    """As it is shipped (0660): who is not in the group does not even connect."""
    daemon = let_in(start(folder=folder))
    with Puppet(daemon.socket, uid=NOBODY, connect=False) as other:
        lines = ["try:", "    connect()", "    may = True", "except PermissionError: may = False"]
        assert other.run(*lines, "may") is False
    with WireClient(daemon.socket) as own:
        assert texts(own.ask(1, memfd(script("own")))) == ["own"]
    assert Path(daemon.socket).is_socket()
