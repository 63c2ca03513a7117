"""The order in which utterances are served: jobs take turns, nothing is overtaken; never a thread or lock."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator


class Queued(Protocol):
    """What can be queued: it belongs to a job and has a size in frames."""

    @property
    def job(self) -> int:
        """Whose turn it uses."""

    @property
    def frames(self) -> int:
        """LFR frames of the utterance."""


_Q = TypeVar("_Q", bound=Queued)


class Turns(Generic[_Q]):
    """A queue for each job, and a line of jobs. Who has been served goes to the end of the line."""

    def __init__(self) -> None:
        """Begin empty."""
        self._line: OrderedDict[int, deque[_Q]] = OrderedDict()

    def __iter__(self) -> Iterator[_Q]:
        """Iterate over everything queued, job by job."""
        for queue in self._line.values():
            yield from queue

    def __bool__(self) -> bool:
        """Say whether anything is queued."""
        return bool(self._line)

    def put(self, item: _Q) -> None:
        """Queue an item behind the others of its job; a new job stands at the end of the line."""
        self._line.setdefault(item.job, deque()).append(item)

    def drop(self, item: _Q) -> None:
        """Take an item out wherever it stands; one that is not queued is no error."""
        queue = self._line.get(item.job)
        if queue is not None and item in queue:
            queue.remove(item)
            if not queue:
                del self._line[item.job]

    def take(self, *, utterances: int, frames: int, attention: int) -> list[_Q]:
        """Take the next batch: one item a job and turn, within the caps, but at least one whatever its size.

        `frames` caps the sum of lengths (the linear layers), `attention` the sum of their squares. The first
        item that would cross a cap ends the batch and stays first in line: a smaller one behind it must not
        overtake it for ever.
        """
        batch: list[_Q] = []
        sum_frames = sum_squares = 0
        while self._line and len(batch) < utterances:
            job, queue = next(iter(self._line.items()))
            sum_frames += queue[0].frames
            sum_squares += queue[0].frames ** 2
            if batch and (sum_frames > frames or sum_squares > attention):
                break
            batch.append(queue.popleft())
            if queue:
                self._line.move_to_end(job)
            else:
                del self._line[job]
        return batch
