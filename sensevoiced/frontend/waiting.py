"""Jobs that wait for a child: their owners take turns, and each owner's jobs come in their order.

Must never import numpy or torch.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sensevoiced.frontend.child import Child
    from sensevoiced.jobs import JobError


class Waiting:
    """The queue. `share(owner)`, asked where it matters, says how many children an owner may have now."""

    def __init__(self) -> None:
        """Begin empty."""
        self._queues: OrderedDict[int, deque[asyncio.Future[Child]]] = OrderedDict()
        """By owner, whose turn is next first."""

    def __len__(self) -> int:
        """Count the jobs."""
        self._tidy()
        return sum(map(len, self._queues.values()))

    def add(self, owner: int) -> asyncio.Future[Child]:
        """Queue a job at the end of its owner's; cancel the future to take it out."""
        future: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(owner, deque()).append(future)
        return future

    def next(self, share: Callable[[int], int]) -> tuple[int, asyncio.Future[Child]] | None:
        """Take out the job whose turn it is, with its owner; None where nobody may have a child.

        Whoever has fewest children goes first, so a newcomer waits for one to come free and no longer.
        """
        self._tidy()
        owner = max(self._queues, key=share, default=None)
        if owner is None or share(owner) <= 0:
            return None
        # To the end of the line, in a way that needs no memory: taken out, all of them could be lost.
        self._queues.move_to_end(owner)
        return owner, self._queues[owner].popleft()

    def wanted(self, share: Callable[[int], int]) -> int:
        """Count the children that those who wait may have."""
        self._tidy()
        return sum(max(0, min(len(queue), share(owner))) for owner, queue in self._queues.items())

    def refuse(self, error: Callable[[], JobError]) -> None:
        """Send everybody away."""
        self._tidy()
        queues, self._queues = self._queues, OrderedDict()
        for queue in queues.values():
            for future in queue:
                future.set_exception(error())

    def _tidy(self) -> None:
        # A job that is called off cancels its future, and wakes up only in the next turn of the loop.
        for owner, queue in list(self._queues.items()):
            left = deque(future for future in queue if not future.done())
            if left:
                self._queues[owner] = left
            else:
                del self._queues[owner]
