"""Whose utterance is next: everybody's turn comes, and comes soon."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sensevoiced.engine.turns import MAX_PASSES, MAX_REMEMBERED, Line, Turns

NO_CAP = 10**9


@dataclass(frozen=True, eq=False)
class Item:
    job: int
    frames: int = 10
    owner: int = 1


def take(turns, *, utterances=1, frames=NO_CAP):
    """The jobs of the next batch."""
    return [item.job for item in turns.take(utterances=utterances, frames=frames, attention=NO_CAP)]


def filled(*items):
    """Turns with these items."""
    turns = Turns()
    for item in items:
        turns.put(item)
    return turns


def test_a_new_job_overtakes_all_that_have_been_served():
    """A long job's next utterances wait for a new job's first, however many of them there are."""
    turns = filled(*[Item(job, 250) for job in (1, 2, 3) for _ in range(8)])
    assert take(turns, utterances=4) == [1, 2, 3, 1]
    turns.put(Item(9, 83))
    assert take(turns, utterances=2) == [9, 2]


def test_a_short_job_is_finished_before_a_long_one_goes_on():
    """What a new job asks for goes first until it has had as much as the long job's last utterance."""
    turns = filled(*[Item(1, 250) for _ in range(8)])
    assert take(turns) == [1]
    for _ in range(3):
        turns.put(Item(2, 83))
    assert take(turns, utterances=6) == [2, 2, 2, 1, 1, 1]


def test_an_account_outlives_an_empty_queue():
    """A long job that has nothing queued for a moment does not come back as a new one."""
    turns = filled(Item(1, 250))
    assert take(turns) == [1]
    turns.put(Item(1, 250))
    turns.put(Item(2, 83))
    assert take(turns, utterances=2) == [2, 1]


def test_nothing_is_saved_up_by_staying_away():
    """A user who comes back leads by one utterance, not by all that the other had meanwhile."""
    turns = filled(Item(1, 100, owner=1), *[Item(2, 100, owner=2) for _ in range(40)])
    take(turns, utterances=31)
    for _ in range(10):
        turns.put(Item(1, 100, owner=1))
    assert take(turns, utterances=6) == [1, 1, 2, 1, 2, 1]


def test_users_share_the_engine_by_time_not_by_requests():
    """Whoever sends many jobs, or long utterances, gets no more of the engine than the other."""
    turns = filled(
        *[Item(job, 40, owner=1) for job in range(1_000, 1_300)],
        *[Item(7, 400, owner=2) for _ in range(30)],
    )
    had = Counter()
    for _ in range(200):
        for item in turns.take(utterances=1, frames=NO_CAP, attention=NO_CAP):
            had[item.owner] += item.frames
            assert abs(had[1] - had[2]) <= 400 + 1


def test_a_batch_of_several_jobs_is_not_filled_by_one():
    """While others wait one job has half of a batch; alone it has all of it."""
    turns = filled(*[Item(1, 20) for _ in range(20)], Item(2, 10))
    assert take(turns, utterances=64, frames=100) == [1, 2, 1]
    assert take(turns, utterances=64, frames=100) == [1, 1, 1, 1, 1]


def test_a_long_utterance_does_not_ride_with_a_short_request():
    """What is more than half of a batch runs in a batch that it begins, and delays no one who was first."""
    turns = filled(*[Item(1, 80) for _ in range(4)])
    assert take(turns, frames=100) == [1]
    turns.put(Item(2, 10))
    assert [take(turns, utterances=64, frames=100) for _ in range(2)] == [[2], [1]]


def test_an_endless_stream_of_new_jobs_does_not_stop_a_long_one():
    """The long job has one utterance in MAX_PASSES + 1."""
    turns = filled(Item(0, 250), Item(0, 250), Item(0, 250), Item(0, 250))
    served = []
    for number in range(1, 100):
        turns.put(Item(number, 83))
        served += take(turns)
    turns_of_0 = [place for place, job in enumerate(served) if job == 0]
    assert turns_of_0[0] == 0
    assert [later - before for before, later in pairwise(turns_of_0)] == [MAX_PASSES + 1] * 3


def test_accounts_of_the_past_are_forgotten():
    """Neither jobs nor users that came once are kept for ever."""
    turns = Turns()
    for number in range(3 * MAX_REMEMBERED):
        turns.put(Item(number, 83, owner=number % (2 * MAX_REMEMBERED)))
        assert len(take(turns)) == 1
    assert len(turns._jobs) <= MAX_REMEMBERED + 1
    assert len(turns._users._away) <= MAX_REMEMBERED
    for number in range(3 * MAX_REMEMBERED):
        turns.put(Item(number, 83))
        assert take(turns) == [number]
    assert len(turns._jobs[1]._away) <= MAX_REMEMBERED


def test_dropping_an_item_that_is_not_queued_changes_nothing():
    """Turns.drop is safe for what was already taken, and an emptied job leaves the line."""
    turns = Turns()
    one, two = Item(1), Item(2)
    turns.put(one)
    turns.drop(two)
    turns.drop(one)
    turns.drop(one)
    assert not turns
    turns.put(two)
    assert turns.take(utterances=8, frames=0, attention=0) == [two]
    assert not turns


JOBS = st.integers(0, 11)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), JOBS, st.integers(1, 500)),
        st.tuples(st.just("new"), st.integers(1, 4), st.integers(1, 500)),
        st.tuples(st.just("stream"), st.integers(1, 60), st.integers(1, 500)),
        st.tuples(st.just("take"), st.integers(1, 4), st.integers(1, 1_000)),
        st.tuples(st.just("drop"), JOBS, st.just(0)),
    ),
    max_size=60,
)


def most_passes(length):
    """How many turns of others go before one's own, at most, in a line that was never longer than this."""
    return max(MAX_PASSES, 2 * length) + length - 1 if length > 1 else 0


class Watched:
    """Turns, and beside them what ought to be queued and how often each waiting job was passed by."""

    def __init__(self):
        self.turns = Turns()
        self.queued = {}
        self.passed = Counter()
        self.most_users = self.most_jobs = 0

    def put(self, item):
        self.turns.put(item)
        self.queued.setdefault(item.job, deque()).append(item)
        jobs = Counter(queue[0].owner for queue in self.queued.values())
        self.most_users = max(self.most_users, len(jobs))
        self.most_jobs = max(self.most_jobs, *jobs.values())

    def took(self, job):
        self.queued[job].popleft()
        self.passed[job] = 0
        if not self.queued[job]:
            del self.queued[job]
        for other in self.queued:
            self.passed[other] += other != job

    def take(self, utterances, frames):
        waiting = bool(self.queued)
        before = set(self.queued)
        batch = self.turns.take(utterances=utterances, frames=frames, attention=frames * 100)
        assert bool(batch) == waiting
        of_job = Counter()
        for item in batch:
            assert self.queued[item.job][0] is item, "in the job's own order"
            self.took(item.job)
            of_job[item.job] += item.frames
        assert len(batch) <= utterances
        if len(batch) > 1:
            assert of_job.total() <= frames
            assert sum(item.frames**2 for item in batch) <= frames * 100
        if len(before) > 1:
            count = Counter(item.job for item in batch)
            for job, total in of_job.items():
                assert total <= frames // 2 or (count[job] == 1 and job == batch[0].job)
        assert set(self.turns) == {item for queue in self.queued.values() for item in queue}

    @property
    def bound(self):
        """Most utterances of others that may go before a waiting job's head.

        A job waits for turns of its user's other jobs, and for each of these and its own one its user waits
        for turns of other users.
        """
        jobs, users = most_passes(self.most_jobs), most_passes(self.most_users)
        return jobs + (jobs + 1) * users


@given(users=st.integers(1, 3), steps=STEPS)
def test_everything_is_taken_and_nobody_is_passed_by_for_ever(users, steps):
    """Whatever comes and goes: caps hold, nothing is lost or doubled, and nobody starves."""
    watched, number = Watched(), 100
    for step, which, size in steps:
        if step == "put":
            watched.put(Item(which, size, owner=which % users))
        elif step == "new":
            for _ in range(which):
                number += 1
                watched.put(Item(number, size, owner=number % users))
        elif step == "stream":
            for _ in range(which):
                number += 1
                watched.put(Item(number, size, owner=number % users))
                watched.take(1, size)
        elif step == "take":
            watched.take(which, size)
        elif which in watched.queued:
            item = watched.queued[which].pop()
            if not watched.queued[which]:
                del watched.queued[which]
                watched.passed[which] = 0
            watched.turns.drop(item)
        assert max(watched.passed.values(), default=0) <= watched.bound
    while watched.queued:
        watched.take(4, 600)
        assert max(watched.passed.values(), default=0) <= watched.bound
    assert not watched.turns


@given(steps=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 500)), min_size=80, max_size=120))
def test_in_a_line_nobody_is_passed_more_often_than_promised(steps):
    """Numbers below 3 join; 3 lets a newcomer join, and then one is served and leaves if it is a newcomer."""
    line, passed, newcomer, longest = Line(), Counter(), 10, 0
    for key, frames in steps:
        if key < 3:
            line.join(key)
            passed[key] += 0
            continue
        newcomer += 1
        line.join(newcomer)
        longest = max(longest, len(line))
        turn = line.next()
        line.serve(turn, frames)
        passed.update({*passed, newcomer} - {turn})
        passed[turn] = 0
        if turn > 3:
            line.leave(turn)
            del passed[turn]
        assert all(often <= most_passes(longest) for often in passed.values())
