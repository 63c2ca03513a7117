"""Section E of the abuse table, the engine (F34): memory that does not suffice, and a device that is gone."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness.asking import ask, essence
from harness.daemon import Canary, script
from harness.figures import note

from sensevoiced.config import BatchLimits
from sensevoiced.engine import device
from sensevoiced.engine.api import DeviceLost, OutOfMemory
from sensevoiced.engine.batcher import Batcher
from sensevoiced.engine.sensevoice import TorchEngine
from sensevoiced.heartbeat import HEARTBEAT_S
from sensevoiced.jobs import Options, Recognition, Utterance
from sensevoiced.models import DEMO_DIR, find_asr

SCARCE = Path(__file__).parents[1] / "harness" / "scarce_daemon.py"
FRAMES = 17
"""Of an utterance of a second."""
REQUESTS = 8
# Batches do not depend on the number of cores here: 512 frames, more than all the requests together.
SETTINGS = "threads = 4"


@pytest.fixture
def scarce(start, tmp_path):
    """A daemon whose engine lacks memory as the test says."""
    daemons = []

    def start_one(settings=SETTINGS):
        control = tmp_path / f"d{len(daemons)}" / "control"
        command = [sys.executable, str(SCARCE), str(control)]
        daemons.append(start(command=command, settings=settings))
        return daemons[-1]

    return start_one


def one_batch(daemon, client, gate, contents):
    """Have all contents in one batch, by keeping the engine at a gate; gives each one's events."""
    ask(client, 0, script({"say": "holding", "engine_gate": gate}))
    daemon.wait_engine_at(gate)
    for number, content in enumerate(contents, 1):
        ask(client, number, content)
    daemon.wait_status(lambda status: status["queue"]["utterances"] == len(contents), "all queued")
    daemon.open_gate(gate)
    client.events(0)
    return [essence(client.events(number)) for number in range(1, len(contents) + 1)]


def batches_of(daemon, since=0):
    """What the engine did after so many lines of its log: sizes of batches, negative where they failed."""
    lines = daemon.engine_log().splitlines()[since:]
    sizes = [re.fullmatch(r"(batch|too many:) (\d+)", line) for line in lines]
    return [int(found[2]) if found[1] == "batch" else -int(found[2]) for found in sizes if found]


@pytest.mark.parametrize(("fits", "splits"), [(2, 3), (1, 7)])
def test_f34_a_batch_that_does_not_fit_is_divided_until_it_does(scarce, record_property, fits, splits):
    """The texts are those of the whole batch, and later batches stay at what fits without failing first."""
    daemon = scarce()
    canary = Canary(daemon)
    contents = [script(f"request {number}") for number in range(REQUESTS)]
    with daemon.client() as client:
        unsplit = one_batch(daemon, client, "first", contents)
        assert [event[0]["text"] for event in unsplit] == [f"request {n}" for n in range(REQUESTS)]
        assert batches_of(daemon)[-2:] == [1, REQUESTS]
        before = daemon.status()["batches"]
        (daemon.control / "fits").write_text(str(fits))
        assert one_batch(daemon, client, "second", contents) == unsplit
        after = daemon.status()["batches"]
        assert after["out_of_memory_splits"] - before["out_of_memory_splits"] == splits
        assert after["max_frames"] == fits * FRAMES
        learned = len(daemon.engine_log().splitlines())
        assert one_batch(daemon, client, "third", contents) == unsplit
        assert batches_of(daemon, learned) == [1] + [fits] * (REQUESTS // fits)
        note(
            record_property,
            f"fits {fits}: {splits} splits, cap {before['max_frames']} to {after['max_frames']} frames",
        )
    (daemon.control / "fits").unlink()
    canary.check()


def test_f34_one_utterance_that_never_fits_fails_alone(scarce, record_property):
    """It ends with `internal`, its batch-mates get their texts, and the daemon serves on."""
    daemon = scarce()
    canary = Canary(daemon)
    contents = [script(f"mate {number}") for number in range(REQUESTS - 1)]
    with daemon.client() as client:
        heavy = script({"say": "never", "heavy": True})
        *mates, last = one_batch(daemon, client, "first", [*contents, heavy])
        assert [events[0]["text"] for events in mates] == [f"mate {n}" for n in range(REQUESTS - 1)]
        assert [event["type"] for event in last] == ["error"]
        assert (last[0]["code"], last[0]["retryable"]) == ("internal", False)
        assert "memory" in last[0]["message"]
        assert client.status()["jobs"]["failed"] == 1
    note(record_property, f"1 of {REQUESTS} failed, with code internal")
    canary.check()


def test_f34_persistent_lack_of_memory_ends_the_daemon_with_70(scarce, record_property):
    """When nothing fits any more, each request is told `internal`, and then the daemon ends."""
    daemon = scarce(settings=f"{SETTINGS}\n[batch]\nmax_failures_in_a_row = {REQUESTS}")
    (daemon.control / "fits").write_text("0")
    with daemon.client() as client:
        for number in range(REQUESTS):
            ask(client, number, script(f"request {number}"))
        ends = [client.events(number)[-1] for number in range(REQUESTS)]
        assert {(end["type"], end["code"]) for end in ends} == {("error", "internal")}
        assert daemon.wait_end() == 70
    assert f"{REQUESTS} utterances in a row failed" in daemon.text()
    assert "Traceback" not in daemon.text()
    note(record_property, f"exit 70 after {REQUESTS} failures in a row")


def test_f34_one_user_s_giants_do_not_end_the_daemon_for_all(scarce, record_property):
    """What is too long for this machine costs its own requests, however many come without a success."""
    daemon = scarce(settings=f"{SETTINGS}\n[batch]\nmax_failures_in_a_row = {REQUESTS}")
    canary = Canary(daemon)
    giant = script({"say": "giant", "heavy": True, "seconds": 60.0})
    with daemon.client() as client:
        for number in range(3 * REQUESTS):
            ask(client, number, giant)
            (error,) = essence(client.events(number))
            assert (error["type"], error["code"]) == ("error", "internal")
            assert "for an utterance of 60.0 s" in error["message"]
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.process.wait(2 * HEARTBEAT_S)
        ask(client, 1_000, script("short"))
        assert essence(client.events(1_000))[0]["text"] == "short"
    note(record_property, f"{3 * REQUESTS} giants failed, and the daemon serves on")
    canary.check()


def test_f34_a_lost_device_ends_the_daemon_at_once_with_70(scarce, record_property):
    """No utterance is tried again on it, all are told `internal`, and it does not take 32 of them."""
    daemon = scarce()
    contents = [script(f"request {number}") for number in range(REQUESTS - 1)]
    with daemon.client() as client:
        lost = one_batch(daemon, client, "first", [*contents, script({"say": "x", "lose": True})])
        assert {(events[-1]["type"], events[-1]["code"]) for events in lost} == {("error", "internal")}
        assert daemon.wait_end() == 70
    assert daemon.text().count("the device is lost: as the script says") == 1
    assert "Traceback" not in daemon.text()
    note(record_property, f"exit 70 after 1 batch of {REQUESTS}")


def test_f34_a_device_that_fails_at_nothing_is_lost(monkeypatch):
    """An error after which even waiting for the device fails is DeviceLost; any other stays what it is."""
    sticky = RuntimeError("CUDA error: an illegal memory access was encountered")

    def fail():
        raise sticky

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        device.within_memory(fail)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with pytest.raises(RuntimeError) as raised:
        device.within_memory(fail)
    assert raised.value is sticky


@pytest.mark.parametrize(
    "words", ["DefaultCPUAllocator: can't allocate memory", "std::bad_alloc", "could not create a primitive"]
)
def test_f34_every_library_is_understood(words):
    """What torch, C++ and oneDNN were seen to say for want of memory on a CPU means a smaller batch."""
    with pytest.raises(OutOfMemory, match=words):
        device.within_memory(lambda: raise_error(RuntimeError(words)))


def raise_error(error):
    """Raise it, as an expression."""
    raise error


@pytest.mark.parametrize("error", [OutOfMemory, MemoryError])
def test_f34_any_lack_of_memory_divides(error):
    """Python's own MemoryError, raised around the model and not in it, is treated as the device's."""
    sizes = []

    def run(batch):
        sizes.append(len(batch))
        if len(batch) > 1:
            raise error
        return [Recognition("en", 1.0, "", 1.0, "", 1.0, itn=True, text=str(batch[0][0].index), raw="")]

    async def scene():
        batcher = Batcher(run, limits=BatchLimits())
        utterances = [Utterance(n, 0.0, 1.0, b"", FRAMES, 0) for n in range(4)]
        asked = [
            asyncio.ensure_future(batcher.recognise(0, n, u, Options())) for n, u in enumerate(utterances)
        ]
        await asyncio.sleep(0)  # let them queue before the engine looks
        batcher.start()
        try:
            return [found.recognition.text for found in await asyncio.gather(*asked)]
        finally:
            assert batcher.stop(30.0)

    assert asyncio.run(scene()) == ["0", "1", "2", "3"]
    assert sizes == [4, 2, 1, 1, 2, 1, 1]


def test_f34_a_real_gpu_with_a_capped_allocator(record_property):
    """On CUDA, the allocator capped to half of what a batch takes: divided, the same texts, no more held.

    Never run so far: no machine with a GPU was at hand.
    """
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here: the capped allocator of F34 needs one")
    engine = TorchEngine.load(find_asr("demo", DEMO_DIR), device="cuda", precision="auto", threads=0)
    generator = torch.Generator().manual_seed(0)
    dim = engine.info.feature_dim
    batch = []
    for number in range(64):
        features = torch.randn(500, dim, generator=generator).numpy().tobytes()
        batch.append((Utterance(number, 0.0, 30.0, features, 500, dim), Options()))
    engine.warm_up()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    unsplit = engine.run(batch)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((held + torch.cuda.max_memory_allocated()) / 2 / total)

    async def scene():
        batcher = Batcher(engine.run, limits=BatchLimits(max_batch_frames=10**6, max_batch_attention=10**9))
        asked = [asyncio.ensure_future(batcher.recognise(0, 1, *work)) for work in batch]
        await asyncio.sleep(0)
        batcher.start()
        try:
            found = [recognised.recognition for recognised in await asyncio.gather(*asked)]
            return found, batcher.snapshot().out_of_memory_splits
        finally:
            assert batcher.stop(30.0)

    try:
        found, splits = asyncio.run(scene())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [one.text for one in found] == [one.text for one in unsplit]
    assert splits >= 1
    assert torch.cuda.memory_allocated() <= held
    note(record_property, f"{splits} splits")
