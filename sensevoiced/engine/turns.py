"""The order in which utterances are served: whoever has had least is next; never a thread or lock."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PASSES = 16
"""How often others may go before one who waits, who then is next; in a longer line, twice its length. Without
it an endless stream of new jobs, which all come with nothing on their account, would keep a long one waiting
for ever; with it sixteen short requests for one utterance of a long job are the worst."""
MAX_REMEMBERED = 1_024
"""Accounts kept of those who want nothing just now, a job between two utterances or a user between two
requests: far more than there are jobs at a time."""


class Queued(Protocol):
    """What can be queued: it belongs to a job, the job to a user, and it has a size in frames."""

    @property
    def owner(self) -> int:
        """Whose job it is."""

    @property
    def job(self) -> int:
        """Which job it is of, unique over all owners."""

    @property
    def frames(self) -> int:
        """LFR frames of the utterance."""


_Q = TypeVar("_Q", bound=Queued)


@dataclass(slots=True)
class _Account:
    had: int
    """Frames served, counted from the line's floor at its beginning."""
    since: int = 0
    """The line's turn since which its holder waits."""


class Line:
    """Those who wait for a turn, each with an account of the frames that it has had.

    The least account is next, and among equal ones who has waited longest. A newcomer begins just below the
    account of whoever was served last, so it goes before all who have had more: it neither waits for them nor
    can it save up for later what it did not use. Every turn costs the frames taken in it.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._waiting: dict[int, _Account] = {}
        """In the order of `since`."""
        self._away: dict[int, _Account] = {}
        self._floor = 0
        self._turn = 0

    def __bool__(self) -> bool:
        """Say whether anybody waits."""
        return bool(self._waiting)

    def __len__(self) -> int:
        """Count those who wait."""
        return len(self._waiting)

    def knows(self, key: int) -> bool:
        """Say whether there is an account of `key`."""
        return key in self._waiting or key in self._away

    def join(self, key: int) -> None:
        """Wait for a turn; who waits already keeps its place."""
        if key in self._waiting:
            return
        # A frame below, so that who has had exactly as much as the last one served does not go first.
        account = self._away.pop(key, None) or _Account(self._floor - 1)
        account.had = max(account.had, self._floor - 1)
        account.since = self._turn
        self._waiting[key] = account

    def leave(self, key: int) -> None:
        """Want nothing for now; the account is kept while it is above a newcomer's."""
        self._away[key] = self._waiting.pop(key)
        for absent in [absent for absent, account in self._away.items() if account.had < self._floor]:
            del self._away[absent]
        if len(self._away) > MAX_REMEMBERED:
            del self._away[next(iter(self._away))]

    def next(self) -> int:
        """Give the one whose turn it is; somebody has to wait."""
        longest = next(iter(self._waiting))
        # Among n equals everybody waits for n turns anyway: only beyond that is anybody passed over.
        if self._turn - self._waiting[longest].since >= max(MAX_PASSES, 2 * len(self._waiting)):
            return longest
        return min(self._waiting, key=lambda key: self._waiting[key].had)

    def serve(self, key: int, frames: int) -> None:
        """Take a turn: charge `key` for it, and let it wait anew."""
        self._floor = max(self._floor, min(account.had for account in self._waiting.values()))
        self._turn += 1
        account = self._waiting.pop(key)
        account.had += frames
        account.since = self._turn
        self._waiting[key] = account


class Turns(Generic[_Q]):
    """A queue for each job. Users take turns by what they have had, and so do the jobs of each."""

    def __init__(self) -> None:
        """Begin empty."""
        self._queues: dict[int, deque[_Q]] = {}
        """By job; none is empty."""
        self._users = Line()
        self._jobs: dict[int, Line] = {}
        """By user."""
        self._frames: Counter[int] = Counter()
        """Queued, by user."""

    def __iter__(self) -> Iterator[_Q]:
        """Iterate over everything queued, job by job."""
        for queue in self._queues.values():
            yield from queue

    def __bool__(self) -> bool:
        """Say whether anything is queued."""
        return bool(self._queues)

    def put(self, item: _Q) -> None:
        """Queue an item behind the others of its job."""
        self._queues.setdefault(item.job, deque()).append(item)
        self._wants(item)

    def put_back(self, item: _Q) -> None:
        """Queue an item that was taken in vain before the others of its job."""
        self._queues.setdefault(item.job, deque()).appendleft(item)
        self._wants(item)

    def _wants(self, item: _Q) -> None:
        self._frames[item.owner] += item.frames
        self._jobs.setdefault(item.owner, Line()).join(item.job)
        self._users.join(item.owner)

    def drop(self, item: _Q) -> None:
        """Take an item out wherever it stands; one that is not queued is no error."""
        queue = self._queues.get(item.job)
        if queue is not None and item in queue:
            queue.remove(item)
            self._gone(item)

    def first(self) -> _Q | None:
        """Give the item whose turn it is, which stays queued; None where there is none."""
        if not self._queues:
            return None
        return self._queues[self._jobs[self._users.next()].next()][0]

    def take(self, *, utterances: int, frames: int, attention: int) -> list[_Q]:
        """Take the next batch: whose turn it is, one after another, within the caps; at least one item.

        `frames` caps the sum of lengths (the linear layers), `attention` the sum of their squares. While
        other jobs wait or are in the batch, one job fills at most half of it, or begins it with one utterance
        of any size. And a batch that begins with a user who has no more than a batch waiting is not filled up
        with one who has: it takes as long as if that one were not there. The first item that would cross a
        cap ends the batch and stays first in line: a smaller one behind it must not overtake it for ever.
        """
        batch: list[_Q] = []
        of_job: Counter[int] = Counter()
        squares = 0
        brief = False
        while self._queues and len(batch) < utterances:
            owner = self._users.next()
            item = self._queues[self._jobs[owner].next()][0]
            of_job[item.job] += item.frames
            squares += item.frames**2
            heavy = self._frames[owner] > frames
            brief = not heavy if not batch else brief
            alone = len(self._queues.keys() | of_job.keys()) == 1
            if batch and (
                (brief and heavy)
                or of_job.total() > frames
                or squares > attention
                or (of_job[item.job] > frames // 2 and not alone)
            ):
                break
            batch.append(item)
            self._queues[item.job].popleft()
            self._jobs[owner].serve(item.job, item.frames)
            self._users.serve(owner, item.frames)
            self._gone(item)
        return batch

    def _gone(self, item: _Q) -> None:
        """Take a job whose queue is empty out of its line, and a user without such jobs out of theirs."""
        self._frames[item.owner] -= item.frames
        if self._queues[item.job]:
            return
        del self._queues[item.job]
        jobs = self._jobs[item.owner]
        jobs.leave(item.job)
        if not jobs:
            del self._frames[item.owner]
            self._users.leave(item.owner)
            for owner in [owner for owner in self._jobs if not self._users.knows(owner)]:
                del self._jobs[owner]
