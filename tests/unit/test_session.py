"""One connection's conversation, with a service that does as the test says."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import socket
import threading

import pytest
from harness.daemon import wait_until
from harness.fakes import recognised
from harness.sessions import SELF, STRANGER, Running, Service, Transcript
from harness.wire_client import memfd

from sensevoiced import threads
from sensevoiced.config import ServingConfig
from sensevoiced.jobs import JobError, Options, Timings, Word
from sensevoiced.serving import job, source
from sensevoiced.serving.inbox import Inbox
from sensevoiced.serving.listener import Peer
from sensevoiced.serving.service import Segment
from sensevoiced.serving.transport import Stream
from svctl.wire import WireError

SEGMENT = Segment(
    0,
    1.23456,
    3.0,
    dataclasses.replace(
        recognised({"say": "hello world", "seconds": 1.0}, Options()),
        words=(Word("hello", 0.0, 0.1234), Word("world", 0.5, 1.0)),
    ),
)


def test_segments_and_done_carry_rounded_numbers_and_times_of_the_recording():
    """Milliseconds, six digits of a score, words in the recording's time."""
    with Running(Service([SEGMENT])) as running:
        segment, done = running.client.ask(9, memfd(b"x"), label="a.wav", language="yue", itn=False)
    assert (segment["start"], segment["end"], segment["index"]) == (1.235, 3.0, 0)
    assert segment["language_score"] == 0.987654
    assert segment["words"] == [
        {"word": "hello", "start": 1.235, "end": 1.358},
        {"word": "world", "start": 1.735, "end": 2.235},
    ]
    assert (done["duration"], done["segments"], done["truncated"], done["model"]) == (
        7.0,
        1,
        True,
        "scripted",
    )
    timings = done["timings"]
    assert list(timings) == [field.name for field in dataclasses.fields(Timings)]
    assert timings["queued_s"] >= 0.25
    assert timings["total_s"] > 0
    assert running.service.asked == [(Options(language="yue", itn=False), "a.wav")]
    assert running.service.owner == os.geteuid()
    assert running.metrics.jobs_done == 1
    assert running.admission.jobs == 0


def test_progress_is_told_of_long_requests_only():
    """A request that is over at once has none; one that takes its time tells how far it is."""
    gate = asyncio.Event()
    with Running(Service([SEGMENT])) as running:
        running.client.transcribe(1, memfd(b"x"))
        assert [running.client.receive()["type"] for _ in range(2)] == ["segment", "done"]
        running.service.steps = [SEGMENT, gate, SEGMENT]
        running.client.transcribe(2, memfd(b"x"))
        assert running.client.receive()["type"] == "segment"
        assert running.client.receive() == {
            "type": "progress",
            "id": 2,
            "decoded_s": 12.346,
            "recognised_s": 4.0,
            "waits_for": "share",
        }
        running.call(gate.set)
        assert running.client.events(2)[-1]["type"] == "done"


def test_a_request_that_waits_for_the_model_says_so():
    """Nothing is read yet, and the client hears why."""
    loaded = asyncio.Event()

    class Loading(Service):
        async def ready(self):
            await loaded.wait()

    with Running(Loading([SEGMENT])) as running:
        running.client.transcribe(1, memfd(b"x"))
        told = running.client.receive()
        waiting = {"type": "progress", "id": 1, "decoded_s": 0.0, "recognised_s": 0.0, "waits_for": "model"}
        assert told == waiting
        running.call(loaded.set)
        assert running.client.events(1)[-1]["type"] == "done"


@pytest.mark.parametrize("code", ["bad_input", "too_long", "timeout", "internal"])
def test_a_parts_error_is_the_requests_terminal_event(code):
    """What was recognised before it is delivered, and the code and the sentence arrive."""
    with Running(Service([SEGMENT, JobError(code, "As it is.")])) as running:
        segment, error = running.client.ask(1, memfd(b"x"))
        assert segment["type"] == "segment"
        assert (error["code"], error["message"]) == (code, "As it is.")
    assert (running.metrics.jobs_failed, running.metrics.jobs_done) == (1, 0)


def test_a_request_that_was_cancelled_does_not_take_the_next_of_its_id_along():
    """It may take a while to end, and is on the board until then: dropping it drops nothing else."""
    may_end, gate = asyncio.Event(), asyncio.Event()

    class Lingering(Transcript):
        async def aclose(self):
            await may_end.wait()
            await super().aclose()

    class Slow(Service):
        def transcribe(self, source_fd, options, *, label, owner):
            self.asked.append((options, label))
            return Lingering(source_fd, [gate, SEGMENT])

    with Running(Slow()) as running:
        for request in range(2):
            running.client.transcribe(1, memfd(b"x"))
            wait_until(lambda count=request + 1: len(running.service.asked) == count, "it has begun")
            if not request:
                running.client.send({"type": "cancel", "id": 1})
                assert running.client.events(1)[-1]["code"] == "cancelled"
        running.call(lambda: running.board.cancel(SELF, 1))
        running.call(gate.set)
        running.call(may_end.set)
        assert running.client.events(1)[-1]["type"] == "done"
    assert (running.error, running.admission.jobs) == (None, 0)


def test_a_defect_ends_the_connection_and_is_raised():
    """It is no request's error: the server answers `internal` and logs it."""
    with Running(Service([RuntimeError("defect")])) as running:
        running.client.transcribe(1, memfd(b"x"))
        running.client.until_closed()
    assert running.error is not None
    assert running.admission.jobs == 0


def test_only_root_and_the_daemons_user_reload():
    """Everybody may ask for status; settings are the owner's."""
    with Running(Service(), STRANGER) as running:
        assert running.client.status() == {"state": "scripted"}
        running.client.send({"type": "reload", "id": 4})
        error = running.client.receive()
        assert (error["code"], error["id"]) == ("forbidden", 4)
    for peer in (SELF, Peer(1, 0, 0)):
        with Running(Service(), peer) as running:
            running.client.send({"type": "reload", "id": 4})
            assert running.client.receive() == {"type": "reloaded", "id": 4, "message": "Nothing to apply."}
            running.service.reload_answer = WireError("config", "Wrong.")
            running.client.send({"type": "reload", "id": 5})
            assert (error := running.client.receive())["code"] == "config"
            assert error["id"] == 5


def test_f20_a_strangers_path_is_refused_before_anything_else():
    """Nothing is opened, nothing is asked of the service; root is a stranger too, where we are not root."""
    peers = [STRANGER] if os.geteuid() == 0 else [STRANGER, Peer(1, 0, 0)]
    for peer in peers:
        with Running(Service([SEGMENT]), peer) as running:
            assert running.client.ask(1, source="path", path="/etc/hostname")[-1]["code"] == "forbidden"
        assert running.service.asked == []


def test_streamed_audio_reaches_the_service_in_order_and_ends():
    """The service reads exactly what was sent, from a descriptor of its own."""
    heard = []

    class Listening(Service):
        def transcribe(self, source_fd, options, *, label, owner):
            def read():
                while data := os.read(source_fd, 65536):
                    heard.append(data)

            class Reading(Transcript):
                async def __aiter__(self):
                    await asyncio.to_thread(read)
                    yield SEGMENT

            return Reading(source_fd, ())

    pieces = [bytes([n]) * 200_000 for n in range(20)]
    with Running(Listening(), max_upload_buffer_bytes=100_000) as running:
        running.client.transcribe(1, source="stream")
        for piece in pieces:
            running.client.send({"type": "audio", "id": 1, "data": piece})
        running.client.send({"type": "end", "id": 1})
        assert running.client.events(1)[-1]["type"] == "done"
    assert b"".join(heard) == b"".join(pieces)


def test_abandoned_uploads_are_forgotten_in_the_end():
    """A client that gives up a thousand uploads costs a bounded memory of them."""
    with Running(Service([asyncio.Event()])) as running:
        for request in range(1_500):
            running.client.transcribe(request, source="stream")
            running.client.send({"type": "cancel", "id": request})
            assert running.client.events(request)[-1]["code"] == "cancelled"
        assert len(running.session._orphans) <= 1_024
        running.client.send({"type": "audio", "id": 1_499, "data": b"late"})
        assert running.client.ping()["type"] == "pong"


def test_f11_an_upload_without_descriptors_is_busy_and_leaves_nothing(monkeypatch):
    """The request alone is refused, nothing of it stays counted, and the rest of its upload is no mistake."""
    pipe2 = os.pipe2

    def none_left(flags):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with Running(Service([SEGMENT])) as running:
        monkeypatch.setattr(os, "pipe2", none_left)
        for request in range(3):
            (error,) = running.client.ask(request, source="stream")
            assert (error["code"], error["id"]) == ("busy", request)
            assert error["retry_after_ms"] > 0
            running.client.send({"type": "audio", "id": request, "data": b"late"})
        assert running.client.ping()["type"] == "pong"
        assert (running.admission.jobs, running.metrics.jobs_rejected) == (0, 3)
        monkeypatch.setattr(os, "pipe2", pipe2)
        running.client.transcribe(0, source="stream")
        running.client.send({"type": "end", "id": 0})
        assert running.client.events(0)[-1]["type"] == "done"
    assert running.error is None


def test_files_on_hanging_file_systems_are_busy_above_a_limit(monkeypatch):
    """Each holds a thread for as long as it hangs; what is beyond the limit is refused and given back."""
    wall = threading.Event()

    def examine(fd, owner):
        assert wall.wait(30)
        return source.examine(fd, owner)

    monkeypatch.setattr(job, "examine", examine)
    monkeypatch.setattr(source, "MAX_HANGING_PER_USER", 2)
    with Running(Service([SEGMENT]), open_timeout_s=0.05) as running:
        for request in (1, 2):
            assert running.client.ask(request, memfd(b"x"))[-1]["code"] == "timeout"
        (error,) = running.client.ask(3, memfd(b"x"))
        assert (error["code"], error["retryable"]) == ("busy", True)
        wall.set()
        wait_until(lambda: not source.hanging, "the file systems answer")
        assert running.client.ask(4, memfd(b"x"))[-1]["type"] == "done"
    assert not source.hanging


def test_a_thread_that_cannot_be_started_is_busy(monkeypatch):
    """The request is refused, and nothing stays counted."""

    def start(*_):
        raise RuntimeError("can't start new thread")

    with Running(Service([SEGMENT])) as running:
        with monkeypatch.context() as patched:
            patched.setattr(threads, "start", start)
            assert running.client.ask(1, memfd(b"x"))[-1]["code"] == "busy"
        assert running.client.ask(2, memfd(b"x"))[-1]["type"] == "done"
    assert not source.hanging


def test_the_idle_time_begins_when_the_last_request_has_ended():
    """However long that took, a client has the whole idle time for its next one."""
    idle_s = 0.4

    async def scene():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        limits = ServingConfig(idle_timeout_s=idle_s)
        stream = Stream(ours, owner=1_000, max_write_buffer_bytes=2**21, write_timeout_s=5.0)
        working, ended_s = True, 0.0
        inbox = Inbox(stream, lambda: limits, lambda: working, 1_000)
        inbox.greet()

        def end():
            nonlocal working, ended_s
            working, ended_s = False, loop.time()
            inbox.restart_idle()

        loop.call_later(idle_s * 1.75, end)
        with pytest.raises(WireError, match="Nothing was asked") as caught:
            async for _ in inbox.messages():
                pass
        assert caught.value.code == "timeout"
        assert loop.time() - ended_s >= idle_s
        stream.close()
        theirs.close()

    asyncio.run(scene())


def test_a_stopping_daemon_takes_no_new_requests():
    """`shutting_down`, worth trying again elsewhere or later."""
    service = Service([SEGMENT])
    service.accepting = False
    with Running(service) as running:
        (error,) = running.client.ask(1, memfd(b"x"))
        assert (error["code"], error["retryable"]) == ("shutting_down", True)


def test_stop_answers_what_is_unfinished_and_ends():
    """Every open request gets its terminal event."""
    with Running(Service([asyncio.Event()])) as running:
        for request in (1, 2):
            running.client.transcribe(request, memfd(b"x"))
        running.client.ping()
        running.call(running.session.stop)
        messages = running.client.until_closed()
        assert sorted((message["id"], message["code"]) for message in messages) == [
            (1, "shutting_down"),
            (2, "shutting_down"),
        ]
