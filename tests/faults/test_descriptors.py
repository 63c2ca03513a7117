"""Rows F18 and F19: descriptors that are no recording, or are not wanted."""

from __future__ import annotations

import array
import fcntl
import os
import pty
import select
import socket
import struct

import pytest
from harness.decoding import ask, one_for_all, timed
from harness.demo import sample, wav
from harness.figures import note, within
from harness.wire_client import Closed, memfd, texts

from svctl.framing import encode

TRANSCRIBE = {"type": "transcribe", "id": 1, "source": "fd"}
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


def test_f18_a_socket_that_lingers_on_close_holds_nobody_up(daemon):
    """Closing it may take as long as its sender likes, so it is not closed on the event loop."""
    server = socket.create_server(("127.0.0.1", 0))
    lingering = socket.create_connection(server.getsockname())
    lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 6))
    lingering.setblocking(False)
    while True:
        try:
            lingering.send(bytes(65536))
        except BlockingIOError:
            break
    with daemon.client(timeout_s=4.0) as client:
        client.transcribe(1, lingering.fileno())
        lingering.close()
        assert client.events(1)[-1]["code"] == "bad_input"
        assert client.ping()["type"] == "pong"
    server.close()


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

    The daemon gives room for one, so this is MSG_CTRUNC as well.
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
