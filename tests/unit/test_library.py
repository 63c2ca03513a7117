"""svctl.Client against a scripted daemon: what it takes, gives, raises and cancels."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import doctest
import gzip
import importlib
import io
import json
import os
import pickle
import signal
import socket
import tempfile
import threading
import time
import typing
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from harness.daemon import wait_until
from harness.fake_server import FakeServer, Peer, done, endless, segment

import svctl
from svctl import Client, Error, formats, objects


def test_a_transcript_is_typed_and_whole(path, recording):
    """Every field of the protocol's events, under its name."""
    with FakeServer(path), Client(path) as client:
        transcript = client.transcribe(recording)
        assert client.server == "fake/1.0"
        assert client.status()["model"] == "fake"
        client.ping()
    assert (transcript.text, transcript.language, transcript.duration) == ("hello world", "en", 4.0)
    assert (transcript.file, transcript.model, transcript.truncated) == (str(recording), "fake", False)
    first, second = transcript.segments
    assert (first.index, first.start, first.end, first.text) == (0, 0.0, 1.5, "hello")
    assert (second.emotion, second.event, second.language_score) == ("NEUTRAL", "Speech", 0.9877)
    assert first.words == (svctl.Word("hello", 0.0, 1.5),)
    assert transcript.render("srt").startswith("1\n00:00:00,000 --> 00:00:01,500\nhello\n")
    assert transcript.render("text", tags="none") == "hello\nworld\n"
    with pytest.raises(ValueError, match="'doc' is not one of text"):
        transcript.render("doc")


@pytest.mark.parametrize(
    ("style", "sentence"),
    [
        ({"tags": "emojis"}, "tags are bracket, .*, not 'emojis'"),
        ({"max_line_width": 0}, "max_line_width is a whole number from 1 to 10000, not 0"),
        ({"max_line_width": "42"}, "max_line_width is a whole number .*, not '42'"),
        ({"max_line_width": 42.5}, "max_line_width is a whole number .*, not 42.5"),
        ({"max_line_width": 42, "max_line_count": -1}, "max_line_count is a whole number .*, not -1"),
        ({"max_line_count": 2}, "max_line_count counts the lines that max_line_width makes"),
    ],
)
def test_a_style_that_there_is_not_is_refused(style, sentence):
    """Whatever the format: what it has no use for changes nothing, and nonsense is told."""
    whole = svctl.Transcript(
        segments=(), text="", language="en", duration=1.0, model="m", truncated=False, timings={}
    )
    assert whole.render("json", tags="emoji", max_line_width=42) == whole.render("json")
    for form in ("text", "srt", "json"):
        with pytest.raises(ValueError, match=sentence):
            whole.render(form, **style)


def test_everything_that_holds_audio_is_taken(path, recording, tmp_path):
    """A path in each form, an open file, a file that was begun, bytes, and what only has `read`."""
    (tmp_path / "-").write_text("dash")
    with FakeServer(path) as server, Client(path) as client:
        kinds = [str(recording), recording, recording.read_bytes(), bytearray(b"hello\nworld")]
        for audio in kinds:
            assert client.transcribe(audio).text == "hello world"
        with recording.open("rb") as file:
            assert client.transcribe(file).text == "hello world"
        with recording.open("rb") as file:
            file.read(6)
            assert client.transcribe(file, label="rest").text == "world"
        assert client.transcribe(io.BytesIO(b"hello\nworld")).text == "hello world"
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as file:
            os.write(writer, b"piped")
            os.close(writer)
            assert client.transcribe(file).text == "piped"
        with contextlib.chdir(tmp_path):
            assert client.transcribe("-").text == "dash"
    asked = [message for message in server.requests if message["type"] == "transcribe"]
    assert [message["source"] for message in asked] == ["fd"] * 7 + ["stream", "fd"]
    assert asked[5]["label"] == "rest"


def test_what_a_pipe_s_object_has_read_ahead_is_not_lost(path):
    """After a look at a header, or a first line, the rest comes from its buffer and then from the pipe."""

    def ask(began):
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as file, os.fdopen(writer, "wb", buffering=0) as other:
            other.write(b"head\nhel")
            assert began(file).startswith(b"head")
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(client.transcribe, file)
                server.wait_for("transcribe", len(found) + 1)
                other.write(b"lo\nworld")
                other.close()
                found.append(asked.result(20).text)

    found = []
    with FakeServer(path) as server, Client(path) as client:
        ask(lambda file: file.peek(1))
        ask(lambda file: file.readline())
    assert found == ["head hello world", "hello world"]


def test_a_pipe_that_its_owner_closes_is_an_error(path):
    """Told as what cannot be read, and the daemon is told as well."""
    reader, writer = os.pipe()
    file = os.fdopen(reader, "rb")

    def script(peer, message):
        if message["type"] == "transcribe":
            file.close()
            os.write(writer, b"more")

    with FakeServer(path, script) as server, Client(path) as client:
        with pytest.raises(Error, match=r"cannot be read: read of closed file\."):
            client.transcribe(file, timeout_s=20)
        server.wait_for("cancel")
    os.close(writer)


def test_a_file_whose_descriptor_is_not_its_bytes_is_read(path, tmp_path):
    """Gzip files and files on sockets have one, and what it gives is compressed, or buffered already."""
    with gzip.open(tmp_path / "call.gz", "wb") as file:
        file.write(b"hello\nworld")
    ours, theirs = socket.socketpair()
    with FakeServer(path) as server, Client(path) as client:
        with gzip.open(tmp_path / "call.gz") as file:
            assert client.transcribe(file).text == "hello world"
        with ours, theirs, ours.makefile("rb") as file:
            theirs.sendall(b"x\nhello")
            theirs.shutdown(socket.SHUT_WR)
            assert file.readline() == b"x\n"
            assert client.transcribe(file).text == "hello"
        with tempfile.NamedTemporaryFile(dir=tmp_path) as file:
            file.write(b"named")
            file.seek(0)
            assert client.transcribe(file).text == "named"
        with (tmp_path / "new.wav").open("wb") as file, pytest.raises(ValueError, match="writing only"):
            client.transcribe(file)
    assert [message["source"] for message in server.requests] == ["fd"] * 3


def test_what_a_web_framework_hands_over_is_taken(path, tmp_path):
    """A spooled file, in memory or on disk, whose name is None; one that only a coroutine reads is told."""

    class Upload:
        def __init__(self, file):
            self.file = file

        async def read(self):
            return self.file.read()

    with FakeServer(path) as server, Client(path) as client:
        for size in (1, 100):
            with tempfile.SpooledTemporaryFile(max_size=10, dir=tmp_path) as file:
                file.write(b"x" * size)
                file.seek(0)
                assert client.transcribe(file).text == "x" * size
                with pytest.raises(TypeError, match=r"as with UploadFile\.file"):
                    client.transcribe(Upload(file))
        with tempfile.TemporaryFile(dir=tmp_path) as file:
            file.write(b"unnamed")
            file.seek(0)
            assert client.transcribe(file).text == "unnamed"
    assert [message["label"] for message in server.requests] == ["file"] * 3


def test_a_label_is_what_the_wire_can_carry(path, recording):
    """A long one is cut, and what is not UTF-8 is escaped, as for the names of files."""
    with FakeServer(path) as server, Client(path) as client:
        assert client.transcribe(recording, label="x" * 5_000).file == "x" * 4_096
        assert client.transcribe(recording, label="a\udcff").file == r"a\xff"
    assert len(server.requests[0]["label"]) == 4_096


@pytest.mark.parametrize(
    ("dtype", "channels", "rate"),
    [
        ("float32", 1, 22_050),
        ("float64", 2, 22_050.0),
        ("int16", 1, np.int64(22_050)),
        ("int16", 2, np.array(22_050)),
    ],
)
def test_samples_arrive_as_they_were(path, dtype, channels, rate):
    """An array becomes a WAV that libsndfile reads back exactly."""
    samples = np.linspace(-1, 1, 1_000)
    samples = samples if dtype != "int16" else samples * 32_767
    samples = np.stack([samples] * channels, axis=1).astype(dtype)
    got = []

    def script(peer, message):
        data = os.pread(message["descriptor"], 10**6, 0)
        got.append(soundfile.read(io.BytesIO(data), dtype="int16" if dtype == "int16" else "float32"))
        Peer.answer(peer, message)

    with FakeServer(path, script), Client(path) as client, contextlib.suppress(Error):
        client.transcribe(samples if channels > 1 else samples[:, 0], rate=rate)
    found, rate_found = got[0]
    assert rate_found == 22_050
    np.testing.assert_array_equal(found.reshape(1_000, channels), samples.astype(found.dtype))


@pytest.mark.parametrize(
    ("audio", "rate", "error"),
    [
        (np.zeros(10, np.float32), None, TypeError),
        (np.zeros(10, np.int32), 16_000, ValueError),
        (np.zeros((2, 2, 2)), 16_000, ValueError),
        (np.zeros((2, 160_000)), 16_000, ValueError),
        (np.zeros((10, 0)), 16_000, ValueError),
        (np.zeros(10, bool), 16_000, ValueError),
        (np.zeros(10), 0, ValueError),
        (np.zeros(10), -1, ValueError),
        (np.zeros(10), 16_000.5, ValueError),
        (np.zeros(10), 2**31, ValueError),
        *((np.zeros(10), kind(rate), ValueError) for kind in (float, np.float32) for rate in ("inf", "nan")),
        *((np.zeros(10), rate, TypeError) for rate in (True, np.True_, "16000", 16_000j)),
        (np.broadcast_to(np.int16(0), (2**31,)), 16_000, ValueError),
        (SimpleNamespace(dtype="float32", shape=(10,), ndim=1), 16_000, TypeError),
        (io.StringIO("text"), None, TypeError),
        (7, None, TypeError),
    ],
)
def test_what_is_no_audio_is_refused_before_anything_is_sent(path, audio, rate, error):
    """With Python's own exceptions: it is a mistake of the program."""
    with FakeServer(path) as server, Client(path) as client:
        with pytest.raises(error):
            client.transcribe(audio, rate=rate)
        for ask in (client.transcribe, client.segments):
            with pytest.raises(ValueError, match="'xx' is not one of auto"):
                ask(b"x", language="xx")
        assert server.requests == []


def test_an_error_has_its_code_and_the_connection_goes_on(path, recording):
    """A file that is not there, and one that the daemon refuses; the next request is answered."""

    def script(peer, message):
        if message.get("label") == "bad":
            peer.send({"type": "error", "id": message["id"], "code": "bad_input", "message": "No audio."})
        else:
            Peer.answer(peer, message)

    with FakeServer(path, script), Client(path) as client:
        with pytest.raises(Error) as caught:
            client.transcribe("absent.wav")
        assert caught.value.code == "not_found"
        with pytest.raises(Error, match=r"No audio\.") as caught:
            client.transcribe(recording, label="bad")
        assert caught.value.code == "bad_input"
        assert client.transcribe(recording).text == "hello world"


def test_a_full_daemon_is_asked_again(path, recording):
    """As long as patience lasts, after the time that the daemon says."""
    refusals = iter([True, True, False])

    def script(peer, message):
        if next(refusals):
            fields = {"code": "busy", "message": "Full.", "retryable": True, "retry_after_ms": 1}
            peer.send({"type": "error", "id": message["id"], **fields})
        else:
            Peer.answer(peer, message)

    with FakeServer(path, script), Client(path) as client:
        assert client.transcribe(recording).text == "hello world"


def test_patience_does_not_end_while_the_daemon_works_for_another_thread(path, recording):
    """One is refused for longer than that, and heard from all the while is another, which then ends too."""
    running, refusals = [], 12

    def script(peer, message):
        if not running:
            running.append((peer, message))
        elif len(running) <= refusals:
            other, first = running[0]
            running.append(message)
            other.send({"type": "progress", "id": first["id"], "decoded_s": 1.0, "recognised_s": 0.5})
            busy = {"type": "error", "id": message["id"], "code": "busy", "message": "Full."}
            peer.send({**busy, "retryable": True, "retry_after_ms": 100})
        else:
            running[0][0].answer(running[0][1])
            peer.answer(message)

    with FakeServer(path, script), Client(path, patience_s=0.5) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.transcribe, recording, timeout_s=20)
        wait_until(lambda: running, "the first request")
        assert client.transcribe(b"late").text == "late"
        assert first.result(20).text == "hello world"
    assert len(running) == refusals + 1


def test_parts_and_channels_reach_the_daemon_and_come_back(path, recording):
    """Left out where they say nothing; a daemon that does not know them is named before it is asked."""

    def script(peer, message):
        if message["type"] == "transcribe":
            peer.send(segment(message["id"], 0, "right", channel=2, start=5.0, end=6.0))
            peer.send(segment(message["id"], 1, "left", channel=1, start=4.0, end=5.0))
            peer.send(done(message["id"], 2))
        else:
            Peer.answer(peer, message)

    with FakeServer(path, script) as server, Client(path) as client:
        found = client.transcribe(recording, channels="split", start_s=4, duration_s=2.5)
        assert [(turn.channel, turn.text) for turn in found.segments] == [(1, "left"), (2, "right")]
        assert found.render("plain") == "1: left\n2: right\n"
        asked = server.requests[-1]
        assert (asked["channels"], asked["start"], asked["duration"]) == ("split", 4, 2.5)
        for wrong in ({"channels": "17"}, {"start_s": -1.0}, {"duration_s": float("nan")}):
            with pytest.raises(ValueError, match=r"is not one of|is no number of seconds"):
                client.transcribe(recording, **wrong)
    path.unlink()
    with FakeServer(path, minor=0) as server, Client(path) as client:
        with pytest.raises(Error, match=r"start came with 1\.1: upgrade the daemon"):
            client.transcribe(recording, start_s=1.0)
        assert server.requests == []
        assert client.transcribe(recording).text == "hello world"


def test_a_client_that_is_closed_says_so_as_any_other(path, recording):
    """Error `unavailable`, not the socket's own exception."""
    with FakeServer(path):
        client = Client(path)
        client.close()
        for ask in (client.ping, lambda: client.transcribe(recording)):
            with pytest.raises(Error) as caught:
                ask()
            assert caught.value.code == "unavailable"


def test_leaving_the_segments_early_cancels(path, recording):
    """The daemon is told, and the connection can be used for the next request."""
    with FakeServer(path, endless(threading.Event())) as server, Client(path) as client:
        for segment_ in client.segments(recording):
            assert segment_.text == "one"
            break
        client.ping()
        assert [message["type"] for message in server.requests] == ["transcribe", "cancel", "ping"]
        assert len(server.peers) == 1


def test_a_request_within_a_loop_of_segments_has_its_own_connection(path, recording):
    """Neither gets the other's events; both connections are used again."""
    with FakeServer(path) as server, Client(path) as client:
        for _ in range(2):
            found = []
            for line in client.segments(recording):
                found.append((line.text, client.transcribe(b"other").text))
                client.ping()
            assert found == [("hello", "other"), ("world", "other")]
        assert len(server.peers) == 2


def test_threads_share_a_client(path):
    """Every one gets the answers to its own requests."""
    together = threading.Barrier(8)

    def ask(number):
        together.wait(20)
        return [client.transcribe(b"%d %d" % (number, turn)).text for turn in range(10)]

    with FakeServer(path) as server, Client(path) as client, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
        assert found == [[f"{number} {turn}" for turn in range(10)] for number in range(8)]
        assert len(server.peers) <= 8


def test_closing_ends_what_another_thread_waits_for(path, recording):
    """It is told `unavailable`, and so is whoever asks afterwards, or goes on with segments."""
    first = threading.Event()
    with FakeServer(path, endless(first)) as server, Client(path) as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.transcribe, recording)
        assert first.wait(20)
        left = client.segments(recording)
        next(left)
        client.close()
        for ask in (lambda: waiting.result(20), lambda: next(left), client.ping):
            with pytest.raises(Error) as caught:
                ask()
            assert caught.value.code == "unavailable"
        assert server.ended.wait(20)


def test_a_daemon_that_restarted_is_asked_over_a_new_connection(path, recording):
    """Between two requests nothing is lost by it, and none of them is an error."""
    with FakeServer(path) as earlier:
        client = Client(path)
        assert client.transcribe(recording).text == "hello world"
        earlier.peers[0].hang_up()
    with client:
        path.unlink()
        with pytest.raises(Error, match="No daemon listens") as caught:
            client.ping()
        assert caught.value.code == "unavailable"
        with FakeServer(path) as server:
            assert client.transcribe(recording).text == "hello world"
            client.ping()
            assert (len(server.peers), len(server.requests)) == (1, 2)


def test_a_daemon_that_hangs_up_on_the_idle_is_asked_again(path):
    """A notebook that rests for lunch finds its connection closed with a reason, and never hears of it."""
    with FakeServer(path) as server, Client(path) as client:
        client.ping()
        idle = {"type": "error", "id": None, "code": "timeout", "message": "Nothing was asked for 300 s."}
        server.peers[0].send(idle)
        server.peers[0].hang_up()
        client.ping()
        assert (len(server.peers), len(server.requests)) == (2, 2)


def test_what_is_refused_by_a_daemon_that_stops_is_told_and_the_next_is_asked_elsewhere(path, recording):
    """It keeps its connections while it drains, when its successor listens already."""

    def script(peer, message):
        fields = {"code": "shutting_down", "message": "The daemon is stopping.", "retryable": True}
        peer.send({"type": "error", "id": message["id"], **fields})

    with FakeServer(path, script), Client(path) as client:
        path.unlink()
        with FakeServer(path):
            with pytest.raises(Error, match="is stopping") as caught:
                client.transcribe(recording)
            assert (caught.value.code, caught.value.retryable) == ("shutting_down", True)
            assert client.transcribe(recording).text == "hello world"


def test_an_answer_that_never_came_is_an_error_and_is_not_asked_for_twice(path, recording):
    """What has been sent may have been done: only the program knows whether that may happen again."""

    def script(peer, message):
        peer.hang_up()

    with FakeServer(path, script) as server, Client(path) as client:
        with pytest.raises(Error, match="broke before it had answered"):
            client.transcribe(recording)
        assert len(server.requests) == 1


def test_an_interrupt_leaves_the_client_usable(path, recording):
    """Ctrl-C in a notebook: the daemon drops the request, the next one has a connection of its own."""
    first = threading.Event()

    def interrupt():
        first.wait(20)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with FakeServer(path, endless(first)) as server, Client(path) as client:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            client.transcribe(recording)
        assert server.ended.wait(20)
        client.ping()


def test_a_forked_process_has_connections_of_its_own(path, recording):
    """What it asks does not mix with what its parent asks, and its end does not end the parent's."""
    with FakeServer(path) as server, Client(path) as client:
        child = os.fork()
        if not child:
            status = 1
            try:
                status = int(client.transcribe(b"child").text != "child")
            finally:
                os._exit(status)
        assert client.transcribe(recording).text == "hello world"
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        client.ping()
        assert len(server.peers) == 2


def test_answers_and_errors_go_to_other_processes(path, recording):
    """Pickled whole: pools of processes do that, and hang where an exception cannot be read back."""
    with FakeServer(path) as server, Client(path) as client:
        transcript = client.transcribe(recording)
        assert pickle.loads(pickle.dumps(transcript)) == transcript
        assert {transcript, copy.deepcopy(transcript)} == {transcript}
        server.script = lambda peer, message: peer.send(
            {"type": "error", "id": message["id"], "code": "busy", "message": "Full.", "retry_after_ms": None}
        )
        for broken in (
            lambda: client.transcribe("absent.wav"),
            lambda: client.transcribe(str(path.parent)),
            client.ping,
        ):
            with pytest.raises(Error) as caught:
                broken()
            read = pickle.loads(pickle.dumps(caught.value))
            assert (type(read), str(read), vars(read)) == (
                type(caught.value),
                str(caught.value),
                vars(caught.value),
            )
            assert read.exit_status == caught.value.exit_status


def test_a_transcript_is_plain_data(path, recording):
    """As web frameworks and notebooks take it: types that resolve, fields and no secrets, a short repr."""
    with FakeServer(path), Client(path) as client:
        transcript = client.transcribe(recording)
    for kind in (svctl.Transcript, svctl.Segment, svctl.Word):
        assert set(typing.get_type_hints(kind)) == {field.name for field in dataclasses.fields(kind)}
    plain = json.loads(json.dumps(dataclasses.asdict(transcript)))
    assert [line["text"] for line in plain.pop("segments")] == ["hello", "world"]
    assert plain == {
        "text": "hello world",
        "language": "en",
        "duration": 4.0,
        "model": "fake",
        "truncated": False,
        "timings": {},
        "file": str(recording),
    }
    assert repr(transcript) == (
        "Transcript(text='hello world', language='en', duration=4.0, model='fake', truncated=False, "
        f"file={str(recording)!r})"
    )
    assert "words" not in repr(transcript.segments)
    assert "raw" not in repr(transcript.segments)


def test_a_transcript_is_rendered_as_the_command_line_does(path, recording):
    """The same JSON, to the byte, though it is made from the typed answer."""
    events = [segment(1, 0, "right", channel=2), segment(1, 1, "a <b>")]
    ended = done(1, 2, duration=3.25, truncated=True)

    def script(peer, message):
        for event in (*events, ended):
            peer.send(event | {"id": message["id"]})

    with FakeServer(path, script), Client(path) as client:
        found = client.transcribe(recording)
    whole = objects.transcript(str(recording), events, ended)
    for form in formats.FORMS:
        assert found.render(form) == formats.rendered(form, whole, formats.Style())


@pytest.mark.parametrize("module", ["svctl", "svctl.library", "svctl.asynchronous"])
def test_the_examples_of_the_library_run(path, recording, monkeypatch, module):
    """Those in the docstrings, against a daemon that hears what the file says."""
    monkeypatch.chdir(recording.parent)
    monkeypatch.setenv("SENSEVOICE_SOCKET", str(path))
    with FakeServer(path):
        found = doctest.testmod(importlib.import_module(module))
    assert (found.failed, found.attempted > 0) == (0, True)


def test_a_timeout_cancels(path, recording):
    """Error `timeout`, and no work left at the daemon."""
    with FakeServer(path, endless(threading.Event())) as server, Client(path) as client:
        with pytest.raises(Error) as caught:
            client.transcribe(recording, timeout_s=0.05)
        assert caught.value.code == "timeout"
        server.wait_for("cancel")


@pytest.mark.parametrize("refusal", ["", "too_many_connections"])
def test_a_timeout_is_for_a_new_connection_too(path, recording, refusal):
    """The daemon has ended the last, and its successor says nothing, or that it is full, for longer."""
    greeted = []

    def greet(peer, hello):
        greeted.append(peer)
        if len(greeted) == 1:
            peer.send({"type": "welcome", "major": 1, "minor": 1, "server": "fake/1.0"})
        elif refusal:
            fields = {"code": refusal, "message": "Full.", "retryable": True, "retry_after_ms": 1}
            peer.send({"type": "error", "id": None, **fields})

    with FakeServer(path, greet=greet) as server, Client(path, patience_s=600) as client:
        server.peers[0].hang_up()
        assert server.ended.wait(20)
        began_s = time.monotonic()
        with pytest.raises(Error) as caught:
            client.transcribe(recording, timeout_s=0.3)
        assert caught.value.code == (refusal or "timeout")
        assert time.monotonic() - began_s < 60
        assert len(greeted) > 1


def test_the_package_has_the_names_that_it_says():
    """And no others, with AttributeError for those."""
    for name in svctl.__all__:
        assert getattr(svctl, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Clients'"):
        _ = svctl.Clients
