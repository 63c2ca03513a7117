"""A client and a daemon of different versions: what works goes on, what does not is a sentence.

The other way round, an older daemon, is in test_verbs.py; other major versions are F07 in tests/faults.
"""

from __future__ import annotations

import os
import socket
import threading

import pytest
from harness.daemon import DaemonProcess, script
from harness.wire_client import WireClient, memfd

from svctl import framing, wire

HELLO = bytes.fromhex(
    "0000002d84a474797065a568656c6c6fa56d616a6f7201a56d696e6f7200a6636c69656e74ab737663746c2f302e312e30"
)
"""What svctl 0.1.0 said when it spoke 1.0, byte by byte."""
TRANSCRIBE = bytes.fromhex(
    "0000004387a474797065aa7472616e736372696265a2696401a6736f75726365a26664a56c6162656ca5612e776176"
    "a86c616e6775616765a46175746fa369746ec3a3766164c3"
)
CANCEL, STATUS, PING = (
    bytes.fromhex("0000001182a474797065a663616e63656ca2696401"),
    bytes.fromhex("0000001182a474797065a6737461747573a2696402"),
    bytes.fromhex("0000000f82a474797065a470696e67a2696403"),
)
NEEDED = {
    "welcome": {"major", "minor"},
    "segment": {
        *("id", "index", "start", "end", "language", "language_score", "emotion", "emotion_score"),
        *("event", "event_score", "text", "raw", "words"),
    },
    "done": {"id", "duration", "segments", "model", "timings"},
    "status": {"id", "status"},
    "pong": {"id"},
}
"""Events that 1.0 knew, and the keys that it did not do without."""


@pytest.fixture
def daemon(tmp_path):
    """The real daemon around a fake engine."""
    process = DaemonProcess(tmp_path / "daemon")
    yield process
    assert process.stop() == 0


def test_a_client_of_1_0_is_served(daemon):
    """Its recorded bytes are answered with the events and keys that it knew, whatever else they hold."""
    recording = memfd(script("heard"))
    with WireClient(daemon.socket, hello=False) as old:
        old.send_raw(HELLO)
        old.send_raw(TRANSCRIBE, recording)
        events = [old.receive(), *old.events(1)]
        for request in (CANCEL, STATUS, PING):  # what has ended is cancelled without a word
            old.send_raw(request)
        events += [old.receive(), old.receive()]
    os.close(recording)
    assert [event["type"] for event in events] == ["welcome", "segment", "done", "status", "pong"]
    assert (events[0]["major"], events[1]["text"]) == (1, "heard")
    for event in events:
        assert NEEDED[event["type"]] <= set(event)


def test_what_was_recorded_is_of_1_0():
    """The bytes above say what they are taken for, and only what 1.0 had."""
    reader = framing.FrameReader(requests=True)
    reader.feed(HELLO + TRANSCRIBE + CANCEL + STATUS + PING)
    hello, transcribe, *others = reader.messages()
    assert hello == {"type": "hello", "major": 1, "minor": 0, "client": "svctl/0.1.0"}
    assert not {*transcribe, *(message["type"] for message in others)} & set(wire.SINCE)


@pytest.mark.parametrize("words", [["ping"], ["ps"], ["transcribe", "--start", "1", "first.wav"]])
@pytest.mark.parametrize("welcomes", [True, False])
def test_another_major_version_is_told_with_both_and_the_remedy(svctl, serve, files, words, welcomes):
    """Whether it refuses, as our own does, or welcomes: 69, one line, nothing on standard output."""

    def refuse(peer, hello):
        both = f"The client speaks protocol {hello['major']}.{hello['minor']}, this daemon 2.1"
        message = f"{both}; install the same version of both."
        peer.send({"type": "error", "code": "unsupported", "message": message})
        peer.hang_up()

    server = serve(major=2, greet=None if welcomes else refuse)
    status, out, err = svctl(*words)
    assert (status, out, err.count("\n")) == (69, "", 1)
    assert "2.1" in err
    assert f"{wire.VERSION_MAJOR}.{wire.VERSION_MINOR}" in err
    assert err.endswith("; install the same version of both.\n")
    assert (server.path in err) == welcomes


def test_what_is_no_daemon_of_ours_is_told(svctl, tmp_path):
    """A web server at the socket does not speak this protocol: 76, in one line."""

    def answer():
        peer, _ = listener.accept()
        with peer:
            peer.recv(4_096)
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "api.sock"))
        listener.listen()
        web = threading.Thread(target=answer)
        web.start()
        status, out, err = svctl("ping")
        web.join(20)
    assert (status, out, err.count("\n")) == (76, "", 1)
