"""Section B of the abuse table: clients that are killed, and requests that are cancelled."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from harness.asking import ask, gate, idle, jobs
from harness.daemon import script, wait_until
from harness.demo import DemoCanary, DemoDaemon, pcm_header, sample
from harness.figures import note, within
from harness.puppet import Puppet
from harness.wire_client import TERMINAL, texts

LONG = "x" * 20_000
RACES, PINGS = 200, 8
GONE_MS = 100


@pytest.fixture
def victim(daemon):
    """A client in a process of its own, to be killed: `victim(*lines)` runs lines with `client` at hand."""
    puppets = []

    def start(*lines):
        puppets.append(Puppet(daemon.socket))
        puppets[-1].run(*lines)
        return puppets[-1]

    yield start
    for puppet in puppets:
        puppet.kill()


@pytest.fixture
def count_cancelled(daemon):
    """The number of cancelled requests since the test began."""
    before = jobs(daemon)["cancelled"]
    return lambda: jobs(daemon)["cancelled"] - before


def kill(puppet, daemon, condition, what):
    """Kill a client; gives how long it took in ms until a status says `condition`."""
    with daemon.client() as watcher:
        began_s = time.monotonic()
        puppet.kill()
        wait_until(lambda: condition(watcher.status()), what)
        return 1000 * (time.monotonic() - began_s)


def no_job(status):
    """Whether a status shows no job."""
    return status["queue"]["jobs_active"] == 0


def open_files(pid):
    """What the descriptors of a process lead to."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return found


def test_f12_a_client_killed_during_its_upload(daemon, victim, count_cancelled, record_property):
    """The half-sent recording is dropped, and counted once."""
    puppet = victim(
        "client.transcribe(1, source='stream')",
        "client.send({'type': 'audio', 'id': 1, 'data': b'{\"say\": \"x\"}\\n{\"say\"'})",
    )
    daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 1, "the upload has begun")
    took_ms = kill(puppet, daemon, no_job, "dropped")
    within(record_property, "dropped while uploading, after", took_ms, GONE_MS, "ms")
    assert count_cancelled() == 1


def test_f12_a_client_killed_while_its_upload_is_held_back(daemon, victim, count_cancelled, record_property):
    """Nothing is read from it any more, and its end is noticed all the same."""
    line = f'{{"say": "x", "decode_gate": "{gate()}"}}\\n'
    puppet = victim(
        "client.transcribe(1, source='stream')",
        f"client.send({{'type': 'audio', 'id': 1, 'data': b'{line}'}})",
        "client.socket.settimeout(0.3)",
        "try:",
        "    while True: client.send({'type': 'audio', 'id': 1, 'data': bytes(200_000)})",
        "except TimeoutError: pass",
    )
    took_ms = kill(puppet, daemon, no_job, "dropped")
    within(record_property, "dropped while held back, after", took_ms, GONE_MS, "ms")
    assert count_cancelled() == 1


def test_f12_a_client_killed_while_its_file_is_read(
    daemon, victim, count_cancelled, record_property, tmp_path
):
    """Its descriptor is closed with it."""
    recording = tmp_path / "recording"
    recording.write_bytes(script({"say": "x", "decode_gate": gate()}))
    puppet = victim(f"client.transcribe(1, os.open({str(recording)!r}, os.O_RDONLY))")
    wait_until(lambda: str(recording) in open_files(daemon.pid), "the daemon has the file")
    took_ms = kill(puppet, daemon, no_job, "dropped")
    wait_until(lambda: str(recording) not in open_files(daemon.pid), "the file is closed")
    within(record_property, "dropped while decoding, after", took_ms, GONE_MS, "ms")
    assert count_cancelled() == 1


def test_f12_a_client_killed_in_a_batch_and_in_the_queue(daemon, victim, count_cancelled, record_property):
    """Queued work is dropped, a running result is thrown away, and the batch-mates get theirs."""
    first, second = gate(), gate()
    with daemon.client() as client:
        ask(client, 1, script({"say": "holding", "engine_gate": first}))
        daemon.wait_engine_at(first)
        # Queued together behind the gate, so that they make one batch.
        ask(client, 2, script({"say": "batch-mate", "engine_gate": second}))
        puppet = victim(
            f"client.transcribe(1, memfd({script('doomed')!r}))",
            f"client.transcribe(2, memfd({script('doomed', 'as well')!r}))",
        )
        daemon.wait_status(lambda status: status["queue"]["utterances"] == 4, "all is queued")
        late = victim(f"client.transcribe(1, memfd({script('never run')!r}))")
        daemon.wait_status(lambda status: status["queue"]["utterances"] == 5, "the last is queued")
        took_ms = kill(late, daemon, lambda status: status["queue"]["utterances"] == 4, "dropped")
        within(record_property, "dropped while queued, after", took_ms, GONE_MS, "ms")
        daemon.open_gate(first)
        daemon.wait_engine_at(second)
        took_ms = kill(puppet, daemon, lambda status: status["queue"]["jobs_active"] == 1, "only the mate")
        within(record_property, "dropped in a batch, after", took_ms, GONE_MS, "ms")
        daemon.open_gate(second)
        assert texts(client.events(1)) == ["holding"]
        assert texts(client.events(2)) == ["batch-mate"]
    idle(daemon)
    assert count_cancelled() == 3


def test_f12_a_client_killed_while_receiving(daemon, victim, count_cancelled, record_property):
    """Its write buffer is full of segments that nobody takes: the rest is not even recognised."""
    puppet = victim(f"client.transcribe(1, memfd({script(LONG)!r} * 2000))", "client.receive()", "None")
    took_ms = kill(puppet, daemon, no_job, "dropped")
    within(record_property, "dropped while receiving, after", took_ms, GONE_MS, "ms")
    assert count_cancelled() == 1


def test_f12_a_client_killed_while_a_process_decodes_for_it(tmp_path, record_property):
    """The real front end's process is free for the next recording, and holds nothing of this one.

    Row changed: a process whose work is called off is not killed, unless it goes on all the same for a
    second (`STOP_GRACE_S`): starting one costs as much as the work on 90 s of audio.
    """
    daemon = DemoDaemon(tmp_path / "demo")
    try:
        canary = DemoCanary(daemon)
        pids = daemon.child_pids()
        before = {pid: len(open_files(pid)) for pid in pids}
        data = pcm_header() + (sample("angry") * 32767).astype("<i2").tobytes()[:64_000]
        with Puppet(daemon.socket) as puppet:
            puppet.run(
                "client.transcribe(1, source='stream')",
                f"client.send({{'type': 'audio', 'id': 1, 'data': {data!r}}})",
            )
            daemon.wait_status(lambda status: busy(status) == 1, "a process decodes")
            took_ms = kill(puppet, daemon, lambda status: no_job(status) and not busy(status), "free")
        within(record_property, "a decoder was free after", took_ms, GONE_MS, "ms")
        assert daemon.child_pids() == pids
        wait_until(lambda: {pid: len(open_files(pid)) for pid in pids} == before, "its descriptors")
        assert jobs(daemon)["cancelled"] == 1
        canary.check()
        assert daemon.stop() == 0
    finally:
        daemon.kill()


def busy(status):
    """How many processes of the front end are at work."""
    return sum(child["busy"] for child in status["memory"]["children"])


@pytest.mark.parametrize("point", ["uploading", "decoding", "queued", "in a batch", "receiving"])
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
        elif point == "receiving":
            ask(client, 7, script(LONG) * 2000)
            client.kept.append(client.receive())
        else:
            ask(client, 7, script({"say": "x", "engine_gate": wall}))
            daemon.wait_engine_at(wall)
        client.send({"type": "cancel", "id": 7})
        client.send({"type": "cancel", "id": 7})
        *segments, error = client.events(7)
        assert [event["index"] for event in segments] == list(range(len(segments)))
        assert bool(segments) == (point == "receiving")
        assert (error["code"], error["retryable"]) == ("cancelled", False)
        daemon.open_gate(wall)
        ask(client, 8, script("next"))
        assert texts(client.events(8)) == ["next"]
        assert client.ping()["type"] == "pong"
        assert client.silent()
        assert client.kept == []


def test_f13_cancel_that_races_the_result_has_one_winner(daemon, record_property):
    """200 cancels, with their requests, a few pings later, or on the segment: one terminal event each."""
    with daemon.client() as client:
        for request in range(RACES):
            ask(client, request, script("quick"))
            while request % 2 and not any(event["id"] == request for event in client.kept):
                client.kept.append(client.receive())
            for _ in range(request % PINGS):
                client.ping()
            client.send({"type": "cancel", "id": request})
        ends = [client.events(request)[-1] for request in range(RACES)]
        assert {end["type"] for end in ends} <= set(TERMINAL)
        assert {end["code"] for end in ends if end["type"] == "error"} == {"cancelled"}
        client.ping()
        assert client.kept == []
    done = sum(end["type"] == "done" for end in ends)
    note(record_property, f"{RACES} races: {done} done, {RACES - done} cancelled, none both or neither")
