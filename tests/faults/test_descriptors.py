"""Rows F18 and F19: descriptors that are no recording, or are not wanted."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import pty
import select
import signal
import socket
import struct
import time
from pathlib import Path

import pytest
from harness.daemon import wait_until
from harness.decoding import ask, one_for_all, timed
from harness.demo import sample, wav
from harness.figures import note, within
from harness.fuse import FLUSH, UNUSABLE, USABLE, FuseFile
from harness.wire_client import Closed, memfd, texts

from svctl.framing import encode

TRANSCRIBE = {"type": "transcribe", "id": 1, "source": "fd"}
LINGER_S = 8
OTHERS_S = 1.0
"""What any other client waits for an answer at most, whatever hangs."""
RECORDING = wav(sample("angry"))


shared, daemon = one_for_all()


@pytest.fixture
def client(daemon):
    """A connection to it."""
    with daemon.client() as connection:
        yield connection


def fifo(folder):
    """A FIFO that is open on both sides."""
    os.mkfifo(folder / "fifo")
    return os.open(folder / "fifo", os.O_RDWR)


def epoll(_folder):
    """A descriptor of an epoll."""
    with select.epoll() as watch:
        return os.dup(watch.fileno())


def terminal(_folder):
    """The slave of a terminal; its master stays open."""
    return pty.openpty()[1]


def file(folder, flags, content=RECORDING):
    """A recording, or other content, in a file that is opened with `flags`."""
    (folder / "file").write_bytes(content)
    return os.open(folder / "file", flags)


WRONG = {
    "a FIFO": fifo,
    "a folder": lambda folder: os.open(folder, os.O_RDONLY),
    "/dev/zero": lambda folder: os.open("/dev/zero", os.O_RDONLY),
    "a terminal": terminal,
    "a pipe": lambda folder: os.pipe()[0],
    "a socket": lambda folder: socket.socket(socket.AF_UNIX).detach(),
    "an epoll": epoll,
    "an eventfd": lambda folder: os.eventfd(1),
    "a pidfd": lambda folder: os.pidfd_open(os.getpid()),
    "an O_PATH descriptor": lambda folder: file(folder, os.O_PATH),
    "a file open for writing only": lambda folder: file(folder, os.O_WRONLY),
    "an empty memfd": lambda folder: memfd(b""),
    "an empty file": lambda folder: file(folder, os.O_RDONLY, b""),
    "a file of /proc": lambda folder: os.open("/proc/self/status", os.O_RDONLY),
}


@pytest.mark.parametrize("kind", WRONG)
def test_f18_what_is_no_readable_regular_file_is_refused(client, tmp_path, kind, record_property):
    """`bad_input` at once, and the connection lives."""
    fd = WRONG[kind](tmp_path)
    client.ping()
    (error,), took_s = timed(client.ask, 1, fd)
    os.close(fd)
    assert error["code"] == "bad_input"
    assert client.ping()["type"] == "pong"
    within(record_property, f"{kind} refused", took_s * 1000, 100, "ms")


@pytest.fixture
def lingering():
    """A socket whose last close takes as long as its peer, which never reads, and at most LINGER_S."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connection = socket.create_connection(server.getsockname())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER_S))
        connection.setblocking(False)
        while True:
            try:
                connection.send(bytes(65536))
            except BlockingIOError:
                break
        yield connection


def test_f18_a_socket_that_lingers_on_close_holds_nobody_up(daemon, lingering):
    """Closing it may take as long as its sender likes, so it is not closed on the event loop."""
    with daemon.client(timeout_s=4.0) as client:
        client.transcribe(1, lingering.fileno())
        lingering.close()
        assert client.events(1)[-1]["code"] == "bad_input"
        assert client.ping()["type"] == "pong"


def test_f18_nobody_lingers_for_longer_than_we_like(daemon, lingering, record_property):
    """The wait of a last close is interrupted, so that such sockets hold a thread for a second or two."""
    lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 300))
    with daemon.client() as client:
        client.transcribe(1, lingering.fileno())
        lingering.close()
        assert client.events(1)[-1]["code"] == "bad_input"
        began_s = time.monotonic()
        daemon.wait_status(lambda status: status["files"]["closing"] == 1, "it hangs")
        daemon.wait_status(lambda status: status["files"]["closing"] == 0, "it is let go")
    within(record_property, "a close of 300 s ended after", time.monotonic() - began_s, 3, "s")


@contextlib.contextmanager
def stopped(daemon):
    """What is sent meanwhile has all arrived, and its sender let go of it, when the daemon looks."""
    daemon.signal(signal.SIGSTOP)
    try:
        wait_until(lambda: state(daemon.pid) == "T", "the daemon stands")
        yield
    finally:
        daemon.signal(signal.SIGCONT)


def state(pid):
    """Of a process, as a letter (proc_pid_stat(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def others_are_served(daemon, other):
    """Answers come within OTHERS_S, from now until a close is seen to hang, and a little after."""
    deadline_s = time.monotonic() + LINGER_S / 2
    hangs = False
    while not hangs:
        assert time.monotonic() < deadline_s, "no close hangs: this test shows nothing"
        hangs = other.status()["files"]["closing"] > 0
    for _ in range(20):
        began_s = time.monotonic()
        other.ping()
        assert time.monotonic() - began_s < OTHERS_S


def test_f19_a_surplus_descriptor_that_lingers_holds_nobody_up(daemon, lingering):
    """What is too many is closed by us, on a thread, and not dropped by the kernel on the event loop."""
    fd = memfd(b"")
    with daemon.client(timeout_s=OTHERS_S) as other, daemon.client() as client:
        other.ping()
        with stopped(daemon):
            client.send(TRANSCRIBE, fd, lingering.fileno())
            lingering.close()
        others_are_served(daemon, other)
        assert client.until_closed()[-1]["code"] == "protocol"
    os.close(fd)


def test_f19_a_descriptor_that_lingers_and_is_never_received_holds_nobody_up(daemon, lingering):
    """Closing a connection closes what waits in it."""
    with daemon.client(timeout_s=OTHERS_S) as other, daemon.client() as client:
        other.ping()
        with stopped(daemon):
            client.send({"type": "sing", "id": 1}, refused := memfd(b""))
            client.send(TRANSCRIBE, lingering.fileno())
            lingering.close()
        others_are_served(daemon, other)
        assert client.until_closed()[-1]["code"] == "protocol"
    os.close(refused)


def test_f19_a_connection_too_many_with_a_descriptor_that_lingers_holds_nobody_up(start, lingering):
    """It is turned away unread, with what it brought."""
    daemon = start(settings="[serving]\nmax_connections = 1\n")
    with daemon.client(timeout_s=OTHERS_S) as other:
        other.ping()
        with stopped(daemon):
            late = daemon.client(hello=False)
            late.send_raw(b"x", lingering.fileno())
            lingering.close()
        others_are_served(daemon, other)
        assert late.until_closed()[-1]["code"] == "too_many_connections"
        late.close()


@pytest.mark.skipif(not USABLE, reason=UNUSABLE)
def test_f19_descriptors_too_many_of_a_file_system_that_does_not_answer(daemon, tmp_path):
    """Each close of one asks the file system, also where another is still open."""
    folder = tmp_path / "mount"
    folder.mkdir()
    with FuseFile(folder, b"x") as file:
        file.hold(FLUSH)
        with daemon.client(timeout_s=OTHERS_S) as other, daemon.client() as client:
            client.send(TRANSCRIBE, file.fd, file.fd)
            others_are_served(daemon, other)
            assert client.until_closed()[-1]["code"] == "protocol"
        file.release()
        daemon.wait_status(lambda status: status["files"]["closing"] == 0, "all are closed")


@pytest.mark.parametrize("kind", ["memfd", "sealed memfd", "file", "unlinked file"])
def test_f18_regular_files_and_memfds_are_read(client, tmp_path, kind):
    """Whatever the offset of the descriptor, and without moving it."""
    fd = memfd(RECORDING) if "memfd" in kind else file(tmp_path, os.O_RDONLY)
    if kind == "sealed memfd":
        fd = sealed(fd)
    if kind == "unlinked file":
        (tmp_path / "file").unlink()
    os.lseek(fd, 3, os.SEEK_SET)
    assert texts(client.ask(1, fd)) == texts(ask(client, 2, RECORDING)) != []
    assert os.lseek(fd, 0, os.SEEK_CUR) == 3
    os.close(fd)


def sealed(fd):
    """The same content in a memfd that nobody can change any more."""
    other = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.write(other, os.pread(fd, os.fstat(fd).st_size, 0))
    fcntl.fcntl(other, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    os.close(fd)
    return other


@pytest.mark.parametrize("count", [2, 253])
def test_f19_many_descriptors_with_one_frame(daemon, count, record_property):
    """More than one is a protocol error, and all of them are closed (253 are as many as the kernel carries).

    The daemon has room for them all: what the kernel drops, it drops on the event loop.
    """
    fd, before = memfd(b""), daemon.descriptors()
    with daemon.client() as client:
        client.send(TRANSCRIBE, *[fd] * count)
        (error,) = client.until_closed()
        assert (error["code"], error["id"]) == ("protocol", None)
    os.close(fd)
    note(record_property, f"{count} in one frame: {before} descriptors before, {daemon.descriptors()} after")


@pytest.mark.parametrize(
    "message",
    [
        {"type": "ping", "id": 1},
        {"type": "transcribe", "id": 1, "source": "stream"},
        {"type": "sing", "id": 1},
    ],
)
def test_f19_a_descriptor_that_no_message_takes(daemon, message):
    """It is closed, and so is the connection."""
    fd = memfd(b"")
    with daemon.client() as client:
        client.send(message, fd)
        assert client.until_closed()[-1]["code"] == "protocol"
    os.close(fd)


def test_f19_a_descriptor_before_hello(daemon):
    """A hello takes none."""
    fd = memfd(b"")
    with daemon.client(hello=False) as client:
        client.send({"type": "hello", "major": 1, "minor": 0}, fd)
        assert client.until_closed()[-1]["code"] == "protocol"
    os.close(fd)


def test_f19_descriptors_on_every_byte_of_a_frame(daemon):
    """A second one before the first has found its request is a protocol error."""
    fd = memfd(b"")
    with daemon.client() as client:
        try:
            for byte in encode(TRANSCRIBE):
                client.send_raw(bytes([byte]), fd)
        except ConnectionError:
            pass
        try:
            while (message := client.receive())["type"] != "error":
                pass
        except Closed:
            pytest.fail("closed without a word")
        assert message["code"] == "protocol"
    os.close(fd)


def test_f19_a_refused_request_takes_its_descriptor_with_it(client):
    """The connection lives, and the next request gets its own."""
    fd = memfd(RECORDING)
    assert client.ask(1, fd, language="zn")[-1]["code"] == "invalid_request"
    assert client.ask(2, fd)[-1]["type"] == "done"
    os.close(fd)


def test_f19_a_client_that_dies_with_a_descriptor_on_the_way(daemon):
    """Half a request with a descriptor, then nobody: the canary counts descriptors."""
    fd = memfd(b"")
    with daemon.client() as client:
        client.send_raw(encode(TRANSCRIBE)[:3], fd)
    with daemon.client(hello=False) as client:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        client.socket.sendmsg([b"\0"], rights)
    os.close(fd)
