"""Section B of the abuse table: clients that die, cancel, do not read, or are too many."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness.daemon import Canary, script, wait_until
from harness.wire_client import TERMINAL, WireClient, memfd, texts

from svctl.wire import encode

MIB = 2**20
_gates = itertools.count()


def gate():
    """A gate's name that no other test uses."""
    return f"gate{next(_gates)}"


def ask(client, request, content, **fields):
    """Send a request for a script; its descriptor is closed here at once, as a client may."""
    fd = memfd(content)
    client.transcribe(request, fd, **fields)
    os.close(fd)


@pytest.fixture
def victim(daemon):
    """A client in a process of its own, to be killed: `victim(*lines)` runs lines with `client` at hand."""
    processes = []

    def start(*lines):
        program = [
            "import os, sys",
            f"sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(Path(__file__).parents[2])!r}]",
            "from harness.wire_client import WireClient, memfd",
            f"client = WireClient({str(daemon.socket)!r}, timeout_s=60)",
            *lines,
            "print('there', flush=True)",
            "sys.stdin.read()",
        ]
        process = subprocess.Popen(
            [sys.executable, "-c", "\n".join(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "there\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def kill(process):
    """End a process without any chance to say goodbye."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def jobs(daemon):
    """The daemon's counters of jobs."""
    return daemon.status()["jobs"]


def idle(daemon):
    """Wait until no job is left."""
    return daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 0, "no active job")


def test_f12_a_client_killed_during_its_upload(daemon, victim):
    """The half-sent recording is dropped, and counted once."""
    before = jobs(daemon)["cancelled"]
    process = victim(
        "client.transcribe(1, source='stream')",
        "client.send({'type': 'audio', 'id': 1, 'data': b'{\"say\": \"x\"}\\n{\"say\"'})",
    )
    daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 1, "the upload has begun")
    kill(process)
    idle(daemon)
    assert jobs(daemon)["cancelled"] == before + 1


def test_f12_a_client_killed_while_its_upload_is_held_back(daemon, victim):
    """Nothing is read from it any more, and its end is noticed all the same."""
    before, wall = jobs(daemon)["cancelled"], gate()
    line = f'{{"say": "x", "decode_gate": "{wall}"}}\\n'
    process = victim(
        "client.transcribe(1, source='stream')",
        f"client.send({{'type': 'audio', 'id': 1, 'data': b'{line}'}})",
        "client.socket.settimeout(0.3)",
        "try:",
        "    while True: client.send({'type': 'audio', 'id': 1, 'data': bytes(200_000)})",
        "except TimeoutError: pass",
    )
    kill(process)
    idle(daemon)
    assert jobs(daemon)["cancelled"] == before + 1


def test_f12_a_client_killed_in_a_batch_and_in_the_queue(daemon, victim):
    """Queued work is dropped, a running result is thrown away, and the batch-mates get theirs."""
    before, first, second = jobs(daemon)["cancelled"], gate(), gate()
    with daemon.client() as client:
        ask(client, 1, script({"say": "holding", "engine_gate": first}))
        daemon.wait_engine_at(first)
        # Queued together behind the gate, so that they make one batch.
        ask(client, 2, script({"say": "batch-mate", "engine_gate": second}))
        process = victim(
            f"client.transcribe(1, memfd({script('doomed')!r}))",
            f"client.transcribe(2, memfd({script('doomed', 'as well')!r}))",
        )
        daemon.wait_status(lambda status: status["queue"]["utterances"] == 4, "all is queued")
        late = victim(f"client.transcribe(1, memfd({script('never run')!r}))")
        daemon.wait_status(lambda status: status["queue"]["utterances"] == 5, "the last is queued")
        kill(late)
        daemon.wait_status(lambda status: status["queue"]["utterances"] == 4, "the dead client's is dropped")
        daemon.open_gate(first)
        daemon.wait_engine_at(second)
        kill(process)
        daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 1, "only the batch-mate")
        daemon.open_gate(second)
        assert texts(client.events(1)) == ["holding"]
        assert texts(client.events(2)) == ["batch-mate"]
    idle(daemon)
    assert jobs(daemon)["cancelled"] == before + 3


def test_f12_a_client_killed_while_receiving(daemon, victim):
    """Its write buffer is full of segments that nobody takes: the rest is not even recognised."""
    before = jobs(daemon)["cancelled"]
    lines = script(*["x" * 20_000] * 2_000)
    process = victim(
        f"client.transcribe(1, memfd({script('x' * 20_000)!r} * 2000))",
        "client.receive()",
    )
    assert len(lines) > 8 * 4 * MIB
    kill(process)
    idle(daemon)
    assert jobs(daemon)["cancelled"] == before + 1


@pytest.mark.parametrize("point", ["uploading", "decoding", "queued", "in a batch"])
def test_f13_cancel_ends_a_request_at_any_point(daemon, point):
    """Exactly one terminal event, `cancelled`; a second cancel is ignored; the connection goes on."""
    wall = gate()
    with daemon.client() as holder, daemon.client() as client:
        if point == "queued":
            ask(holder, 1, script({"say": "holding", "engine_gate": wall}))
            daemon.wait_engine_at(wall)
        if point == "uploading":
            client.transcribe(7, source="stream")
            client.send({"type": "audio", "id": 7, "data": b"{"})
        elif point == "decoding":
            ask(client, 7, script({"say": "x", "decode_gate": wall}))
        elif point == "queued":
            ask(client, 7, script("x"))
            daemon.wait_status(lambda status: status["queue"]["utterances"] == 1, "queued")
        else:
            ask(client, 7, script({"say": "x", "engine_gate": wall}))
            daemon.wait_engine_at(wall)
        client.send({"type": "cancel", "id": 7})
        client.send({"type": "cancel", "id": 7})
        (error,) = client.events(7)
        assert (error["code"], error["retryable"]) == ("cancelled", False)
        daemon.open_gate(wall)
        ask(client, 8, script("next"))
        assert texts(client.events(8)) == ["next"]
        assert client.ping()["type"] == "pong"
        assert client.silent()


def test_f13_cancel_that_races_the_result_has_one_winner(daemon):
    """200 cancels sent with, or right after, their requests: one terminal event each, never two."""
    with daemon.client() as client:
        for request in range(200):
            ask(client, request, script("quick"))
            if request % 2:
                client.ping()
            client.send({"type": "cancel", "id": request})
        ends = [client.events(request)[-1] for request in range(200)]
        assert {end["type"] for end in ends} <= {"done", "error"}
        assert {end["code"] for end in ends if end["type"] == "error"} == {"cancelled"}
        client.ping()
        assert client.kept == []


def test_f14_a_client_that_does_not_read_is_given_up(start):
    """Its segments wait up to the write buffer and no further, then the connection ends.

    Others are served.
    """
    daemon = start(settings="[serving]\nwrite_timeout_s = 0.3\nmax_write_buffer_bytes = 4194304")
    canary = Canary(daemon)
    before = daemon.resident_bytes()
    with daemon.client() as client:
        ask(client, 1, script("x" * 20_000) * 2_000)
        idle(daemon)
        assert daemon.resident_bytes() - before < 16 * MIB
        assert client.until_closed()[-1]["type"] not in TERMINAL
    assert jobs(daemon)["cancelled"] == 1
    canary.check()


@pytest.mark.parametrize("source", ["fd", "stream"])
def test_f15_a_half_close_after_the_request_is_still_answered(daemon, source):
    """`echo | nc -N` style: everything asked in full is answered, then the daemon closes too."""
    wall = gate()
    content = script("first", {"say": "second", "engine_gate": wall})
    with daemon.client() as client:
        if source == "fd":
            ask(client, 1, content)
        else:
            client.transcribe(1, source="stream")
            client.send({"type": "audio", "id": 1, "data": content})
            client.send({"type": "end", "id": 1})
        client.socket.shutdown(socket.SHUT_WR)
        daemon.wait_engine_at(wall)
        daemon.open_gate(wall)
        messages = [message for message in client.until_closed() if message["type"] != "progress"]
        assert texts(messages) == ["first", "second"]
        assert messages[-1]["type"] == "done"


def test_f15_a_half_close_before_the_end_of_an_upload_is_a_disconnect(daemon):
    """What was not asked in full is dropped, what was is answered."""
    before = jobs(daemon)["cancelled"]
    with daemon.client() as client:
        client.transcribe(1, source="stream")
        client.send({"type": "audio", "id": 1, "data": script("x")})
        ask(client, 2, script("whole"))
        client.socket.shutdown(socket.SHUT_WR)
        messages = client.until_closed()
        assert [message["id"] for message in messages if message["type"] in TERMINAL] == [2]
    assert jobs(daemon)["cancelled"] == before + 1


def test_f15_a_hang_up_after_a_half_close_drops_the_work(daemon):
    """Nobody is left to hear the answer."""
    before, wall = jobs(daemon)["cancelled"], gate()
    with daemon.client() as client:
        ask(client, 1, script({"say": "x", "decode_gate": wall}))
        client.socket.shutdown(socket.SHUT_WR)
    idle(daemon)
    assert jobs(daemon)["cancelled"] == before + 1


def test_f16_many_clients_get_what_one_alone_gets(daemon):
    """16 clients with 8 requests each, by descriptor and streamed.

    The same events, in order, in shared batches.
    """
    contents = [script(*[f"job {n} part {part}" for part in range(1 + n % 5)]) for n in range(8)]

    def events_of(client, request, content, *, stream):
        if not stream:
            ask(client, request, content)
        else:
            client.transcribe(request, source="stream")
            for start in range(0, len(content), 37):
                client.send({"type": "audio", "id": request, "data": content[start : start + 37]})
            client.send({"type": "end", "id": request})

    def essence(events):
        return [
            {name: value for name, value in event.items() if name not in ("id", "timings")}
            for event in events
        ]

    with daemon.client() as client:
        alone = []
        for n, content in enumerate(contents):
            ask(client, n, content)
            alone.append(essence(client.events(n)))

    before = daemon.status()["batches"]
    start_together = threading.Barrier(16)

    def one_client(number):
        with daemon.client(timeout_s=30) as client:
            start_together.wait()
            for n, content in enumerate(contents):
                events_of(client, n, content, stream=(n + number) % 2 == 1)
            return [essence(client.events(n)) for n in range(len(contents))]

    with ThreadPoolExecutor(16) as pool:
        for found in pool.map(one_client, range(16)):
            assert found == alone
    after = daemon.status()["batches"]
    mean = (after["utterances"] - before["utterances"]) / (after["count"] - before["count"])
    assert mean > 1


def test_f17_overload_is_refused_with_a_time_to_come_back(start):
    """Ten times the queue: what was accepted finishes, the rest is `busy` at once and succeeds later."""
    settings = (
        "[serving]\nassumed_bytes_per_s = 1\nmax_queued_audio_per_uid_s = 100\nmax_queued_audio_s = 150\n"
        "max_job_charge_s = 40"
    )
    daemon = start(settings=settings)
    canary = Canary(daemon)
    with daemon.client() as client:
        ask(client, 0, script({"say": "holding", "engine_gate": "hold"}))
        daemon.wait_engine_at("hold")
        ask(client, 1, script("a script of more than forty bytes"))
        # Charged on threads of their own, requests could overtake each other.
        wait_until(lambda: daemon.status()["queue"]["audio_s"] > 40, "the second is charged")
        for request in range(2, 31):
            ask(client, request, script("a script of more than forty bytes"))
        refused = [client.events(request)[-1] for request in range(3, 31)]
        assert {error["code"] for error in refused} == {"busy"}
        assert all(error["retryable"] and error["retry_after_ms"] >= 100 for error in refused)
        daemon.open_gate("hold")
        for request in (0, 1):
            assert client.events(request)[-1]["type"] == "done"
        ask(client, 40, script("come back"))
        assert texts(client.events(40)) == ["come back"]
        assert jobs(daemon)["rejected"] == 28 + int(client.events(2)[-1]["type"] == "error")
    canary.check()


def test_f17_a_connection_has_its_share_of_jobs(start):
    """One request too many is `busy`, and the connection goes on."""
    daemon = start(settings="[serving]\nmax_jobs_per_connection = 3")
    with daemon.client() as client:
        for request in range(4):
            ask(client, request, script({"say": "x", "decode_gate": "wall"}))
        assert client.events(3)[-1]["code"] == "busy"
        daemon.open_gate("wall")
        assert [client.events(request)[-1]["type"] for request in range(3)] == ["done"] * 3


def test_f10_connections_above_the_cap_are_turned_away_with_a_word(start):
    """Each gets `too_many_connections` and the end; the first ones are served, and room comes back."""
    daemon = start(settings="[serving]\nmax_connections = 4\nmax_connections_per_uid = 4")
    with contextlib.ExitStack() as stack:
        inside = [stack.enter_context(daemon.client()) for _ in range(4)]
        for _ in range(10):
            with daemon.client(hello=False) as excess:
                (error,) = excess.until_closed()
                assert (error["code"], error["id"]) == ("too_many_connections", None)
        assert inside[0].status()["clients_rejected"] == 10
        inside.pop().close()

        def room():
            try:
                return WireClient(daemon.socket)
            except AssertionError:
                return None

        wait_until(room, "room for another").close()


def test_f11_without_free_descriptors_the_daemon_waits_and_recovers(start):
    """When accept fails for want of descriptors.

    No crash, no traceback, and service again once some are free.
    """
    daemon = start()
    canary = Canary(daemon)
    limit = daemon.descriptors() + 6
    subprocess.run(["prlimit", f"--pid={daemon.pid}", f"--nofile={limit}:{limit}"], check=True)
    crowd = []
    for _ in range(12):
        client = WireClient(daemon.socket, hello=False)
        crowd.append(client)
    wait_until(lambda: "for want of" in daemon.text(), "the shortage is noticed")
    for client in crowd:
        client.close()
    canary.check()


def test_messages_of_an_idle_connection_end_it(start):
    """A connection without a request is closed after the idle time, one that waits for us is not."""
    daemon = start(settings="[serving]\nidle_timeout_s = 0.2")
    with daemon.client() as waiting, daemon.client() as idler:
        ask(waiting, 1, script({"say": "x", "engine_gate": "wall"}))
        assert idler.until_closed()[-1]["code"] == "timeout"
        daemon.open_gate("wall")
        assert waiting.events(1)[-1]["type"] == "done"


def test_a_flood_of_messages_leaves_others_their_turn(daemon):
    """A client whose bytes never run out does not keep the event loop to itself."""
    enough = threading.Event()
    pings = b"".join(encode({"type": "ping", "id": n}) for n in range(1000))
    with daemon.client() as flood, daemon.client(timeout_s=5) as other:

        def send():
            while not enough.is_set():
                flood.send_raw(pings)
            flood.socket.shutdown(socket.SHUT_WR)

        def receive():
            while flood.socket.recv(2**20):
                pass

        threads = [threading.Thread(target=work) for work in (send, receive)]
        for thread in threads:
            thread.start()
        try:
            for request in range(20):
                assert other.ping(request)["id"] == request
        finally:
            enough.set()
            for thread in threads:
                thread.join()
