"""Section E of the abuse table, F34: the kernel gives the running daemon no more memory (RLIMIT_AS)."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import resource
from pathlib import Path

import pytest
from harness.asking import essence
from harness.daemon import Canary, wait_until
from harness.demo import DemoCanary, DemoDaemon, minute, pcm_header
from harness.figures import note
from harness.wire_client import memfd

MIB = 2**20
CROWD = 100
HALF_A_MESSAGE = (10**6).to_bytes(4, "big") + bytes(10**6 - 1)
"""As much as a client may make the daemon hold before there is anything to answer."""


def daemon_bytes(daemon, name):
    """One of the kernel's figures on the daemon's memory."""
    text = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1]) * 1024


@contextlib.contextmanager
def little_room(daemon, room_bytes):
    """In this block the daemon gets no more address space than it has, and this much."""
    limit = daemon_bytes(daemon, "VmSize") + room_bytes
    resource.prlimit(daemon.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.parametrize("room_mib", [0, 8])
def test_f34_a_daemon_without_memory_for_its_clients(start, record_property, room_mib):
    """Whoever sends what it cannot hold is told `busy` or cut off; it stays, and serves on afterwards."""
    daemon = start(settings="[serving]\nframe_timeout_s = 3")
    canary = Canary(daemon)
    fates = collections.Counter()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(daemon.client()) for _ in range(CROWD)]
        with little_room(daemon, room_mib * MIB):
            for client in clients:
                with contextlib.suppress(ConnectionError):
                    client.send_raw(HALF_A_MESSAGE)
            for client in clients:
                messages = client.until_closed()
                assert len(messages) <= 1
                fates[messages[0]["code"] if messages else "cut off"] += 1
    assert set(fates) <= {"busy", "cut off", "timeout"}
    assert fates["busy"] + fates["cut off"] > 0
    told = ", ".join(f"{count} {fate}" for fate, count in fates.items())
    note(record_property, f"{CROWD} clients of 1 MB each in {room_mib} MiB: {told}; the daemon stays")
    # libc keeps what the crowd left between what is still in use, for whoever comes next.
    canary.check(rss_bytes=CROWD * MIB)


MINUTES = 10
"""Of speech in one batch, about 75 utterances: their activations are large beside what else may be needed."""
REAL = (
    "threads = 1\n[batch]\nmax_batch_frames = 1000000\ncpu_frames_per_thread = 1000000\n"
    "max_batch_attention = 1000000000\nmax_batch_utterances = 1000\n"
    "[serving]\nmax_outstanding_utterances = 1000\n"
)
# Every large block is mapped and unmapped by itself, so that the address space is what is held; threads that
# open sources have small stacks, so that they do not decide what fits.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072"}
SMALL_STACKS = ("prlimit", f"--stack={2 * MIB}:")


def in_one_batch(daemon, fd):
    """The transcript of a recording whose utterances are one batch."""
    before = daemon.status()["batches"]
    daemon.hold()
    with daemon.client() as client:
        client.transcribe(1, fd)
        daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 1, "accepted")
        wait_until(lambda: daemon.engine_log().endswith("at hold\n"), "the first utterance at the engine")

        def all_there():
            status = daemon.status()
            busy = [child["busy"] for child in status["memory"]["children"]]
            return status["queue"]["utterances"] > 0 and not any(busy)

        wait_until(all_there, "all utterances queued")
        daemon.release()
        events = client.events(1)
    assert events[-1]["type"] == "done", events[-1]
    assert daemon.status()["batches"]["utterances"] - before["utterances"] == len(events) - 1
    return events


def without_scores(events):
    """Segments and `done` without what company may move in the sixth digit."""
    return [
        {name: value for name, value in event.items() if not name.endswith("_score")}
        for event in essence(events)
    ]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_f34_a_real_lack_of_memory_on_the_cpu(tmp_path, record_property, precision):
    """With the demo model and RLIMIT_AS: torch's own failure to allocate divides a real batch.

    The limit is put on the running process, at half of what the batch took, and taken away afterwards. Not in
    bfloat16: there oneDNN compiles code for every length, whose memory it keeps, so that single utterances
    may fail too (`internal`), and with hardly any room left it was seen to crash; systemd starts it again.
    """
    settings = f'precision = "{precision}"\ncache_dir = "{tmp_path}/cache"\n{REAL}'
    fd = memfd(pcm_header(data_bytes=MINUTES * len(minute())) + minute() * MINUTES)
    daemon = DemoDaemon(tmp_path / "d", held=True, settings=settings, environ=MALLOC, wrapper=SMALL_STACKS)
    try:
        canary = DemoCanary(daemon)
        in_one_batch(daemon, fd)  # makes what stays
        before_bytes, rss_bytes = daemon_bytes(daemon, "VmSize"), daemon.resident_bytes()
        unsplit = in_one_batch(daemon, fd)
        batch_bytes = daemon_bytes(daemon, "VmPeak") - before_bytes
        cap = daemon.status()["batches"]["max_frames"]
        with little_room(daemon, batch_bytes // 2):
            divided = in_one_batch(daemon, fd)
        status = daemon.status()["batches"]
        assert without_scores(divided) == without_scores(unsplit)
        assert status["out_of_memory_splits"] >= 1
        assert status["max_frames"] < cap
        after_bytes = daemon.resident_bytes()
        note(
            record_property,
            f"{precision}: a batch of {batch_bytes / MIB:.0f} MiB in {batch_bytes / 2 / MIB:.0f} MiB: "
            f"{status['out_of_memory_splits']} splits, RSS {rss_bytes / MIB:.0f} MiB before and "
            f"{after_bytes / MIB:.0f} MiB after",
        )
        assert after_bytes <= rss_bytes + 16 * MIB  # what Python and libc keep besides
        canary.check()
    finally:
        daemon.kill()
        os.close(fd)
