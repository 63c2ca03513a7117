"""Front end and engine joined for one job."""

from __future__ import annotations

import asyncio
import time

import pytest
from harness.fakes import recognised

from sensevoiced.jobs import Decoded, JobError, Options, Recognised, Utterance
from sensevoiced.pipeline import Transcription

LAST_WORD = Decoded(9.5, truncated=True, decode_s=1.0, features_s=2.0, vad_s=3.0)


class Run:
    """A front end that gives one utterance a second, and counts what was asked of it."""

    def __init__(self, count, error=None):
        self.count, self.error = count, error
        self.given = 0
        self.closed = False
        self.decoded = None
        self.decoded_s = 0.0
        self.waits_for = ""
        self.begun_s = None

    def __aiter__(self):
        return self

    async def __anext__(self):
        self.begun_s = self.begun_s or time.monotonic()
        if self.given == self.count:
            if self.error is not None:
                raise self.error
            self.decoded = LAST_WORD
            raise StopAsyncIteration
        self.given += 1
        return Utterance(self.given - 1, self.given - 1.0, float(self.given), b"", 16, 1)

    async def aclose(self):
        self.closed = True


class Engine:
    """Recognises when told to, in any order."""

    def __init__(self):
        self.waiting = {}
        self.heard = []

    async def recognise(self, utterance):
        future = asyncio.get_running_loop().create_future()
        self.waiting[utterance.index] = future
        self.heard.append(utterance.index)
        return await future

    def answer(self, index):
        now_s = time.monotonic()
        found = recognised({"say": str(index)}, Options())
        self.waiting[index].set_result(Recognised(found, now_s, now_s, now_s))


async def settle():
    """Let every task go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


def join(run, engine, *, max_outstanding=8, on_progress=lambda _: None):
    """A job through these two."""
    return Transcription(run, engine.recognise, max_outstanding=max_outstanding, on_progress=on_progress)


def test_segments_come_in_order_whatever_the_order_of_the_answers():
    """The third utterance waits for the first, and the first does not wait for the third."""

    async def scenario():
        run, engine, behind = Run(3), Engine(), []
        transcription = join(run, engine, on_progress=behind.append)
        found = []

        async def collect():
            async for segment in transcription:
                line = (segment.index, segment.start_s, segment.end_s, segment.recognition.text)
                found.append(line)

        collecting = asyncio.create_task(collect())
        await settle()
        for index in (2, 0):
            engine.answer(index)
        await settle()
        assert found == [(0, 0.0, 1.0, "0")]
        engine.answer(1)
        await collecting
        assert found == [(0, 0.0, 1.0, "0"), (1, 1.0, 2.0, "1"), (2, 2.0, 3.0, "2")]
        assert transcription.decoded == LAST_WORD
        timings = transcription.timings
        assert (timings.decode_s, timings.fbank_s, timings.vad_s, timings.frontend_s) == (1.0, 2.0, 3.0, 6.0)
        assert timings.queued_s >= 0
        assert timings.wait_s > 0
        assert (sum(behind), transcription.recognised_s) == (9.5, 9.5)

    asyncio.run(scenario())


def test_a_job_never_has_more_at_the_engine_than_its_share():
    """The front end is not asked for more until a segment has been taken."""

    async def scenario():
        run, engine = Run(100), Engine()
        transcription = join(run, engine, max_outstanding=3)
        taking = asyncio.create_task(anext(aiter(transcription)))
        await settle()
        assert engine.heard == [0, 1, 2]
        assert run.given == 4
        for index in (0, 1, 2):
            engine.answer(index)
        await taking
        await settle()
        assert engine.heard == [0, 1, 2]  # the first is still with the client
        taking = asyncio.create_task(anext(aiter(transcription)))
        await settle()
        assert engine.heard == [0, 1, 2, 3]
        await taking
        await transcription.aclose()
        assert run.closed

    asyncio.run(scenario())


def test_what_was_recognised_before_the_recording_broke_is_delivered():
    """The front end's error comes after the segments that it gave."""

    async def scenario():
        run, engine = Run(2, JobError("too_long", "Too long.")), Engine()
        transcription = join(run, engine)
        found = []

        async def collect():
            async for segment in transcription:
                found.append(segment.index)  # noqa: PERF401 - looked at after a failure

        collecting = asyncio.create_task(collect())
        await settle()
        engine.answer(1)
        engine.answer(0)
        with pytest.raises(JobError, match="Too long"):
            await collecting
        assert found == [0, 1]

    asyncio.run(scenario())


def test_the_first_failure_is_the_jobs_and_the_others_are_silent():
    """Two failing utterances make one error, and no stray exception."""

    async def scenario():
        strays = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: strays.append(context))
        run, engine = Run(3), Engine()
        transcription = join(run, engine)
        collecting = asyncio.create_task(anext(aiter(transcription)))
        await settle()
        engine.waiting[1].set_exception(JobError("internal", "second"))
        engine.waiting[0].set_exception(JobError("internal", "first"))
        with pytest.raises(JobError, match="first"):
            await collecting
        await transcription.aclose()
        del transcription, collecting
        await settle()
        assert engine.waiting[2].cancelled()
        assert strays == []

    asyncio.run(scenario())


def test_f12_cancelling_takes_everything_back():
    """Waiting utterances are cancelled and the front end is closed."""

    async def scenario():
        run, engine = Run(100), Engine()
        transcription = join(run, engine, max_outstanding=4)
        taking = asyncio.create_task(anext(aiter(transcription)))
        await settle()
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        await transcription.aclose()
        assert all(future.cancelled() for future in engine.waiting.values())
        assert run.closed

    asyncio.run(scenario())


def test_closing_before_the_first_step_closes_the_front_end():
    """Even an untouched transcription gives its source back."""

    async def scenario():
        run = Run(1)
        await join(run, Engine()).aclose()
        assert run.closed
        assert run.given == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("turns", range(1, 6))
def test_a_close_that_is_cancelled_still_closes_the_front_end(turns):
    """A client that dies while its job is being ended cancels it a second time; nothing stays behind."""

    async def scene():
        run, engine = Run(3), Engine()
        transcription = join(run, engine)
        reading = asyncio.ensure_future(anext(transcription.__aiter__()))
        await settle()
        engine.answer(0)
        await reading
        closing = asyncio.ensure_future(transcription.aclose())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        await settle()
        assert run.closed

    asyncio.run(scene())
