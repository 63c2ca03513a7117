"""A MemoryError of the daemon itself costs the request or the connection it comes up in, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness.daemon import wait_until
from harness.pools import descriptors, settled_descriptors
from harness.sessions import Running, Service
from harness.wire_client import WireClient, memfd

from sensevoiced import loop as loop_module
from sensevoiced import threads
from sensevoiced.backend import Backend
from sensevoiced.config import Config, ServingConfig
from sensevoiced.descriptors import close_later, closing
from sensevoiced.frontend import child as child_module
from sensevoiced.frontend.child import Child
from sensevoiced.heartbeat import Heartbeat
from sensevoiced.jobs import JobError, Options
from sensevoiced.loop import Loop
from sensevoiced.metrics import Metrics
from sensevoiced.serving import admission, job, listener, server, session, source, transport
from sensevoiced.serving import inbox as inbox_module
from sensevoiced.serving.admission import Admission
from sensevoiced.serving.inbox import Inbox
from sensevoiced.serving.session import Session
from sensevoiced.shortage import lacks_memory
from svctl.framing import FrameReader

LIMIT_S = 30.0


def lacking(real, times=1):
    """A function that fails for want of memory the first `times` times, and then is `real`."""
    failed = []

    def function(*args, **options):
        if len(failed) < times:
            failed.append(args)
            raise MemoryError
        return real(*args, **options)

    return function


def test_only_lacks_of_memory_are_one():
    """A group is one where all of it is; another error in it is a defect that has to be seen."""
    assert lacks_memory(MemoryError())
    assert lacks_memory(ExceptionGroup("", [MemoryError(), ExceptionGroup("", [MemoryError()])]))
    assert not lacks_memory(ExceptionGroup("", [MemoryError(), ValueError()]))
    assert not lacks_memory(ValueError())


@pytest.mark.parametrize("where", ["at once", "on the way", "examining", "starting a thread"])
def test_in_a_request_it_costs_the_request(monkeypatch, where):
    """It is told `busy` and when to come back; the next one on the same connection is served."""
    service = Service([MemoryError()] if where == "on the way" else [])
    if where == "at once":
        monkeypatch.setattr(service, "transcribe", lacking(service.transcribe))
    elif where == "examining":
        monkeypatch.setattr(source.fcntl, "fcntl", lacking(source.fcntl.fcntl))
    elif where == "starting a thread":
        monkeypatch.setattr(source.threads, "start", lacking(source.threads.start))
    with Running(service) as running:
        (error,) = running.client.ask(1, memfd(b"x"))
        assert (error["type"], error["code"], error["id"]) == ("error", "busy", 1)
        assert error["retry_after_ms"] > 0
        service.steps = []
        assert running.client.ask(2, memfd(b"x"))[-1]["type"] == "done"
        wait_until(lambda: running.admission.jobs == 0, "nothing stays counted")
    assert running.error is None
    assert not source.hanging


@pytest.mark.parametrize("method", ["feed", "messages"])
def test_in_what_is_received_it_costs_the_connection(monkeypatch, method):
    """Bytes are lost with it, so the peer is told once and cut off, with its unfinished requests."""
    with Running(Service([asyncio.Event()])) as running:
        running.client.transcribe(1, memfd(b"x"))
        running.client.ping()
        monkeypatch.setattr(FrameReader, method, lacking(getattr(FrameReader, method)))
        running.client.send({"type": "ping", "id": 2})
        *_, error = running.client.until_closed()
        assert (error["code"], error["id"], error["retryable"]) == ("busy", None, True)
    assert running.error is None
    assert running.admission.jobs == 0
    assert running.metrics.connections_closed == {"busy": 1}


@pytest.mark.parametrize("source", ["fd", "stream"])
@pytest.mark.parametrize(
    "what", ["its ticket", "its job", "its options", "its place in the session", "its place on the board"]
)
def test_in_the_beginning_of_a_request_it_leaves_nothing(monkeypatch, what, source):
    """Neither a place among the admitted, nor one on the board, nor a descriptor: of a file or of a pipe."""
    before = descriptors()
    with Running(Service()) as running:
        running.client.ping()  # from here on there is a session to patch
        if what == "its ticket":
            monkeypatch.setattr(admission, "Ticket", lacking(admission.Ticket))
        elif what == "its job":
            monkeypatch.setattr(session, "Job", lacking(session.Job))
        elif what == "its options":
            monkeypatch.setattr(job, "Options", lacking(job.Options))
        elif what == "its place in the session":
            running.session._jobs = Scarce()
        else:
            running.board._entries = Scarce()
        fd = memfd(b"x")
        running.client.transcribe(1, **({"fd": fd} if source == "fd" else {"source": "stream"}))
        os.close(fd)
        assert [message["code"] for message in running.client.until_closed()] == ["busy"]
        assert not running.admission.jobs
        assert not running.board._entries
    wait_until(lambda: descriptors() <= before, "every descriptor closed")


class Scarce(dict):
    """A table that has no memory for anything more."""

    def __setitem__(self, key, value):
        raise MemoryError


def test_progress_is_told_after_some_that_could_not_be(monkeypatch):
    """The next time, not never again for this connection."""
    monkeypatch.setattr(session, "PROGRESS_INTERVAL_S", 0.02)
    monkeypatch.setattr(transport.Stream, "offer", lacking(transport.Stream.offer))
    with Running(Service([asyncio.Event()])) as running:
        running.client.transcribe(1, memfd(b"x"))
        assert running.client.receive()["type"] == "progress"


def test_an_inbox_gives_back_its_descriptors_first(monkeypatch):
    """Both where it ends and where one comes that it cannot keep."""

    async def scene():
        inbox = Inbox(None, ServingConfig, lambda: False, owner=1)
        kept, lost = memfd(b"x"), memfd(b"y")
        inbox._keep(kept)
        monkeypatch.setattr(inbox_module, "FrameReader", lacking(None))
        with pytest.raises(MemoryError):
            inbox.close()
        inbox._fds = SimpleNamespace(append=lacking(None))
        with pytest.raises(MemoryError):
            inbox._keep(lost)
        for fd in (kept, lost):
            wait_until(lambda fd=fd: not Path(f"/proc/self/fd/{fd}").exists(), "the descriptor closed")

    asyncio.run(scene())


def test_a_path_that_cannot_be_examined_leaves_no_descriptor(tmp_path, monkeypatch):
    """Nobody was told which it is."""
    (tmp_path / "x").write_bytes(b"x")
    before = descriptors()
    monkeypatch.setattr(source.fcntl, "fcntl", lacking(None))
    with pytest.raises(MemoryError):
        source.open_path(str(tmp_path / "x"), os.geteuid())
    wait_until(lambda: descriptors() <= before, "the descriptor closed")


def test_a_job_that_the_backend_cannot_begin_leaves_no_descriptor():
    """Its source is the backend's from the call on, and the front end's only once a run holds it."""
    backend = Backend.__new__(Backend)
    backend._numbers = itertools.count(1)
    backend._frontend = SimpleNamespace(utterances=lacking(None))
    fd = memfd(b"x")
    with pytest.raises(MemoryError):
        backend.transcribe(fd, Options(), label="", owner=1)
    wait_until(lambda: not Path(f"/proc/self/fd/{fd}").exists(), "the descriptor closed")


def engine_at_ease():
    """What the batcher reports where nothing is wrong."""
    return SimpleNamespace(oldest_batch_age_s=0.0, failed_in_a_row=0, ended=False)


@contextlib.contextmanager
def serving(path, service):
    """A server on the daemon's loop, in a thread of its own, beside the heart that keeps it going."""
    running = SimpleNamespace(metrics=Metrics(), admission=Admission(ServingConfig(), lambda: None))
    ready, stop = threading.Event(), None
    manager = SimpleNamespace(watchdog=lambda: None)
    config = Config(socket=path, models_dir=path)
    heart = Heartbeat(manager, config, model="m", watchdog_s=0.15)

    async def scene():
        nonlocal stop
        running.loop, stop = asyncio.get_running_loop(), asyncio.Event()
        door = listener.bind(path, 0o600, 16)
        one = server.Server(door, service, running.admission, running.metrics)
        one.start()
        beating = asyncio.create_task(heart.run(lambda: False, engine_at_ease, pytest.fail, one.go_on))
        ready.set()
        await stop.wait()
        await one.close(stop)
        beating.cancel()
        door.close()

    def main():
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(scene())

    thread = threading.Thread(target=main)
    thread.start()
    assert ready.wait(LIMIT_S)
    try:
        yield running
    finally:
        running.loop.call_soon_threadsafe(stop.set)
        thread.join(LIMIT_S)
        assert not thread.is_alive()


@pytest.mark.parametrize("when", ["its session is made", "its session ends", "it is told of that"])
def test_around_a_connection_it_costs_that_one(tmp_path, monkeypatch, caplog, when):
    """One error or the bare end, no traceback in the log; others come in and are served, nothing stays."""
    with serving(tmp_path / "s", Service()) as running:
        if when == "its session is made":
            monkeypatch.setattr(server, "Session", lacking(Session))
        else:
            monkeypatch.setattr(Inbox, "close", lacking(Inbox.close))
        if when == "it is told of that":
            monkeypatch.setattr(server, "_turn_away", lacking(server._turn_away))
        with WireClient(tmp_path / "s", hello=False) as client:
            with contextlib.suppress(BrokenPipeError):  # where it is over sooner than that
                client.send_raw(b"\xff" * 4)
            said = [message["code"] for message in client.until_closed()]
        expected = {"its session is made": [], "its session ends": ["busy"], "it is told of that": []}
        assert said == expected[when]
        with WireClient(tmp_path / "s") as client:
            assert client.ask(1, memfd(b"x"))[-1]["type"] == "done"
            assert running.admission.connections == 1
    assert "Traceback" not in caplog.text
    assert "defect" not in caplog.text


def test_a_connection_that_cannot_be_closed_counts_no_longer(tmp_path, monkeypatch):
    """Its place is another's, whatever becomes of its descriptor."""
    with serving(tmp_path / "s", Service()) as running, WireClient(tmp_path / "s") as client:
        monkeypatch.setattr(transport.Stream, "close", lacking(transport.Stream.close, times=4))
        client.send_raw(b"\xff" * 4)
        wait_until(lambda: not running.admission.connections, "counted out")


@pytest.mark.parametrize("also", ["nothing", "logging it", "going on"])
def test_accepting_pauses_and_goes_on(tmp_path, monkeypatch, caplog, also):
    """As with a lack of descriptors: whoever knocked waits, and is let in a moment later.

    Wherever else memory lacks then, also where it is asked for to go on, it is asked for again.
    """
    with serving(tmp_path / "s", Service()) as running:
        if also == "logging it":
            monkeypatch.setattr(server.log, "makeRecord", lacking(server.log.makeRecord))
        elif also == "going on":
            running.loop.add_reader = lacking(running.loop.add_reader, times=3)
        monkeypatch.setattr(listener.socket.socket, "accept", lacking(listener.socket.socket.accept))
        with WireClient(tmp_path / "s") as client:
            assert client.ping()["type"] == "pong"
    warned = "cannot accept connections for want of resources: Cannot allocate memory" in caplog.text
    assert warned == (also != "logging it")


def test_a_stopped_server_does_not_go_on(tmp_path):
    """The heart beats on while the daemon drains."""

    async def scene():
        door = listener.bind(tmp_path / "s", 0o600, 16)
        one = server.Server(door, Service(), Admission(ServingConfig(), lambda: None), Metrics())
        one.start()
        one.stop_accepting()
        one.go_on()
        assert not asyncio.get_running_loop().remove_reader(door.socket.fileno())
        door.close()

    asyncio.run(scene())


def test_the_loop_goes_on(caplog):
    """Whether it comes up in asyncio's own lines, in a callback, or in a task that nobody awaits."""
    caplog.set_level(logging.WARNING)
    turns = []

    async def scene():
        loop = asyncio.get_running_loop()
        loop._selector.select = lacking(loop._selector.select)
        await asyncio.sleep(0.01)
        turns.append("after a lack in between")
        loop.call_soon(lacking(None))
        task = asyncio.create_task(failing())
        await asyncio.wait([task])
        del task
        await asyncio.sleep(0)
        turns.append("after lacks in a callback and a task")
        loop.call_exception_handler({"message": "another", "exception": ValueError("as ever")})

    async def failing():
        raise MemoryError

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(scene())
    assert len(turns) == 2
    lacks = [record.getMessage() for record in caplog.records if "too little memory" in record.getMessage()]
    assert lacks == ["too little memory between two of the event loop's turns"]
    assert "as ever" in caplog.text


@pytest.mark.parametrize("what", ["looking", "going on", "sleeping"])
def test_the_heart_beats_on(tmp_path, monkeypatch, what):
    """One look at the engine that fails is no silence, after which systemd would end everybody's work."""
    told, enough = [], asyncio.Event()

    class Manager:
        def watchdog(self):
            told.append("alive")
            if len(told) == beats:
                enough.set()

    beats, looks, go_on = 2, engine_at_ease, lambda: None
    if what == "looking":
        looks = lacking(looks)
    elif what == "going on":
        go_on = lacking(go_on)
    else:
        monkeypatch.setattr("sensevoiced.heartbeat.asyncio.sleep", lacking(asyncio.sleep))
    config = Config(socket=tmp_path, models_dir=tmp_path)
    heart = Heartbeat(Manager(), config, model="m", watchdog_s=0.03)

    async def scene():
        beating = asyncio.create_task(heart.run(lambda: False, looks, pytest.fail, go_on))
        async with asyncio.timeout(LIMIT_S):
            await enough.wait()
        beating.cancel()

    asyncio.run(scene())
    assert told == ["alive"] * beats


@pytest.mark.parametrize("what", ["watching it", "its settings", "its process", "its end", "telling it"])
def test_a_child_that_cannot_be_started_leaves_nothing(monkeypatch, what):
    """No process, no descriptor, nothing that the loop watches."""
    real, started = child_module.subprocess.Popen, []

    def remember(*args, **options):
        started.append(real(*args, **options))
        return started[-1]

    async def scene():
        running = asyncio.get_running_loop()
        before, watched = settled_descriptors(), len(running._selector.get_map())
        monkeypatch.setattr(child_module.subprocess, "Popen", remember)
        if what == "watching it":
            running.add_reader = failing_at(2, running.add_reader)
        elif what == "its settings":
            monkeypatch.setattr(child_module, "pack", lacking(None))
        elif what == "its process":
            monkeypatch.setattr(child_module.subprocess, "Popen", lacking(None))
        elif what == "its end":
            monkeypatch.setattr(child_module.os, "pidfd_open", lacking(None))
        else:
            monkeypatch.setattr(Child, "_tell", lacking(None))
        with pytest.raises(MemoryError):
            Child({}, on_idle=pytest.fail, on_exit=pytest.fail)
        assert descriptors() == before
        assert len(running._selector.get_map()) == watched

    asyncio.run(scene())
    assert [process.wait(LIMIT_S) for process in started] == [-signal.SIGKILL] * len(started)
    assert len(started) == (what not in {"its settings", "its process"})


def failing_at(number, real):
    """A function that fails for want of memory once, at its `number`th call."""
    called = []

    def function(*args):
        called.append(args)
        if len(called) == number:
            raise MemoryError
        return real(*args)

    return function


def test_a_child_whose_end_wakes_up_nobody_gives_its_place_back():
    """It would count as one of those there may be, for ever."""
    gone = []
    child = Child.__new__(Child)
    child._loop = SimpleNamespace(remove_reader=lambda _: None)
    child._control, theirs = socket.socketpair()
    theirs.close()
    child._pidfd = memfd(b"")
    child._process = SimpleNamespace(wait=lambda: None)
    child._on_exit = gone.append
    child.exited = SimpleNamespace(set=lacking(None))
    with pytest.raises(MemoryError):
        child._reap()
    assert gone == [child]


def test_a_child_whose_word_is_lost_is_replaced(monkeypatch):
    """It will not say again that it is free, and would count as busy for ever."""
    killed = []
    child = Child.__new__(Child)
    child._control = SimpleNamespace(recv=lambda _: b"idle")
    monkeypatch.setattr(Child, "kill", lambda child: killed.append(child))  # noqa: PLW0108 - a method needs binding
    monkeypatch.setattr("sensevoiced.frontend.child.unpack", lacking(None))
    child._read_control()
    assert killed == [child]


def never(*_):
    """Find no memory, however often."""
    raise MemoryError


def test_a_descriptor_waits_where_no_thread_can_be_had(monkeypatch):
    """Closed by the caller it could hold up everybody; it counts as being closed meanwhile."""
    fds = [os.memfd_create("x") for _ in range(3)]
    with monkeypatch.context() as context:
        context.setattr(threads, "start", never)
        for fd in fds:
            close_later(fd, 1)
        closing.go_on()
    assert all(os.fstat(fd) for fd in fds)
    assert len(closing) == len(fds)
    closing.go_on()
    wait_until(lambda: not closing, "all of them closed")
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_descriptor_is_not_lost_with_the_thread_that_was_to_close_it(monkeypatch):
    """Without memory a thread dies before its first line."""
    fd = os.memfd_create("x")
    with monkeypatch.context() as context:
        context.setattr(threads, "start", lambda *_: None)
        close_later(fd, 1)
    assert os.fstat(fd)
    closing.go_on()
    wait_until(lambda: not closing, "closed")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_thread_that_has_closed_one_closes_those_that_wait(monkeypatch):
    """Nothing else has to happen for it."""
    waits, goes = os.memfd_create("x"), os.memfd_create("x")
    with monkeypatch.context() as context:
        context.setattr(threads, "start", never)
        close_later(waits, 1)
    close_later(goes, 1)
    wait_until(lambda: not closing, "both closed")
    for fd in (waits, goes):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_descriptor_is_closed_at_once_where_it_cannot_even_wait(monkeypatch):
    """It must not be lost, and is counted out again."""
    fd = os.memfd_create("x")
    monkeypatch.setattr(threads, "start", never)
    monkeypatch.setattr(closing, "wait", never)
    close_later(fd, 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert not closing


def test_the_loop_stops_in_a_turn_that_lacks_memory():
    """Asyncio forgets that it was told to."""

    def broken():
        raise MemoryError

    def main():
        loop = Loop()
        loop.call_exception_handler = lacking(loop.call_exception_handler)
        loop.call_soon(loop.stop)
        loop.call_soon(broken)
        loop.run_forever()
        loop.close()

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert not thread.is_alive()


def test_the_loop_goes_on_where_even_its_warning_lacks_memory(monkeypatch):
    """Both are found wanting in the same moment."""
    monkeypatch.setattr(loop_module.log, "makeRecord", lacking(loop_module.log.makeRecord))

    async def scene():
        running = asyncio.get_running_loop()
        running._selector.select = lacking(running._selector.select)
        await asyncio.sleep(0.01)
        return "alive"

    with asyncio.Runner(loop_factory=Loop) as runner:
        assert runner.run(scene()) == "alive"


def test_an_answer_that_finds_no_memory_leaves_no_descriptor():
    """Nobody will take the descriptor that it was about."""
    fd = memfd(b"x")

    async def scene():
        running = asyncio.get_running_loop()
        running.call_soon_threadsafe = lacking(running.call_soon_threadsafe)
        with pytest.raises(JobError, match="did not answer"):
            await source.on_thread(lambda: source.examine(fd, 1), 0.2, lambda _: fd, owner=1)

    asyncio.run(scene())
    wait_until(lambda: not Path(f"/proc/self/fd/{fd}").exists(), "the descriptor closed")


def test_a_request_that_finds_no_memory_for_its_task_is_on_no_board():
    """`svctl ps` would show it for as long as the daemon lives."""
    with Running(Service([asyncio.Event()])) as running:
        running.client.ping()  # from here on there is a session to patch
        patched = threading.Event()

        def patch():
            group = running.session._group
            group.create_task = lacking(group.create_task)
            patched.set()

        running.call(patch)
        assert patched.wait(LIMIT_S)
        running.client.transcribe(1, memfd(b"x"))
        running.client.until_closed()
        assert not running.board._entries
