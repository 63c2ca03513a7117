"""What may run in the middle of a batch: a short utterance whose turn it is, and nothing long."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from sensevoiced.config import BatchLimits
from sensevoiced.engine.api import Layered, OutOfMemory
from sensevoiced.engine.batcher import Batcher
from sensevoiced.engine.sensevoice import TorchEngine
from sensevoiced.jobs import Options, Recognition, Utterance
from sensevoiced.models import DEMO_DIR, find_asr

LIMIT_S = 30.0
LAYERS = 4


class Model:
    """Calls `between` after each of its layers; the first batch begins and ends when the test says so."""

    def __init__(self):
        self.between = lambda: None
        self.began, self.go_on, self.end = threading.Event(), threading.Event(), threading.Event()
        self.log = []

    def __call__(self, batch):
        names = [utterance.index for utterance, _ in batch]
        self.log.append(("begin", names))
        first = not self.began.is_set()
        if first:
            self.began.set()
            assert self.go_on.wait(LIMIT_S)
        for _ in range(LAYERS):
            self.between()
        if first:
            assert self.end.wait(LIMIT_S)
        self.log.append(("end", names))
        return [Recognition("en", 1.0, "", 1.0, "", 1.0, itn=True, text=str(name), raw="") for name in names]


def ask(batcher, index, *, frames, owner=1, job=1):
    """Begin to wait for an utterance that is known by its index."""
    utterance = Utterance(index, 0.0, 1.0, b"", frames, 0)
    return asyncio.ensure_future(batcher.recognise(owner, job, utterance, Options()))


def scene(batch, waiting, *, at_once=None):
    """Run `batch`; `waiting` arrives while it runs, and `at_once` must be answered before the batch ends."""
    model = Model()

    async def play():
        batcher = Batcher(model, limits=BatchLimits())
        model.between = batcher.cut_in
        async with asyncio.timeout(LIMIT_S):
            tasks = [ask(batcher, number, **fields) for number, fields in enumerate(batch)]
            await asyncio.sleep(0)
            batcher.start()
            assert await asyncio.to_thread(model.began.wait, LIMIT_S)
            tasks += [ask(batcher, len(batch) + number, **fields) for number, fields in enumerate(waiting)]
            while batcher.snapshot().queued_utterances != len(waiting):  # noqa: ASYNC110 - yields, never waits
                await asyncio.sleep(0)
            model.go_on.set()
            if at_once is not None:
                assert (await tasks[at_once]).recognition.text == str(at_once)
            model.end.set()
            await asyncio.gather(*tasks)
        assert batcher.stop(LIMIT_S)

    asyncio.run(play())
    return model.log


def test_a_short_utterance_of_another_job_does_not_wait_for_a_long_batch():
    """It is run between two layers, and its answer is there before the batch has ended."""
    log = scene([{"frames": 200}], [{"frames": 50, "job": 2}], at_once=1)
    assert log == [("begin", [0]), ("begin", [1]), ("end", [1]), ("end", [0])]


@pytest.mark.parametrize(
    ("batch", "waiting"),
    [
        ([{"frames": 200}], [{"frames": 101, "job": 2}]),
        ([{"frames": 200}], [{"frames": 50, "job": 1}]),
        ([{"frames": 100}, {"frames": 100, "job": 2}], [{"frames": 50, "job": 3}]),
    ],
    ids=["too-long", "same-job", "same-user-as-one-of-several-jobs"],
)
def test_others_wait_for_the_end_of_the_batch(batch, waiting):
    """What is more than half of it, of its job, or one of many requests of one user is the next batch."""
    numbers = list(range(len(batch)))
    assert scene(batch, waiting) == [
        ("begin", numbers),
        ("end", numbers),
        ("begin", [len(batch)]),
        ("end", [len(batch)]),
    ]


def test_another_user_cuts_in_on_several_jobs():
    """A crowd of one user's requests does not hold up the single one of another."""
    batch = [{"frames": 100}, {"frames": 100, "job": 2}]
    log = scene(batch, [{"frames": 50, "owner": 2, "job": 3}], at_once=2)
    assert log[1:3] == [("begin", [2]), ("end", [2])]


def test_all_that_cuts_in_is_no_more_than_half_of_the_batch():
    """So an endless row of short ones makes a batch half as long again, and not endless."""
    short = [{"frames": 40, "job": 2 + number} for number in range(4)]
    log = scene([{"frames": 200}], short)
    assert log[:6] == [
        ("begin", [0]),
        ("begin", [1]),
        ("end", [1]),
        ("begin", [2]),
        ("end", [2]),
        ("end", [0]),
    ]
    assert sorted(number for kind, batch in log[6:] if kind == "end" for number in batch) == [3, 4]


def test_one_that_does_not_fit_beside_the_batch_waits_for_its_end():
    """Memory that the batch holds is no failure of it, and says nothing about how large batches may be."""
    model, depth = Model(), []

    def scarce(batch):
        depth.append(1)
        try:
            if len(depth) > 1:
                raise OutOfMemory("the batch holds it")
            return model(batch)
        finally:
            depth.pop()

    async def play():
        limits = BatchLimits()
        batcher = Batcher(scarce, limits=limits)
        model.between = batcher.cut_in
        async with asyncio.timeout(LIMIT_S):
            long = ask(batcher, 0, frames=200)
            await asyncio.sleep(0)
            batcher.start()
            assert await asyncio.to_thread(model.began.wait, LIMIT_S)
            short = [ask(batcher, number, frames=20, job=2) for number in (1, 2)]
            await asyncio.sleep(0)
            model.go_on.set()
            model.end.set()
            assert [(await task).recognition.text for task in (long, *short)] == ["0", "1", "2"]
        said = batcher.snapshot()
        assert (said.failed_utterances, said.max_batch_frames) == (0, limits.max_batch_frames)
        assert (said.queued_utterances, said.utterances) == (0, 3)
        assert batcher.stop(LIMIT_S)

    asyncio.run(play())
    assert model.log[2:] == [("begin", [1, 2]), ("end", [1, 2])]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("_waiting", "first"),
        ("_waiting", "take"),
        ("_runner", "squeeze_in"),
        ("_runner", "_count"),
        (None, "_to_loop"),
    ],
)
def test_a_lack_of_memory_around_it_costs_neither(monkeypatch, owner, name):
    """The batch is not divided for it, and what would have cut in is answered, if only in the next batch."""
    model, lacked, depth = Model(), [], []

    def between(batcher):
        depth.append(1)
        try:
            batcher.cut_in()
        finally:
            depth.pop()

    async def play():
        batcher = Batcher(model, limits=BatchLimits())
        model.between = lambda: between(batcher)
        holder = batcher if owner is None else getattr(batcher, owner)
        real = getattr(holder, name)

        def lacking(*args, **options):
            if depth and not lacked:
                lacked.append(name)
                raise MemoryError
            return real(*args, **options)

        monkeypatch.setattr(holder, name, lacking)
        async with asyncio.timeout(LIMIT_S):
            tasks = [ask(batcher, 0, frames=200)]
            await asyncio.sleep(0)
            batcher.start()
            assert await asyncio.to_thread(model.began.wait, LIMIT_S)
            tasks.append(ask(batcher, 1, frames=50, job=2))
            await asyncio.sleep(0)
            model.go_on.set()
            model.end.set()
            assert [(await task).recognition.text for task in tasks] == ["0", "1"]
        said = batcher.snapshot()
        assert (said.queued_utterances, said.failed_utterances, said.out_of_memory_splits) == (0, 0, 0)
        assert batcher.stop(LIMIT_S)

    asyncio.run(play())
    assert lacked
    assert [names for kind, names in model.log if kind == "begin"].count([0]) == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_neither_batch_notices_the_other(precision):
    """With the demo model, to the bit: what is run in the middle of another batch, and that batch."""
    engine = TorchEngine.load(find_asr("demo", DEMO_DIR), device="cpu", precision=precision, threads=1)
    assert isinstance(engine, Layered)
    random = torch.Generator().manual_seed(1)
    dim = engine.info.feature_dim

    def work(frames):
        features = torch.randn(frames, dim, generator=random).numpy().tobytes()
        return Utterance(0, 0.0, frames * 0.06, features, frames, dim), Options()

    long, short = [work(300), work(120)], [work(50)]
    alone = engine.run(long), engine.run(short)
    inner = []

    def between():
        engine.between_layers(lambda: None)
        inner.append(engine.run(short))
        engine.between_layers(between)

    engine.between_layers(between)
    assert engine.run(long) == alone[0]
    assert len(inner) > 2
    assert all(found == alone[1] for found in inner)
