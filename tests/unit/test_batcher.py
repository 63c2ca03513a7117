"""The batcher with a fake model: gates decide what runs when, so nothing here depends on speed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from sensevoiced.config import BatchLimits
from sensevoiced.engine.batcher import Batcher, OutOfMemory
from sensevoiced.engine.runner import RECOVER_BATCHES
from sensevoiced.jobs import JobError, Options, Recognised, Recognition, Utterance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LIMIT_S = 30.0
"""A test that hangs is a failure, not a wait for ever."""


def utterance(index: int, frames: int = 10) -> Utterance:
    """Make an utterance that is known by its index."""
    return Utterance(index, 0.0, frames * 0.06, b"", frames, 0)


def answer(work: tuple[Utterance, Options]) -> Recognition:
    """Give what the fake model says of an utterance."""
    return Recognition(
        "zh",
        1.0,
        "NEUTRAL",
        1.0,
        "Speech",
        1.0,
        itn=True,
        text=f"text {work[0].index}",
        raw="",
        richtext_s=2.0,
    )


@dataclass
class FakeModel:
    """Answers by index, notes every batch, and waits at `gate` while that is closed."""

    batches: list[list[int]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    fits: int = 1_000
    fatal: frozenset[int] = frozenset()
    error: Callable[[], BaseException] = lambda: ValueError("not for me")

    def __call__(self, batch):
        self.entered.release()
        assert self.gate.wait(LIMIT_S)
        self.batches.append([work[0].index for work in batch])
        if len(batch) > self.fits:
            raise OutOfMemory
        if any(work[0].index in self.fatal for work in batch):
            raise self.error()
        return [answer(work) for work in batch]

    async def running(self) -> None:
        """Wait until the engine thread is inside a batch."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=LIMIT_S)


@contextlib.asynccontextmanager
async def batching(model: FakeModel, limits: BatchLimits | None = None) -> AsyncIterator[Batcher]:
    """Start a batcher, and stop it whatever the test did."""
    batcher = Batcher(model, limits=limits or BatchLimits())
    batcher.start()
    try:
        async with asyncio.timeout(LIMIT_S):
            yield batcher
    finally:
        model.gate.set()
        assert batcher.stop(LIMIT_S)


def ask(
    batcher: Batcher, index: int, *, owner: int = 1_000, job: int = 1, frames: int = 10
) -> asyncio.Task[Recognised]:
    """Begin to wait for one utterance."""
    return asyncio.ensure_future(batcher.recognise(owner, job, utterance(index, frames), Options()))


async def queued(batcher: Batcher, count: int) -> None:
    """Let the tasks just made run until `count` utterances are queued."""
    while batcher.snapshot().queued_utterances != count:  # noqa: ASYNC110 - yields, never waits
        await asyncio.sleep(0)


async def busy(batcher: Batcher, model: FakeModel) -> asyncio.Task[Recognised]:
    """Occupy the engine with utterance 0 of a job of its own."""
    first = ask(batcher, 0, job=99)
    await model.running()
    return first


def outcome(task: asyncio.Task[Recognised]) -> str:
    """Give a finished task's text, or the code of its error."""
    error = task.exception()
    return error.code if isinstance(error, JobError) else task.result().recognition.text


def test_an_idle_engine_starts_at_once_and_what_arrives_meanwhile_is_the_next_batch():
    """The first utterance runs alone; the five that came while it ran are one batch."""
    model = FakeModel()

    async def scene() -> list[str]:
        async with batching(model) as batcher:
            first = await busy(batcher, model)
            rest = [ask(batcher, i) for i in range(1, 6)]
            await queued(batcher, 5)
            model.gate.set()
            return [result.recognition.text for result in await asyncio.gather(first, *rest)]

    assert asyncio.run(scene()) == [f"text {i}" for i in range(6)]
    assert model.batches == [[0], [1, 2, 3, 4, 5]]


def test_jobs_take_turns_with_one_utterance_each():
    """A job of many utterances does not keep a job of one waiting."""
    model = FakeModel()

    async def scene() -> None:
        async with batching(model, BatchLimits(max_batch_utterances=3)) as batcher:
            tasks = [await busy(batcher, model)]
            tasks += [ask(batcher, i, job=1) for i in range(10, 15)]
            tasks += [ask(batcher, 20, job=2), ask(batcher, 30, job=3), ask(batcher, 31, job=3)]
            await queued(batcher, 8)
            model.gate.set()
            await asyncio.gather(*tasks)

    asyncio.run(scene())
    assert model.batches == [[0], [10, 20, 30], [11, 31, 12], [13, 14]]


def test_a_batch_stays_within_its_frames_and_its_attention():
    """Neither the lengths nor their squares add up past their cap, and what does not fit stays first."""

    async def scene(limits: BatchLimits) -> list[list[int]]:
        model = FakeModel()
        async with batching(model, limits) as batcher:
            tasks = [await busy(batcher, model)]
            tasks += [
                ask(batcher, i, job=i, frames=frames) for i, frames in enumerate((40, 50, 60, 5, 200, 5), 1)
            ]
            await queued(batcher, 6)
            model.gate.set()
            await asyncio.gather(*tasks)
            return model.batches

    assert asyncio.run(scene(BatchLimits(max_batch_frames=100))) == [[0], [1, 2], [3, 4], [5], [6]]
    assert asyncio.run(scene(BatchLimits(max_batch_attention=2_500))) == [[0], [1], [2], [3], [4], [5], [6]]


def test_cancelling_a_waiter_drops_its_queued_utterance():
    """A cancelled utterance that was queued never reaches the model, and its neighbours do."""
    model = FakeModel()

    async def scene() -> None:
        async with batching(model) as batcher:
            first = await busy(batcher, model)
            tasks = [ask(batcher, i) for i in (1, 2, 3)]
            await queued(batcher, 3)
            tasks[1].cancel()
            await queued(batcher, 2)
            model.gate.set()
            await asyncio.gather(first, tasks[0], tasks[2])
            assert tasks[1].cancelled()

    asyncio.run(scene())
    assert model.batches == [[0], [1, 3]]


def test_out_of_memory_divides_the_batch_with_the_same_results():
    """A batch that does not fit is halved until it does, and every utterance gets its own answer."""
    model = FakeModel(fits=2)

    async def scene() -> list[str]:
        async with batching(model) as batcher:
            tasks = [await busy(batcher, model)] + [ask(batcher, i) for i in range(1, 8)]
            await queued(batcher, 7)
            model.gate.set()
            texts = [result.recognition.text for result in await asyncio.gather(*tasks)]
            assert batcher.snapshot().out_of_memory_splits == 3
            return texts

    assert asyncio.run(scene()) == [f"text {i}" for i in range(8)]
    assert model.batches == [[0], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3], [1], [2, 3], [4, 5, 6, 7], [4, 5], [6, 7]]


def test_out_of_memory_lowers_the_cap_of_later_batches():
    """After a failure at 80 frames, batches hold at most 40."""
    model = FakeModel(fits=4)

    async def scene() -> None:
        async with batching(model) as batcher:
            tasks = [await busy(batcher, model)] + [ask(batcher, i) for i in range(1, 9)]
            await queued(batcher, 8)
            model.gate.set()
            await asyncio.gather(*tasks)
            model.gate.clear()
            while model.entered.acquire(blocking=False):
                pass  # what the first round left: the next wait is for the next batch
            tasks = [await busy(batcher, model)] + [ask(batcher, i) for i in range(11, 17)]
            await queued(batcher, 6)
            model.gate.set()
            await asyncio.gather(*tasks)

    asyncio.run(scene())
    assert model.batches[:4] == [[0], [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert model.batches[4:] == [[0], [11, 12, 13, 14], [15, 16]]


def test_an_utterance_that_never_fits_fails_alone_and_the_batcher_goes_on():
    """Always out of memory: each utterance gets `internal`, and the next that fits is recognised."""
    model = FakeModel(fits=0)

    async def scene() -> None:
        async with batching(model) as batcher:
            tasks = [await busy(batcher, model)] + [ask(batcher, i) for i in (1, 2, 3)]
            await queued(batcher, 3)
            model.gate.set()
            await asyncio.wait(tasks)
            assert [outcome(task) for task in tasks] == ["internal"] * 4
            assert batcher.snapshot().failed_in_a_row == 4
            model.fits = 1
            assert (await ask(batcher, 5)).recognition.text == "text 5"
            assert batcher.snapshot().failed_in_a_row == 0
            assert batcher.snapshot().failed_utterances == 4

    asyncio.run(scene())


@pytest.mark.parametrize(
    "error", [ValueError, lambda: JobError("bad_input", "no"), lambda: RuntimeError("x" * 10)]
)
def test_only_the_utterance_at_fault_fails(error):
    """A batch that raises is tried again one by one, so its other utterances are recognised."""
    model = FakeModel(fatal=frozenset({2}), error=error)

    async def scene() -> list[str]:
        async with batching(model) as batcher:
            tasks = [await busy(batcher, model)] + [ask(batcher, i) for i in (1, 2, 3)]
            await queued(batcher, 3)
            model.gate.set()
            await asyncio.wait(tasks)
            return [outcome(task) for task in tasks]

    code = "bad_input" if isinstance(error(), JobError) else "internal"
    assert asyncio.run(scene()) == ["text 0", "text 1", code, "text 3"]
    assert model.batches == [[0], [1, 2, 3], [1], [2], [3]]


def test_a_model_that_answers_too_few_is_an_error_not_a_mix_up():
    """Fewer results than utterances fail as an exception does, instead of shifting answers to neighbours."""

    async def scene() -> list[str]:
        batcher = Batcher(lambda batch: [], limits=BatchLimits())
        batcher.start()
        task = ask(batcher, 1)
        await asyncio.wait([task])
        assert batcher.stop(LIMIT_S)
        return [outcome(task)]

    assert asyncio.run(scene()) == ["internal"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lost_engine_thread_fails_its_waiters_and_refuses_others():
    """When the thread itself ends, nobody waits for ever."""
    model = FakeModel(fatal=frozenset({1}), error=SystemExit)
    model.gate.set()

    async def scene() -> None:
        async with batching(model) as batcher:
            task = ask(batcher, 1)
            await asyncio.wait([task])
            assert outcome(task) == "internal"
            with pytest.raises(JobError, match="engine thread"):
                await batcher.recognise(1_000, 1, utterance(2), Options())

    asyncio.run(scene())


def test_stop_fails_what_is_left_and_says_whether_the_thread_has_ended():
    """Stop answers all waiters with `shutting_down`, and reports a batch that is still running."""
    model = FakeModel()

    async def scene() -> None:
        async with batching(model) as batcher:
            tasks = [await busy(batcher, model), ask(batcher, 1)]
            await queued(batcher, 1)
            calling = asyncio.ensure_future(batcher.call(lambda: "never"))
            await asyncio.sleep(0)
            assert not batcher.stop(0.0)
            await asyncio.wait([*tasks, calling])
            assert [outcome(task) for task in tasks] == ["shutting_down"] * 2
            assert isinstance(calling.exception(), JobError)
            with pytest.raises(JobError):
                await batcher.recognise(1_000, 1, utterance(2), Options())
            with pytest.raises(JobError):
                await batcher.call(lambda: None)

    asyncio.run(scene())
    assert model.batches == [[0]]


def test_calls_run_on_the_engine_thread_before_waiting_batches():
    """A call runs where batches run, goes before them, and hands back its result or its exception."""
    model = FakeModel()
    seen: list[object] = []

    def note() -> str:
        seen.append((threading.current_thread().name, list(model.batches)))
        return "done"

    def fail() -> None:
        raise KeyError("here")

    async def scene() -> None:
        async with batching(model) as batcher:
            first = await busy(batcher, model)
            waiting = ask(batcher, 1)
            await queued(batcher, 1)
            calls = asyncio.gather(batcher.call(note), batcher.call(fail), return_exceptions=True)
            await asyncio.sleep(0)
            model.gate.set()
            results = await calls
            assert results[0] == "done"
            assert isinstance(results[1], KeyError)
            await asyncio.gather(first, waiting)

    asyncio.run(scene())
    assert seen == [("engine", [[0]])]


def test_the_snapshot_counts_what_waits_and_what_is_done():
    """Queue, running batch and totals are what happened."""
    model = FakeModel()

    async def scene() -> None:
        async with batching(model) as batcher:
            assert batcher.snapshot().oldest_batch_age_s == 0.0
            tasks = [await busy(batcher, model)] + [ask(batcher, i, frames=50) for i in (1, 2, 3)]
            await queued(batcher, 3)
            during = batcher.snapshot()
            assert (during.queued_utterances, during.running_utterances) == (3, 1)
            assert during.queued_audio_s == pytest.approx(9.0)
            assert during.oldest_batch_age_s > 0
            model.gate.set()
            await asyncio.gather(*tasks)
            after = batcher.snapshot()
            assert (after.batches, after.utterances, after.mean_batch_size) == (2, 4, 2.0)
            assert (after.queued_utterances, after.queued_audio_s) == (0, 0)

    asyncio.run(scene())


def test_a_cap_that_suits_the_device_bounds_batches_and_is_not_outgrown():
    """The device's cap holds from the first batch on, and recovering from a lack of memory stops there."""
    model = FakeModel()

    async def scene() -> None:
        async with batching(model, BatchLimits(max_batch_frames=1_000)) as batcher:
            batcher.cap_frames(25)
            assert batcher.snapshot().max_batch_frames == 25
            tasks = [await busy(batcher, model)] + [ask(batcher, i, job=i) for i in range(1, 6)]
            await queued(batcher, 5)
            model.gate.set()
            await asyncio.gather(*tasks)
            for _ in range(RECOVER_BATCHES):
                await ask(batcher, 9)
            assert batcher.snapshot().max_batch_frames == 25

    asyncio.run(scene())
    assert model.batches[:4] == [[0], [1, 2], [3, 4], [5]]


def test_users_come_before_jobs():
    """One user's three jobs share half of the engine, and the other user's one job has the other half."""
    model = FakeModel()

    async def scene() -> None:
        async with batching(model, BatchLimits(max_batch_utterances=2)) as batcher:
            tasks = [await busy(batcher, model)]
            tasks += [ask(batcher, 10 * job + i, owner=1, job=job) for job in (1, 2, 3) for i in range(2)]
            tasks += [ask(batcher, 40 + i, owner=2, job=4) for i in range(6)]
            await queued(batcher, 12)
            model.gate.set()
            await asyncio.gather(*tasks)

    asyncio.run(scene())
    assert model.batches == [[0], [10, 40], [20, 41], [30, 42], [11, 43], [21, 44], [31, 45]]


def test_a_recognition_says_when_its_batch_ran():
    """Beginning, end of the network and end of the texts are those of the whole batch."""
    model = FakeModel()

    async def scene() -> list[Recognised]:
        async with batching(model) as batcher:
            before_s = time.monotonic()
            first = await busy(batcher, model)
            rest = [ask(batcher, i) for i in (1, 2)]
            await queued(batcher, 2)
            model.gate.set()
            found = await asyncio.gather(first, *rest)
            assert before_s <= found[0].began_s <= found[0].ended_s <= found[1].began_s
            assert found[1].ended_s <= time.monotonic()
            return found

    alone, one, other = asyncio.run(scene())
    assert alone.ended_s - alone.texts_s == pytest.approx(2.0)
    assert (one.began_s, one.texts_s, one.ended_s) == (other.began_s, other.texts_s, other.ended_s)
    assert one.ended_s - one.texts_s == pytest.approx(4.0)


@pytest.mark.parametrize("where", ["a batch is answered", "it waits for work"])
def test_the_engine_thread_outlives_a_lack_of_memory(monkeypatch, where):
    """The few bytes around a batch are tried for again: everybody is answered, also those who come later."""
    model, lacks = FakeModel(), []
    model.gate.set()

    def lacking(real):
        def function(*args):
            if threading.current_thread().name == "engine" and not lacks:
                lacks.append(args)
                raise MemoryError
            return real(*args)

        return function

    async def scene():
        async with batching(model) as batcher:
            await ask(batcher, 0)
            if where == "a batch is answered":
                loop = asyncio.get_running_loop()
                monkeypatch.setattr(loop, "call_soon_threadsafe", lacking(loop.call_soon_threadsafe))
            else:
                monkeypatch.setattr(threading, "_allocate_lock", lacking(threading._allocate_lock))
            assert [(await ask(batcher, n)).recognition.text for n in (1, 2, 3)] == [
                "text 1",
                "text 2",
                "text 3",
            ]
            assert not batcher.snapshot().ended

    asyncio.run(scene())
    assert lacks


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_thread_that_ends_is_told_of(monkeypatch):
    """Who waits is refused, and so is who comes; an end that was asked for is none to tell of."""
    model = FakeModel()
    model.gate.set()

    def broken(**_):
        raise MemoryError

    async def scene():
        async with batching(model) as batcher:
            await ask(batcher, 0)
            assert not batcher.snapshot().ended
            monkeypatch.setattr(batcher._waiting, "take", broken)
            tasks = [ask(batcher, 1)]
            await asyncio.wait(tasks)
            tasks.append(ask(batcher, 2))
            await asyncio.wait(tasks)
            assert [outcome(task) for task in tasks] == ["internal"] * 2
            assert batcher.snapshot().ended
        assert not batcher.snapshot().ended

    asyncio.run(scene())
