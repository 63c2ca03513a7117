"""svctl.AsyncClient against a scripted daemon: many requests at once, cancellation, streams, endings."""

from __future__ import annotations

import asyncio
import os
import pty
import threading

import pytest
from harness.fake_server import FakeServer, endless

from svctl import AsyncClient, Error


def test_many_requests_run_at_once_on_asyncio(path, recording, tmp_path):
    """Answers find their request, whatever order they come in, streams among them."""

    async def main():
        async with AsyncClient(path) as client:
            await client.ping()
            assert (await client.status())["model"] == "fake"
            names = [tmp_path / f"{number}.wav" for number in range(20)]
            for name in names:
                name.write_text(f"text {name.stem}")
            reader, writer = os.pipe()
            with os.fdopen(reader, "rb") as file, os.fdopen(writer, "wb") as other:
                other.write(b"piped")
                other.close()
                found = await asyncio.gather(*map(client.transcribe, [*names, file]))
            assert [one.text for one in found] == [*(f"text {number}" for number in range(20)), "piped"]
            assert [one.text async for one in client.segments(recording)] == ["hello", "world"]

    with FakeServer(path):
        asyncio.run(main())


def test_no_more_is_asked_at_once_than_a_daemon_takes(path, recording):
    """A thousand tasks are neither a thousand open files nor a thousand refusals."""
    held, released = [], threading.Event()

    def script(peer, message):
        if message["type"] == "transcribe" and not released.is_set():
            held.append(message)
            return
        if message["type"] == "status":
            released.set()
            for earlier in held:
                peer.answer(earlier)
        peer.answer(message)

    async def main():
        async with AsyncClient(path) as client:
            tasks = [asyncio.create_task(client.transcribe(recording)) for _ in range(1_000)]
            await asyncio.sleep(0)
            await client.ping()
            assert len(held) == 32
            tasks[40].cancel()
            await client.status()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(found.pop(40), asyncio.CancelledError)
            assert {one.text for one in found} == {"hello world"}

    with FakeServer(path, script):
        asyncio.run(main())


def test_cancelling_a_task_cancels_its_request(path, recording):
    """And a timeout does; other requests go on."""
    first = threading.Event()

    async def main():
        async with AsyncClient(path) as client:
            task = asyncio.create_task(client.transcribe(recording))
            await asyncio.to_thread(first.wait, 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(Error) as caught:
                await client.transcribe(recording, timeout_s=0.05)
            assert caught.value.code == "timeout"
            await client.ping()

    with FakeServer(path, endless(first)) as server:
        asyncio.run(main())
        assert len(server.wait_for("cancel", 2)) == 2


def test_leaving_the_block_ends_what_waits(path, recording):
    """Error `cancelled`, also for segments that are left in the middle; afterwards nothing can be asked."""
    first = threading.Event()

    async def main():
        client = AsyncClient(path)
        with pytest.raises(Error, match="is not connected"):
            await client.transcribe(recording)
        async with client:
            task = asyncio.create_task(client.transcribe(recording))
            segments = client.segments(recording)
            assert (await anext(segments)).text == "one"
        async with asyncio.timeout(20):
            for waiting in (task, anext(segments), client.ping()):
                with pytest.raises(Error) as caught:
                    await waiting
                assert caught.value.code == "cancelled"
        async with client:
            await client.ping()

    with FakeServer(path, endless(first)):
        asyncio.run(main())


def test_a_stream_that_is_cancelled_takes_nothing_more(path):
    """No reader stays behind that would steal bytes, or keep asyncio.run from ending."""
    first = threading.Event()
    reader, writer = os.pipe()

    async def main():
        async with AsyncClient(path) as client:
            with os.fdopen(os.dup(reader), "rb") as file:
                task = asyncio.create_task(client.transcribe(file))
                await asyncio.to_thread(first.wait, 20)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    with FakeServer(path, endless(first)):
        asyncio.run(main())
    os.write(writer, b"rest")
    os.set_blocking(reader, False)
    assert os.read(reader, 10) == b"rest"
    os.close(reader)
    os.close(writer)


def test_a_stream_that_cannot_be_read_is_told(path):
    """A terminal that has gone is an Error and cancels, rather than a request that never ends."""
    leader, follower = pty.openpty()
    os.close(follower)

    async def main():
        async with AsyncClient(path) as client:
            with os.fdopen(leader, "rb") as file, pytest.raises(Error, match=r"cannot be read: Input/output"):
                await client.transcribe(file, timeout_s=20)

    with FakeServer(path, endless(threading.Event())) as server:
        asyncio.run(main())
        server.wait_for("cancel")


def test_a_daemon_that_goes_is_told_to_everybody_who_waits(path, recording):
    """One `unavailable` each, also to who asks afterwards."""

    def script(peer, message):
        if message["id"] == 3:
            peer.hang_up()

    async def main():
        async with AsyncClient(path) as client:
            tasks = [client.transcribe(recording) for _ in range(3)]
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert [error.code for error in found] == ["unavailable"] * 3
            with pytest.raises(Error):
                await client.ping()

    with FakeServer(path, script):
        asyncio.run(main())
