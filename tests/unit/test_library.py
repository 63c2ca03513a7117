"""svctl.Client against a scripted daemon: what it takes, gives, raises and cancels."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import socket
import tempfile
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from harness.fake_server import FakeServer, Peer, done, endless, segment

import svctl
from svctl import Client, Error


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


def test_a_label_is_what_the_wire_can_carry(path, recording):
    """A long one is cut, and what is not UTF-8 is replaced, as for the names of files."""
    with FakeServer(path) as server, Client(path) as client:
        assert client.transcribe(recording, label="x" * 5_000).file == "x" * 4_096
        assert client.transcribe(recording, label="a\udcff").file == "a\ufffd"
    assert len(server.requests[0]["label"]) == 4_096


@pytest.mark.parametrize(("dtype", "channels"), [("float32", 1), ("float64", 2), ("int16", 1), ("int16", 2)])
def test_samples_arrive_as_they_were(path, dtype, channels):
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
        client.transcribe(samples if channels > 1 else samples[:, 0], rate=22_050)
    found, rate = got[0]
    assert rate == 22_050
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
        with pytest.raises(ValueError, match="'xx' is not one of auto"):
            client.transcribe(b"x", language="xx")
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
        with pytest.raises(Error, match="which has no start; upgrade it"):
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
        with contextlib.closing(client.segments(recording)) as segments:
            assert next(segments).text == "one"
        client.ping()
        assert server.requests[-2]["type"] == "cancel"


def test_a_timeout_cancels(path, recording):
    """Error `timeout`, and no work left at the daemon."""
    with FakeServer(path, endless(threading.Event())) as server, Client(path) as client:
        with pytest.raises(Error) as caught:
            client.transcribe(recording, timeout_s=0.05)
        assert caught.value.code == "timeout"
        server.wait_for("cancel")


def test_the_package_has_the_names_that_it_says():
    """And no others, with AttributeError for those."""
    for name in svctl.__all__:
        assert getattr(svctl, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Clients'"):
        _ = svctl.Clients
