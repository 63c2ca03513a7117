"""Row F22: sources that stop delivering, and file systems that do not answer."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

import pytest
from harness.daemon import wait_until
from harness.decoding import CHILDREN, DecodingDaemon, ask, children_of, one_for_all, refusal, timed, upload
from harness.demo import sample, wav
from harness.figures import note, within
from harness.fuse import FLUSH, GETATTR, READ, UNUSABLE, USABLE, FuseFile
from harness.wire_client import texts

from sensevoiced.descriptors import MAX_CLOSING_PER_USER

DEADLINE_S, OPEN_S = 1.5, 1.0
SETTINGS = f"""
[frontend]
children = {CHILDREN}
max_children = {CHILDREN + 2}
idle_child_s = 0.1
decode_timeout_s = {DEADLINE_S}
[serving]
open_timeout_s = {OPEN_S}
"""
RECORDING = wav(sample("en"))
needs_fuse = pytest.mark.skipif(not USABLE, reason=UNUSABLE)
MP4_HEAD = b"\0\0\0\x18ftypM4A \0\0\0\0isommp42"


# With short deadlines, and a pool that may grow by two.
shared, daemon = one_for_all(SETTINGS)


@pytest.fixture
def fuse(tmp_path):
    """Make files whose file systems hold some operations back; at the end they answer everything."""
    made = []

    def make(count, *operations, **options):
        for _ in range(count):
            (tmp_path / str(len(made))).mkdir()
            made.append(FuseFile(tmp_path / str(len(made)), RECORDING, **options))
        for file in made[-count:]:
            file.hold(*operations)
        return made[-count:]

    yield make
    for file in made:
        file.release()
    for file in made:
        file.close()


@pytest.fixture
def start_decoding(tmp_path):
    """Start a daemon of the test's own."""
    started = []

    def start(**options):
        started.append(DecodingDaemon(tmp_path / f"daemon{len(started)}", **options))
        return started[-1]

    yield start
    for daemon in started:
        daemon.kill()


def pids(daemon):
    """The children, by process id."""
    return set(children_of(daemon.pid))


def busy(daemon):
    """Process ids of the children that have a job."""
    return {child["pid"] for child in daemon.children() if child["busy"]}


def within_deadline(record_property, what, took_s, deadline_s=DEADLINE_S):
    """The refusal came after the deadline and not long after it."""
    assert took_s > 0.9 * deadline_s
    within(record_property, f"{what}: told after", took_s, deadline_s + 0.1, "s")


@pytest.mark.parametrize(
    "head", [b"", RECORDING[:20_000], MP4_HEAD], ids=["nothing", "half a WAV", "the head of an MP4"]
)
def test_f22_a_stream_that_stalls(daemon, head, record_property):
    """One `timeout` after the deadline; its child is killed and replaced, and what comes late is ignored."""
    before, (crashed, timeouts) = pids(daemon), daemon.counters()
    with daemon.client() as client:
        client.transcribe(1, source="stream")
        if head:
            client.send({"type": "audio", "id": 1, "data": head})
        events, took_s = timed(client.events, 1)
        assert events[-1]["code"] == "timeout"
        assert events[-1]["retryable"]
        client.send({"type": "audio", "id": 1, "data": RECORDING[20_000:30_000]})
        client.send({"type": "end", "id": 1})
        assert ask(client, 2, RECORDING)[-1]["type"] == "done"
        client.ping()
        assert client.kept == []
    within_deadline(record_property, "a stalled stream", took_s)
    assert daemon.counters() == (crashed, timeouts + 1)
    wait_until(lambda: len(before & pids(daemon)) == CHILDREN - 1, "the child is ended")


@needs_fuse
@pytest.mark.parametrize("held_from", [0, len(RECORDING) // 2], ids=["at once", "half-way"])
def test_f22_a_file_system_that_stops_answering_reads(daemon, fuse, held_from, record_property):
    """The child is killed and replaced while the file system still hangs; others are served meanwhile."""
    before, (crashed, timeouts) = pids(daemon), daemon.counters()
    (file,) = fuse(1, READ, held_from=held_from)
    with daemon.client() as client, daemon.client() as other:
        began_s = time.perf_counter()
        client.transcribe(1, file.fd)
        assert ask(other, 1, RECORDING)[-1]["type"] == "done"
        assert client.events(1)[-1]["code"] == "timeout"
        took_s = time.perf_counter() - began_s
    assert daemon.counters() == (crashed, timeouts + 1)
    wait_until(lambda: len(before & pids(daemon)) == CHILDREN - 1, "the child is ended")
    wait_until(lambda: len(daemon.children()) == CHILDREN and not busy(daemon), "the pool is whole")
    assert file.held
    within_deadline(record_property, "a file system that hangs", took_s)


@needs_fuse
@pytest.mark.parametrize("how", ["waits", "hangs up"])
def test_f22_reads_that_not_even_a_signal_ends(daemon, fuse, how, record_property):
    """As many children hang for good as are kept warm, and the next request is served by others.

    Whether the clients wait for their `timeout` or hang up. Once the file system answers, the killed children
    end and the pool has its size again.
    """
    files = fuse(CHILDREN, READ, killable=False)
    with daemon.client() as client:
        for n, file in enumerate(files):
            client.transcribe(n, file.fd)
        wait_until(lambda: all(file.held for file in files), "both children hang")
        stuck = busy(daemon)
        if how == "waits":
            assert [refusal(client.events(n)) for n in range(CHILDREN)] == ["timeout"] * CHILDREN
    with daemon.client() as other:
        events, took_s = timed(ask, other, 1, RECORDING)
        assert events[-1]["type"] == "done"
    assert len(stuck) == CHILDREN
    assert stuck <= pids(daemon)
    for file in files:
        file.release()
    wait_until(lambda: not stuck & pids(daemon), "the killed children end")
    note(record_property, f"{CHILDREN} children that cannot be killed: the next client waited {took_s:.2f} s")


@needs_fuse
def test_f22_a_file_system_that_does_not_answer_a_close(daemon, fuse, record_property):
    """The answer comes at once, and the next ones too, though children and threads hang in closing."""
    files = fuse(CHILDREN, FLUSH)
    with daemon.client() as client:
        heard = texts(ask(client, 100, RECORDING))
        took = []
        for n, file in enumerate(files):
            events, took_s = timed(client.ask, n, file.fd)
            assert texts(events) == heard != []
            took.append(took_s)
        wait_until(lambda: all(file.held >= 2 for file in files), "daemon and child both hang")
        events, took_s = timed(ask, client, 200, RECORDING)
        assert texts(events) == heard
    note(
        record_property,
        f"closes that hang: answered in {max(took):.2f} s; {CHILDREN} children lost, next in {took_s:.2f} s",
    )


@needs_fuse
def test_f22_closes_that_hang_are_bounded(daemon, fuse, record_property):
    """A refused request has brought a descriptor too; with so many that do not go, a user gets no more in."""
    (file,) = fuse(1, FLUSH)
    threads = daemon.threads()
    with daemon.client() as client:
        with contextlib.suppress(ConnectionError):
            for n in range(2 * MAX_CLOSING_PER_USER):
                client.transcribe(n, file.fd, language="klingon")
        codes = [message["code"] for message in client.until_closed()]
    assert codes == ["invalid_request"] * MAX_CLOSING_PER_USER + ["busy"]
    files = {"hanging": 0, "closing": MAX_CLOSING_PER_USER}
    daemon.wait_status(lambda status: status["files"] == files, "the connection, too, is closed")
    assert daemon.threads() <= threads + MAX_CLOSING_PER_USER
    with daemon.client() as client:
        assert upload(client, 1, [RECORDING])[-1]["type"] == "done", "who sends no descriptor is served"
    file.release()
    daemon.wait_status(lambda status: status["files"]["closing"] == 0, "all are closed")
    note(record_property, f"{MAX_CLOSING_PER_USER} closes hang at most, then `busy`")


@needs_fuse
@pytest.mark.parametrize("goes", [False, True], ids=["and answers later", "and goes away"])
def test_f22_a_file_system_that_does_not_even_say_what_it_holds(daemon, fuse, goes, record_property):
    """`timeout` after open_timeout_s, before a child is asked; the connection serves others meanwhile."""
    before, counters = pids(daemon), daemon.counters()
    (file,) = fuse(1, GETATTR)
    with daemon.client() as client:
        began_s = time.perf_counter()
        client.transcribe(1, file.fd)
        assert ask(client, 2, RECORDING)[-1]["type"] == "done"
        assert refusal(client.events(1)) == "timeout"
        took_s = time.perf_counter() - began_s
    within_deadline(record_property, "an fstat that hangs", took_s, OPEN_S)
    assert file.held
    assert (pids(daemon), daemon.counters()) == (before, counters)
    if goes:
        file.vanish()


@needs_fuse
def test_f22_a_child_is_started_while_a_file_that_does_not_close_waits(daemon, fuse, record_property):
    """The event loop answers all the while, and the children there are go on serving.

    Not promised: a process that is started meanwhile has inherited the waiting file's descriptor and closes
    it in exec, so that it is there only once the file system answers.
    """
    held = fuse(CHILDREN, READ)
    (file,) = fuse(1, FLUSH)
    with daemon.client() as client, daemon.client() as other:
        for n, source in enumerate(held):
            client.transcribe(n, source.fd)
        wait_until(lambda: all(source.held for source in held), "all children wait")
        client.transcribe(50, file.fd)
        wait_until(lambda: len(daemon.children()) > CHILDREN, "another is started")
        _, took_s = timed(other.ping)
        for source in held:
            source.release()
        assert [client.events(n)[-1]["type"] for n in range(CHILDREN)] == ["done"] * CHILDREN
        assert client.events(50)[-1]["type"] == "done"
        assert ask(other, 1, RECORDING)[-1]["type"] == "done"
    within(record_property, "ping while a start waits for a file's close", took_s * 1000, 50, "ms")


@needs_fuse
def test_f22_stopping_does_not_wait_for_a_file_system(start_decoding, fuse, record_property):
    """The daemon ends with 0, though one of its children cannot be ended before the file system answers."""
    daemon = start_decoding(settings=SETTINGS)
    (file,) = fuse(1, READ, killable=False)
    with daemon.client() as client:
        client.transcribe(1, file.fd)
        wait_until(lambda: file.held, "a child hangs")
        (stuck,) = busy(daemon)
        daemon.signal(signal.SIGTERM)
        status, took_s = timed(daemon.wait_end, 60)
        assert client.until_closed()[-1]["code"] == "timeout"
    assert status == 0
    assert "Traceback" not in daemon.text()
    file.release()
    wait_until(lambda: not Path(f"/proc/{stuck}").exists(), "the child ends")
    within(record_property, "stopped beside a child that cannot be killed", took_s, DEADLINE_S + 3.5, "s")


def test_f22_an_unfinished_upload_leaves_nothing(daemon):
    """Hanging up in the middle of a stalled upload frees the child long before its deadline."""
    with daemon.client() as client:
        client.transcribe(1, source="stream")
        client.send({"type": "audio", "id": 1, "data": RECORDING[:20_000]})
        wait_until(lambda: busy(daemon), "a child has it")
    _, took_s = timed(wait_until, lambda: not busy(daemon), "the child is free")
    assert took_s < DEADLINE_S
