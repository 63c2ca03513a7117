"""svctl.AsyncClient against a scripted daemon: many requests at once, cancellation, streams, endings."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import socket
import threading
import time

import pytest
from harness.fake_server import FakeServer, endless

from svctl import AsyncClient, Error


async def until(condition):
    """Let the loop run until the condition is true."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what the test waits for is in other threads
            await asyncio.sleep(0.001)


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


def test_a_request_within_each_of_many_loops_of_segments_gets_its_turn(path, recording):
    """A loop has no turn while its body runs: that may wait for one, and for everybody else's."""

    async def ask(client, everybody):
        found = []
        async for line in client.segments(recording):
            await everybody.wait()
            found.append((line.text, (await client.transcribe(b"other")).text))
        return found

    async def main():
        everybody = asyncio.Barrier(40)
        async with AsyncClient(path) as client, asyncio.timeout(60):
            found = await asyncio.gather(*(ask(client, everybody) for _ in range(40)))
        assert found == [[("hello", "other"), ("world", "other")]] * 40

    with FakeServer(path):
        asyncio.run(main())


def test_a_stream_in_which_nothing_comes_keeps_its_connection(path, monkeypatch):
    """The daemon is given a sign of life now and then, and nothing of the stream is lost."""
    monkeypatch.setattr("svctl.connection.KEEP_ALIVE_S", 0.01)

    async def main():
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as file, os.fdopen(writer, "wb", buffering=0) as other:
            async with AsyncClient(path) as client:
                other.write(b"head\n")
                assert file.peek(1) == b"head\n"
                task = asyncio.create_task(client.transcribe(file))
                await asyncio.to_thread(server.wait_for, "ping", 3)
                other.write(b"one")
                other.close()
                assert (await task).text == "head one"

    with FakeServer(path) as server:
        asyncio.run(main())


def test_patience_does_not_end_while_the_daemon_works_on_other_requests(path, recording, tmp_path):
    """One is refused for longer than that, and heard from all the while is another, which then ends too."""
    refused, running, refusals = tmp_path / "refused.wav", [], 12
    refused.write_text("late")

    def script(peer, message):
        if message["type"] == "transcribe" and not running:
            running.append(message)
        elif (
            message["type"] == "transcribe" and message["label"] == str(refused) and len(running) <= refusals
        ):
            running.append(message)
            peer.send({"type": "progress", "id": running[0]["id"], "decoded_s": 1.0, "recognised_s": 0.5})
            error = {"type": "error", "id": message["id"], "code": "busy", "message": "full"}
            peer.send({**error, "retryable": True, "retry_after_ms": 100})
        else:
            if message["type"] == "transcribe":
                peer.answer(running[0])
            peer.answer(message)

    async def main():
        async with AsyncClient(path, patience_s=0.5) as client:
            first = asyncio.create_task(client.transcribe(recording))
            await until(lambda: running)
            assert (await client.transcribe(refused)).text == "late"
            assert (await first).text == "hello world"

    with FakeServer(path, script):
        asyncio.run(main())
    assert len(running) == refusals + 1


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


@pytest.mark.parametrize("daemon", ["silent", "full", "turns away"])
def test_cancelling_a_task_that_connects_ends_at_once(path, daemon):
    """Whatever it waits for, and nothing of it stays: neither a thread nor a connection."""
    asked = threading.Event()

    def greet(peer, hello):
        if daemon == "turns away":
            fields = {"code": "too_many_connections", "message": "Too many.", "retry_after_ms": 60_000}
            peer.send({"type": "error", "id": None, **fields})
        asked.set()

    async def main():
        before = set(threading.enumerate())
        task = asyncio.create_task(AsyncClient(path, patience_s=600).__aenter__())
        if daemon == "full":
            await asyncio.sleep(0)
            asked.set()
        await until(asked.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert {thread for thread in set(threading.enumerate()) - before if "asyncio" in thread.name} == set()

    with contextlib.ExitStack() as stack:
        if daemon == "full":
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
            listener.listen(0)
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        else:
            server = stack.enter_context(FakeServer(path, greet=greet))
        began_s = time.monotonic()
        asyncio.run(main())
        assert time.monotonic() - began_s < 20
        if daemon != "full":
            assert server.ended.wait(20)


def test_a_client_goes_from_one_event_loop_to_the_next(path, recording):
    """Also one for whose turns there were many who waited."""
    client = AsyncClient(path)

    async def main():
        async with client:
            found = await asyncio.gather(*(client.transcribe(recording) for _ in range(100)))
            assert {one.text for one in found} == {"hello world"}

    with FakeServer(path):
        asyncio.run(main())
        asyncio.run(main())


def test_a_connection_that_the_daemon_ended_is_made_anew_once(path, recording):
    """A service rests over night, or its daemon restarts: all who ask at once share the new connection."""

    async def main():
        async with AsyncClient(path) as client:
            await client.ping()
            idle = {"type": "error", "id": None, "code": "timeout", "message": "Nothing was asked for 300 s."}
            server.peers[0].send(idle)
            server.peers[0].hang_up()
            await until(lambda: not client._links[-1].usable)
            found = await asyncio.gather(*(client.transcribe(recording) for _ in range(50)))
            assert {one.text for one in found} == {"hello world"}
            assert len(server.peers) == 2
            path.unlink()
            server.peers[1].hang_up()
            await until(lambda: not client._links[-1].usable)
            with pytest.raises(Error, match="No daemon listens"):
                await client.ping()
            with FakeServer(path):
                await client.ping()

    with FakeServer(path) as server:
        asyncio.run(main())


def test_a_daemon_that_drains_keeps_what_it_has_and_gets_no_more(path, recording):
    """Its refusal is told; the next request goes to its successor, and what it had accepted is answered."""
    held = []

    def script(peer, message):
        if not held:
            held.append(message)
            return
        fields = {"code": "shutting_down", "message": "The daemon is stopping.", "retryable": True}
        peer.send({"type": "error", "id": message["id"], **fields})

    async def main():
        async with AsyncClient(path) as client:
            accepted = asyncio.create_task(client.transcribe(recording))
            await asyncio.to_thread(old.wait_for, "transcribe")
            path.unlink()
            with FakeServer(path):
                with pytest.raises(Error, match="is stopping"):
                    await client.transcribe(recording)
                assert (await client.transcribe(b"new")).text == "new"
                old.peers[0].answer(held[0])
                assert (await accepted).text == "hello world"

    with FakeServer(path, script) as old:
        asyncio.run(main())


def test_segments_end_at_their_time(path, recording):
    """Error `timeout`, and the request is cancelled, as with the whole transcript."""

    async def main():
        async with AsyncClient(path) as client:
            segments = client.segments(recording, timeout_s=0.2)
            assert (await anext(segments)).text == "one"
            with pytest.raises(Error) as caught:
                await anext(segments)
            assert caught.value.code == "timeout"
            server.wait_for("cancel")

    with FakeServer(path, endless(threading.Event())) as server:
        asyncio.run(main())


def test_leaving_the_block_ends_what_waits(path, recording):
    """Error `cancelled`, also for segments that are left in the middle; afterwards nothing can be asked."""
    first = threading.Event()

    async def main():
        client = AsyncClient(path)
        with pytest.raises(Error, match="is not connected"):
            await client.transcribe(recording)
        with pytest.raises(Error, match="is not connected"):
            _ = client.server
        with pytest.raises(ValueError, match="'xx' is not one of auto"):
            client.segments(recording, language="xx")
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
    """One `unavailable` each; who asks afterwards finds its successor."""

    def script(peer, message):
        if message["id"] == 3:
            peer.hang_up()
        elif message["type"] != "transcribe":
            peer.answer(message)

    async def main():
        async with AsyncClient(path) as client:
            tasks = [client.transcribe(recording) for _ in range(3)]
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert [error.code for error in found] == ["unavailable"] * 3
            await client.ping()

    with FakeServer(path, script):
        asyncio.run(main())
