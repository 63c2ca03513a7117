"""The client's connection: where it looks, what it waits for, how it ends."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from harness.fake_server import FakeServer, loading, segment
from harness.pools import descriptors, settled_descriptors

from svctl import framing, sources, wire
from svctl.connect import candidates, connect
from svctl.connection import Connection, pause_s
from svctl.pipeline import Pipeline
from svctl.sources import Found, Names


@pytest.fixture
def path(tmp_path):
    """Where the test's daemon listens."""
    return str(tmp_path / "api.sock")


@pytest.mark.parametrize(
    ("explicit", "environ", "paths"),
    [
        ("/x", {"SENSEVOICE_SOCKET": "/y", "XDG_RUNTIME_DIR": "/r"}, ["/x"]),
        ("", {"SENSEVOICE_SOCKET": "/y", "XDG_RUNTIME_DIR": "/r"}, ["/y"]),
        ("", {"XDG_RUNTIME_DIR": "/r"}, ["/r/sensevoice/api.sock", "/run/sensevoice/api.sock"]),
        ("", {"SENSEVOICE_SOCKET": "", "XDG_RUNTIME_DIR": ""}, ["/run/sensevoice/api.sock"]),
    ],
)
def test_sockets_are_tried_in_the_documented_order(explicit, environ, paths):
    """The named socket alone, else the user's before the system's."""
    assert candidates(explicit, environ) == paths


def test_a_user_without_a_daemon_finds_the_first_that_answers(tmp_path):
    """A candidate that is absent or stale is passed over."""
    runtime = tmp_path / "run"
    (runtime / "sensevoice").mkdir(parents=True)
    with FakeServer(runtime / "sensevoice" / "api.sock"):
        client = connect("", patience_s=5, environ={"XDG_RUNTIME_DIR": str(runtime)})
        assert client.server == "fake/1.0"
        client.close()


def test_a_socket_that_cannot_be_used_is_a_sentence(tmp_path):
    """A path too long, a file in its place, a folder in its place: told, with exit status 69."""
    (tmp_path / "file").write_text("x")
    for bad in ("x" * 200, str(tmp_path / "file"), str(tmp_path / "file" / "api.sock")):
        with pytest.raises(wire.WireError) as caught:
            connect(bad, patience_s=0, environ={})
        assert (caught.value.code, caught.value.exit_status) == ("unavailable", 69)


def test_a_socket_that_is_not_there_yet_is_waited_for_when_asked(path, monkeypatch):
    """A missing socket, then a stale one, then a daemon: the client stays until it answers."""
    servers = []

    def pause(_seconds):
        if not Path(path).exists():
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind(path)
        else:
            Path(path).unlink()
            servers.append(FakeServer(path).__enter__())

    monkeypatch.setattr("svctl.connect.time.sleep", pause)
    with pytest.raises(wire.WireError, match="No daemon listens"):
        connect(path, patience_s=60)  # not asked: at once
    client = connect(path, patience_s=60, absent_s=60)
    assert (client.server, len(servers)) == ("fake/1.0", 1)
    client.close()
    servers[0].__exit__()


def test_waiting_for_a_socket_ends(path, tmp_path):
    """A daemon that never comes is told after the time that was given, and what cannot come at once."""
    (tmp_path / "file").write_text("x")
    for bad, absent_s in ((path, 0.1), (f"{tmp_path}/file/api.sock", 1e6)):
        with pytest.raises(wire.WireError, match="No daemon listens") as caught:
            connect(bad, patience_s=0, absent_s=absent_s)
        assert caught.value.exit_status == 69


def test_an_idle_daemon_is_heard_without_patience(path):
    """No patience is none for a full daemon; one that answers is given the time for it."""
    with FakeServer(path) as server:
        client = connect(path, patience_s=0, answer_s=60)
        assert client.call("status", "status", patience_s=0, answer_s=60)["status"] == server.status
        client.close()


def test_a_call_is_made_again_while_the_daemon_says_when(path):
    """A refusal with a time to come back is waited out; without patience it is the answer."""
    refusals = [1, 1]
    with FakeServer(path, loading(refusals)) as server:
        client = connect(path, patience_s=5)
        assert client.call("reload", "reloaded", patience_s=60)["type"] == "reloaded"
        assert len(server.requests) == 3
        refusals.append(1)
        with pytest.raises(wire.WireError, match="Loading"):
            client.call("reload", "reloaded", patience_s=0, answer_s=60)
        client.close()


def test_a_daemon_that_accepts_and_says_nothing_is_a_timeout(path):
    """Patience ends the wait for a hello, exit status 75."""
    with FakeServer(path, greet=lambda peer, hello: None), pytest.raises(wire.WireError) as caught:
        connect(path, patience_s=0.05)
    assert (caught.value.code, caught.value.exit_status) == ("timeout", 75)


def test_requests_follow_the_hello_without_waiting_for_its_answer(path, tmp_path):
    """Hello, request and descriptor are at the daemon before it has said anything: one round trip in all."""
    (tmp_path / "a.wav").write_text("one trip")
    early = []

    def greet(peer, hello):
        early.append(next(peer.messages()))
        peer.send({"type": "welcome", "major": 1, "minor": 0, "server": "late/1"})
        peer.answer(early[0])

    pipeline = Pipeline(Names([str(tmp_path / "a.wav")]), {"language": "auto"}, patience_s=5)
    with FakeServer(path, greet=greet):
        client = connect(path, patience_s=20, behind=pipeline.begin)
        events = [event for _, event in pipeline.run()]
        client.close()
    assert (early[0]["type"], client.server) == ("transcribe", "late/1")
    assert [event.get("text") for event in events] == ["one trip", None]


def test_what_went_to_a_daemon_that_turned_away_is_sent_again(path, tmp_path, monkeypatch):
    """Requests behind a refused hello are nobody's: the next connection gets them all, in their order."""
    monkeypatch.setattr("svctl.connect.time.sleep", lambda _: None)
    names = [str(tmp_path / name) for name in ("a.wav", "absent.wav", "b.wav")]
    for name in (names[0], names[2]):
        Path(name).write_text(name)
    refusals = ["too_many_connections", "shutting_down"]

    def greet(peer, hello):
        if refusals:
            peer.send({"type": "error", "code": refusals.pop(), "message": "Later.", "retry_after_ms": 1})
            peer.hang_up()
        else:
            welcomed.append(peer)
            peer.send({"type": "welcome", "major": 1, "minor": 0, "server": "late/1"})

    welcomed, asked = [], []

    def script(peer, message):
        if peer in welcomed:  # the thread of one that was turned away may be late
            asked.append(message["label"])
        peer.answer(message)

    pipeline = Pipeline(Names(names), {}, patience_s=5, in_flight=6)
    with FakeServer(path, script, greet=greet):
        client = connect(path, patience_s=60, behind=pipeline.begin)
        events = list(pipeline.run())
        assert [(source.name, event["type"]) for source, event in events] == [
            *((names[0], kind) for kind in ("segment", "done")),
            (names[1], "error"),
            *((names[2], kind) for kind in ("segment", "done")),
        ]
        assert asked == [names[0], names[2]]
        client.close()
    assert not refusals
    assert {source.descriptor for source, _ in events} == {-1}


def test_a_full_backlog_is_waited_for_and_ends(path):
    """A daemon that does not even accept is a timeout after the patience that there was."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(path)
        listener.listen(0)
        other.connect(path)
        with pytest.raises(wire.WireError, match="takes no more connections") as caught:
            connect(path, patience_s=0.1)
        assert caught.value.exit_status == 75


def test_a_refusal_before_welcome_is_told(path):
    """What the daemon says instead of a welcome is the error."""

    def greet(peer, hello):
        peer.send(
            {"type": "error", "code": "unsupported", "message": "This daemon speaks 2.0, you speak 1.0."}
        )

    with FakeServer(path, greet=greet), pytest.raises(wire.WireError, match=r"2\.0.*1\.0") as caught:
        connect(path, patience_s=5)
    assert caught.value.exit_status == 69


def test_pauses_stay_within_bounds():
    """Whatever the daemon asks for, a pause is neither a busy loop nor endless, and pauses differ."""
    assert all(0.03 < pause_s(asked) < 0.07 for asked in (None, 0, 1, -5) for _ in range(50))
    assert all(3.7 < pause_s(10**9) < 6.3 for _ in range(50))
    assert len({pause_s(1_000) for _ in range(50)}) > 1


def test_a_message_larger_than_the_socket_buffer_goes_out_while_events_come_in(path):
    """Uploads and answers move at the same time; neither blocks the other."""

    def script(peer, message):
        if message["type"] == "audio":
            peer.send(segment(message["id"], 0, "x" * 60_000))
        elif message["type"] == "ping":
            peer.answer(message)

    with FakeServer(path, script) as server:
        client = connect(path, patience_s=5)
        request = client.request("transcribe", source="stream", label="-")
        for _ in range(64):
            client.send({"type": "audio", "id": request, "data": b" " * 200_000})
        assert client.backlog_bytes > 0
        assert client.call("ping", "pong", patience_s=20)["type"] == "pong"
        assert client.backlog_bytes == 0
        assert len(server.wait_for("audio", 64)) == 64
        client.close()


def test_a_descriptor_that_has_to_wait_is_the_one_that_was_given(path, tmp_path):
    """Its owner may close it, and its number be another file's, before the socket takes the message."""
    (tmp_path / "asked.wav").write_text("asked")
    (tmp_path / "other.wav").write_text("other")
    held = threading.Event()
    got = []

    def script(peer, message):
        held.wait(20)
        if message["type"] == "transcribe" and message["source"] == "fd":
            got.append(os.pread(message["descriptor"], 100, 0))
        peer.answer(message)

    with FakeServer(path, script):
        client = connect(path, patience_s=5)
        before = settled_descriptors()
        request = client.request("transcribe", source="stream", label="-")
        while not client.backlog_bytes:
            client.send({"type": "audio", "id": request, "data": b" " * 200_000})
        descriptor = os.open(tmp_path / "asked.wav", os.O_RDONLY)
        client.request("transcribe", descriptor, source="fd", label="asked.wav")
        os.close(descriptor)
        assert os.open(tmp_path / "other.wav", os.O_RDONLY) == descriptor
        held.set()
        client.call("ping", "pong", patience_s=20)
        os.close(descriptor)
        assert got == [b"asked"]
        assert descriptors() <= before + 1  # the daemon's, which is this process too
        client.close()


def run(client, names, **settings):
    """All events of a pipeline as (label, type)."""
    options = {"language": "auto", "itn": True, "vad": True}
    pipeline = Pipeline(Names(names), options, **({"patience_s": 5, "in_flight": 6} | settings))
    pipeline.begin(client)
    return [(source.label, event["type"]) for source, event in pipeline.run()]


def test_descriptors_are_closed_after_a_run(path, tmp_path):
    """However many files a run takes, a handful are open at once and none is left behind."""
    names = []
    for number in range(20):
        names.append(str(tmp_path / f"{number}.wav"))
        (tmp_path / f"{number}.wav").write_text("x")
    most = []

    def script(peer, message):
        most.append(descriptors())
        peer.answer(message)

    with FakeServer(path, script):
        client = connect(path, patience_s=5)
        before = settled_descriptors()
        assert run(client, names) == [(name, kind) for name in names for kind in ("segment", "done")]
        assert descriptors() == before
        assert max(most) <= before + 2 * 6 + 2
        client.close()


@pytest.mark.parametrize("in_flight", [1, 3])
def test_no_more_recordings_are_at_the_daemon_than_asked_for(path, tmp_path, in_flight):
    """So many requests come, and the next only when the first of them is answered."""
    names = [str(tmp_path / f"{number}.wav") for number in range(7)]
    for name in names:
        Path(name).write_text("x")
    held, most = [], []

    def script(peer, message):
        held.append(message)
        most.append(len(held))
        if len(held) == in_flight or message["label"] == names[-1]:
            while held:
                peer.answer(held.pop(0))

    with FakeServer(path, script):
        client = connect(path, patience_s=5)
        assert run(client, names, in_flight=in_flight) == [
            (name, kind) for name in names for kind in ("segment", "done")
        ]
        assert max(most) == in_flight
        client.close()


def test_a_run_that_is_given_up_closes_its_files(path, tmp_path):
    """Leaving the iteration early leaves no descriptor open, and the rest can be cancelled."""
    names = [str(tmp_path / name) for name in ("a.wav", "b.wav")]
    for name in names:
        Path(name).write_text("x")

    def script(peer, message):
        if message["type"] == "transcribe":
            os.close(message["descriptor"])
            peer.send(segment(message["id"], 0, "x"))

    with FakeServer(path, script) as server:
        client = connect(path, patience_s=5)
        before = settled_descriptors()
        pipeline = Pipeline(Names(names), {}, patience_s=0, in_flight=2)
        pipeline.begin(client)
        iteration = pipeline.run()
        assert next(iteration)[1]["text"] == "x"
        server.wait_for("transcribe", 2)
        iteration.close()
        client.cancel_all()
        assert [m["id"] for m in server.wait_for("cancel", 2)] == [
            m["id"] for m in server.wait_for("transcribe", 2)
        ]
        assert descriptors() == before
        client.close()


def test_an_event_of_a_wrong_shape_is_a_protocol_error(path):
    """A daemon that breaks its own promises is not believed."""
    with FakeServer(path, lambda peer, message: peer.send({"type": "pong", "id": "one"})):
        client = connect(path, patience_s=5)
        with pytest.raises(wire.ProtocolError):
            client.call("ping", "pong", patience_s=5)
        client.close()


def test_an_error_for_the_whole_connection_ends_a_run(path, tmp_path):
    """An `error` without an id is the connection's, whichever request was open."""
    (tmp_path / "a.wav").write_text("x")

    def script(peer, message):
        peer.send({"type": "error", "id": None, "code": "timeout", "message": "Idle for too long."})

    with FakeServer(path, script):
        client = connect(path, patience_s=5)
        with pytest.raises(wire.WireError, match="Idle"):
            run(client, [str(tmp_path / "a.wav")])
        client.close()


def _name(names):
    source = names.next()
    return source and source.name


def test_names_are_cut_at_nul_however_they_arrive():
    """Names come whole although the pipe cuts them anywhere, and waiting for them never blocks."""
    reader, writer = os.pipe()
    names = Names([], reader)
    assert _name(names) is None
    os.write(writer, b"one\0tw")
    assert (_name(names), _name(names)) == ("one", None)
    os.write(writer, b"o\0\0caf\xe9")
    assert (_name(names), _name(names)) == ("two", None)
    os.close(writer)
    assert (_name(names), _name(names), names.descriptor) == (os.fsdecode(b"caf\xe9"), None, -1)
    os.close(reader)


def test_a_second_name_is_refused_where_one_is_all():
    """Names that arrive one by one are counted, wherever the pipe cuts them."""
    reader, writer = os.pipe()
    names = Names([], reader, only_one="One only.")
    os.write(writer, b"one\0")
    assert (_name(names), _name(names)) == ("one", None)
    os.write(writer, b"tw")
    with pytest.raises(wire.WireError, match="One only") as caught:
        names.next()
    assert caught.value.exit_status == 64
    os.close(writer)
    os.close(reader)


def test_names_are_counted_ahead_and_none_is_lost(tmp_path):
    """The total is known once the list has ended and its folders are walked; the order stays."""
    (tmp_path / "calls").mkdir()

    def below(root):
        return iter([Found(f"{root}/{name}", name) for name in ("a", "b")])

    reader, writer = os.pipe()
    names = Names([], reader, below=below)
    os.write(writer, os.fsencode(tmp_path / "calls") + b"\0one\0")
    names.look_ahead(time.monotonic() + 60)
    assert names.total is None
    assert names.next().place == "a"
    os.write(writer, b"two\0")
    os.close(writer)
    names.look_ahead(time.monotonic() + 60)
    assert names.total == 4
    found = [names.next() for _ in range(3)]
    assert [(source.name.rpartition("/")[2], source.place) for source in found] == [
        (name, name) for name in ("b", "one", "two")
    ]
    assert (names.next(), names.total) == (None, 4)
    os.close(reader)


def test_looking_ahead_ends_in_time():
    """A tree without end costs no more than the time that there is for it."""
    names = Names(["/"], below=lambda root: (Found(root, str(number)) for number in itertools.count()))
    for _ in range(3):
        names.look_ahead(time.monotonic() - 1)
    assert [names.next().place for _ in range(5)] == list("01234")
    assert names.total is None


def test_labels_fit_the_wire():
    """F26: a label is valid UTF-8 and within the protocol's limit, whatever the name."""
    assert sources.label("a" * 70_000) == "a" * wire.MAX_LABEL_CHARS
    framing.encode({"label": sources.label(os.fsdecode(b"\xff\xfe"))})
    assert sources.label(os.fsdecode(b"\xff")) != sources.label(os.fsdecode(b"\xfe"))
    assert sources.label("你好.wav") == "你好.wav"


def test_a_name_with_a_nul_is_refused_not_raised():
    """A name that the kernel cannot even be asked about is a sentence like every other."""
    source = sources.open_source("a\0b")
    assert source.error is not None
    assert source.error.exit_status == 66


def test_closing_twice_is_harmless(path):
    """Error paths may close what is closed."""
    with FakeServer(path):
        client: Connection = connect(path, patience_s=5)
        client.close()
        client.close()
