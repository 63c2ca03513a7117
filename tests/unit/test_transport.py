"""The non-blocking stream under a connection, on a pair of sockets."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import socket
from pathlib import Path

import pytest

from sensevoiced.serving import transport
from sensevoiced.serving.transport import ConnectionLost, Stream
from svctl.wire import ProtocolError, WireError

BIG = bytes(512 * 1024)


def on_a_pair(scenario, *, max_write_buffer_bytes=2**20, write_timeout_s=5.0):
    """Run `scenario(stream, peer)`, with the peer's end as a plain non-blocking socket."""

    async def run():
        ours, peer = socket.socketpair()
        peer.setblocking(False)
        limits = {"max_write_buffer_bytes": max_write_buffer_bytes, "write_timeout_s": write_timeout_s}
        stream = Stream(ours, owner=os.getuid(), **limits)
        try:
            async with asyncio.timeout(10.0):
                await scenario(stream, peer)
        finally:
            stream.close()
            peer.close()

    asyncio.run(run())


def send_fds(peer, data, *fds):
    """Send bytes with descriptors on the first of them."""
    peer.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def held(source):
    """How many descriptors this process holds of the file behind `source`."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        # One of another thread may be gone by now.
        with contextlib.suppress(OSError):
            found += os.path.samestat(entry.stat(), os.fstat(source))
    return found


def test_a_descriptor_arrives_with_its_bytes_and_stays_out_of_children():
    """One descriptor comes with the data it was sent with, close-on-exec from the start."""

    async def scenario(stream, peer):
        peer.send(b"before")
        source = os.memfd_create("x")
        send_fds(peer, b"with", source)
        data, fd = await stream.receive()
        if fd is None:  # the kernel may or may not join the two
            assert data == b"before"
            data, fd = await stream.receive()
        assert data.endswith(b"with")
        assert os.fstat(fd).st_ino == os.fstat(source).st_ino
        assert not os.get_inheritable(fd)
        os.close(fd)
        os.close(source)

    on_a_pair(scenario)


@pytest.mark.parametrize("count", [2, 3, 253])
def test_f19_more_than_one_descriptor_is_a_protocol_error_and_none_stays(count):
    """The kernel's own limit is 253; all of them are closed again."""

    async def scenario(stream, peer):
        source = os.memfd_create("x")
        send_fds(peer, b"x", *[source] * count)
        with pytest.raises(ProtocolError, match="More than one"):
            await stream.receive()
        while held(source) > 1:  # noqa: ASYNC110 - threads close them
            await asyncio.sleep(0.001)
        os.close(source)

    on_a_pair(scenario)


def test_f19_a_descriptor_on_an_urgent_byte_is_received_like_any():
    """Passed over, it would be closed by whoever receives next."""

    async def scenario(stream, peer):
        source = os.memfd_create("x")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [source]))]
        try:
            peer.sendmsg([b"x"], rights, socket.MSG_OOB)
        except OSError:
            pytest.skip("this kernel has no urgent bytes on Unix sockets")
        data, fd = await stream.receive()
        assert data == b"x"
        assert os.fstat(fd).st_ino == os.fstat(source).st_ino
        os.close(fd)
        os.close(source)

    on_a_pair(scenario)


def test_f18_where_none_is_taken_a_descriptor_is_left_unread():
    """Bytes are received as ever; a descriptor is `busy`, and goes with the connection."""

    async def scenario(stream, peer):
        stream._takes_descriptors = lambda: False
        peer.send(b"bytes")
        assert await stream.receive() == (b"bytes", None)
        ours, theirs = os.pipe()
        send_fds(peer, b"x", theirs)
        os.close(theirs)
        with pytest.raises(WireError, match="do not answer"):
            await stream.receive()
        os.set_blocking(ours, False)
        with pytest.raises(BlockingIOError):
            os.read(ours, 1)
        stream.close()
        os.set_blocking(ours, True)
        assert os.read(ours, 1) == b""
        os.close(ours)

    on_a_pair(scenario)


def test_closing_with_unread_input_keeps_what_was_sent():
    """The peer reads its answer, and then that the connection is over."""

    async def scenario(stream, peer):
        peer.send(b"unread")
        await stream.send(b"answer")
        stream.close()
        assert peer.recv(100) == b"answer"
        # Once the socket is closed too, the kernel tells that not all was read.
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.get_running_loop().sock_recv(peer, 100) == b""

    on_a_pair(scenario)


def test_the_end_of_the_stream_is_empty():
    """The peer's close reads as no bytes."""

    async def scenario(stream, peer):
        peer.close()
        assert await stream.receive() == (b"", None)

    on_a_pair(scenario)


def test_cancelling_a_wait_loses_nothing():
    """What arrives after a cancelled receive is there for the next one."""

    async def scenario(stream, peer):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await stream.receive()
        peer.send(b"late")
        assert await stream.receive() == (b"late", None)

    on_a_pair(scenario)


def test_f14_a_full_buffer_holds_the_sender_until_the_peer_reads():
    """Nothing is lost or reordered, and never more than the limit waits."""

    async def scenario(stream, peer):
        loop = asyncio.get_running_loop()
        frames = [bytes([n]) * len(BIG) for n in range(8)]

        async def send():
            for frame in frames:
                await stream.send(frame)
                assert len(stream._out) <= 2**20

        sending = asyncio.create_task(send())
        received = b""
        while len(received) < len(BIG) * len(frames):
            received += await loop.sock_recv(peer, 2**20)
        await sending
        assert received == b"".join(frames)

    on_a_pair(scenario)


def test_f14_a_peer_that_does_not_read_is_given_up():
    """After the write timeout the sender is told, and a reader sees the end."""

    async def scenario(stream, peer):
        with pytest.raises(ConnectionLost):  # noqa: PT012 - how many fit is the kernel's business
            while True:
                await stream.send(BIG)
        assert await stream.receive() == (b"", None)
        with pytest.raises(ConnectionLost):
            await stream.send(b"more")

    on_a_pair(scenario, write_timeout_s=0.05)


def test_an_offer_never_takes_the_last_half_of_the_buffer():
    """What may be dropped leaves room for what may not."""

    async def scenario(stream, peer):
        while not stream._out:
            stream.offer(BIG)
        for _ in range(10):
            stream.offer(BIG)
        assert len(stream._out) <= 2**19

    on_a_pair(scenario)


def test_what_could_not_be_watched_for_want_of_memory_goes_with_the_next_frame():
    """The peer gets all of it in its order: bytes that wait are no sign that somebody sees to them."""

    async def scenario(stream, peer):
        loop = asyncio.get_running_loop()
        real, lacked = loop.add_writer, []

        def add_writer(*args):
            if len(lacked) < 2:
                lacked.append(args)
                raise MemoryError
            real(*args)

        loop.add_writer = add_writer
        for _ in range(2):
            with pytest.raises(MemoryError):
                await stream.send(BIG[:-100])
        await stream.send(b"last")
        received = b""
        while not received.endswith(b"last"):
            received += await loop.sock_recv(peer, 2**20)
        assert len(received) == 2 * (len(BIG) - 100) + len(b"last")

    on_a_pair(scenario)


def test_bytes_that_stay_in_the_buffer_after_they_went_never_go_twice():
    """Where there is no memory to take them off, the connection ends."""

    class Scarce(bytearray):
        def __delitem__(self, _):
            raise MemoryError

    async def scenario(stream, peer):
        stream._out = Scarce()
        with pytest.raises(ConnectionLost):
            await stream.send(b"once")
        assert (peer.recv(100), peer.recv(100)) == (b"once", b"")

    on_a_pair(scenario)


def test_a_peer_that_died_shows_when_sending():
    """A send into nothing raises, at once or at the next frame."""

    async def scenario(stream, peer):
        peer.close()
        with pytest.raises(ConnectionLost):
            await stream.send(b"x")

    on_a_pair(scenario)


def test_f15_a_hang_up_is_told_from_a_half_close():
    """Only a peer that closed both directions has hung up."""

    async def scenario(stream, peer):
        peer.shutdown(socket.SHUT_WR)
        assert await stream.receive() == (b"", None)
        waiting = asyncio.create_task(stream.hung_up())
        done, _ = await asyncio.wait({waiting}, timeout=0.05)
        assert not done
        await stream.send(b"still heard")
        assert peer.recv(100) == b"still heard"
        peer.close()
        await waiting

    on_a_pair(scenario)


def test_f11_without_descriptors_a_hang_up_is_polled_for(monkeypatch):
    """That we have no epoll left says nothing of the peer: it is gone when it is gone."""

    def none_left():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def scenario(stream, peer):
        monkeypatch.setattr(transport.select, "epoll", none_left)
        monkeypatch.setattr(transport, "HANG_UP_POLL_S", 0.01)
        waiting = asyncio.create_task(stream.hung_up())
        peer.shutdown(socket.SHUT_WR)
        done, _ = await asyncio.wait({waiting}, timeout=0.05)
        assert not done
        peer.close()
        await waiting

    on_a_pair(scenario)


def test_a_hang_up_shows_while_bytes_wait_unread():
    """A client that dies during an upload is noticed although nothing is read."""

    async def scenario(stream, peer):
        peer.send(b"unread")
        peer.close()
        await stream.hung_up()
        assert await stream.receive() == (b"unread", None)

    on_a_pair(scenario)


def test_finish_delivers_what_is_queued():
    """The peer gets all of it before the end."""

    async def scenario(stream, peer):
        loop = asyncio.get_running_loop()
        await stream.send(BIG)
        finishing = asyncio.create_task(stream.finish(5.0))
        received = b""
        while data := await loop.sock_recv(peer, 2**20):
            received += data
        assert received == BIG
        await finishing

    on_a_pair(scenario)


def test_stop_reading_ends_the_peers_part_and_not_ours():
    """What has arrived is still read, then the end; an answer still goes out."""

    async def scenario(stream, peer):
        peer.send(b"arrived")
        stream.stop_reading()
        assert await stream.receive() == (b"arrived", None)
        assert await stream.receive() == (b"", None)
        await stream.send(b"answer")
        assert peer.recv(100) == b"answer"

    on_a_pair(scenario)
