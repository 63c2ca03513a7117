"""Section C of the abuse table: descriptors and paths that are not what they should be."""

from __future__ import annotations

import array
import ctypes
import os
import pty
import select
import socket
import struct
import tempfile
from pathlib import Path

import pytest
from harness.daemon import Canary, script
from harness.wire_client import Closed, WireClient, memfd, texts

from svctl.wire import encode

TRANSCRIBE = {"type": "transcribe", "id": 1, "source": "fd"}


def fifo(folder):
    """A FIFO that is open on both sides."""
    os.mkfifo(folder / "fifo")
    return os.open(folder / "fifo", os.O_RDWR)


def epoll(folder):
    """A descriptor of an epoll."""
    with select.epoll() as watch:
        return os.dup(watch.fileno())


def file(folder, flags):
    """A script in a file, opened with `flags`."""
    (folder / "file").write_bytes(script("x"))
    return os.open(folder / "file", flags)


WRONG = {
    "a FIFO": fifo,
    "a folder": lambda folder: os.open(folder, os.O_RDONLY),
    "/dev/zero": lambda folder: os.open("/dev/zero", os.O_RDONLY),
    "a terminal": lambda folder: pty.openpty()[1],
    "a pipe": lambda folder: os.pipe()[0],
    "a socket": lambda folder: socket.socket(socket.AF_UNIX).detach(),
    "an epoll": epoll,
    "an O_PATH descriptor": lambda folder: file(folder, os.O_PATH),
    "a file open for writing only": lambda folder: file(folder, os.O_WRONLY),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG.keys())
def test_f18_what_is_no_readable_regular_file_is_refused(daemon, tmp_path, make):
    """`bad_input` at once, without reading a byte, and the connection lives."""
    fd = make(tmp_path)
    with daemon.client() as client:
        (error,) = client.ask(1, fd)
        assert error["code"] == "bad_input"
        assert client.ping()["type"] == "pong"
    os.close(fd)


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


@pytest.mark.parametrize("kind", ["memfd", "file", "unlinked file"])
def test_f18_regular_files_and_memfds_are_read(daemon, tmp_path, kind):
    """Whatever the offset of the descriptor, and without moving it."""
    fd = memfd(script("heard")) if kind == "memfd" else file(tmp_path, os.O_RDONLY)
    if kind == "unlinked file":
        (tmp_path / "file").unlink()
    os.lseek(fd, 3, os.SEEK_SET)
    with daemon.client() as client:
        assert texts(client.ask(1, fd)) == ["heard" if kind == "memfd" else "x"]
    assert os.lseek(fd, 0, os.SEEK_CUR) == 3
    os.close(fd)


def test_f18_an_empty_file_is_an_error_of_its_own(daemon):
    """There is nothing to decode in it."""
    with daemon.client() as client:
        fd = memfd(b"")
        assert client.ask(1, fd)[-1]["code"] == "bad_input"
        os.close(fd)


@pytest.mark.parametrize("count", [2, 253])
def test_f19_many_descriptors_with_one_frame(daemon, count):
    """More than one is a protocol error, and all of them are closed."""
    fd = memfd(b"")
    with daemon.client() as client:
        client.send(TRANSCRIBE, *[fd] * count)
        (error,) = client.until_closed()
        assert (error["code"], error["id"]) == ("protocol", None)
    os.close(fd)


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


def test_f19_a_refused_request_takes_its_descriptor_with_it(daemon):
    """The connection lives, and the next request gets its own."""
    fd = memfd(script("mine"))
    with daemon.client() as client:
        assert client.ask(1, fd, language="zn")[-1]["code"] == "invalid_request"
        assert texts(client.ask(2, fd)) == ["mine"]
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


class Opened:
    """Tells whether anybody opened a file (inotify(7))."""

    IN_OPEN = 0x20

    def __init__(self, path):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._libc.inotify_add_watch(self._fd, os.fsencode(path), self.IN_OPEN) >= 0

    def __call__(self):
        try:
            return bool(os.read(self._fd, 4096))
        except BlockingIOError:
            return False


@pytest.fixture
def open_folder():
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_f20_a_path_is_opened_for_the_daemons_own_user(daemon, open_folder):
    """With all that a path may hold: links, `..`, a label beside it."""
    (open_folder / "a.wav").write_bytes(script("by name"))
    (open_folder / "link").symlink_to("a.wav")
    with daemon.client() as client:
        for n, name in enumerate(("a.wav", "link", f"../{open_folder.name}/a.wav")):
            assert texts(client.ask(n, source="path", path=f"{open_folder}/{name}")) == ["by name"]
        os.mkfifo(open_folder / "fifo")
        for n, name in enumerate(("fifo", "."), start=10):
            assert client.ask(n, source="path", path=f"{open_folder}/{name}")[-1]["code"] == "bad_input"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_f20_nothing_is_opened_for_another_user(start, open_folder):
    """`forbidden` for every path, the file untouched; a descriptor of their own is served.

    Reload is not theirs.
    """
    daemon = start(folder=open_folder, settings='socket_mode = "0666"')
    daemon.socket.parent.chmod(0o755)
    canary = Canary(daemon)
    secret = open_folder / "secret.wav"
    secret.write_bytes(script("secret"))
    secret.chmod(0o600)
    (open_folder / "link").symlink_to(secret)
    opened = Opened(secret)
    os.seteuid(65534)
    try:
        client = WireClient(daemon.socket)
    finally:
        os.seteuid(0)
    with client:
        for n, name in enumerate(("secret.wav", "link", f"../{open_folder.name}/secret.wav")):
            (error,) = client.ask(n, source="path", path=f"{open_folder}/{name}")
            assert error["code"] == "forbidden"
        client.send({"type": "reload", "id": 50})
        assert client.receive()["code"] == "forbidden"
        assert texts(client.ask(60, memfd(script("own")))) == ["own"]
    assert not opened()
    with daemon.client() as own:
        assert texts(own.ask(1, source="path", path=str(secret))) == ["secret"]
    assert opened(), "the watch itself works"
    canary.check()
