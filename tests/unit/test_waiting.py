"""Who gets the next child of the front end."""

from __future__ import annotations

import asyncio
from collections import Counter

from sensevoiced.frontend.waiting import Waiting


def test_a_newcomer_gets_the_next_child():
    """Whoever has fewest children is next, and of equals who has waited longest since its last turn."""

    async def scenario():
        waiting, has = Waiting(), Counter()

        def lend():
            owner, _ = waiting.next(lambda owner: 4 - has[owner])
            has[owner] += 1
            return owner

        for _ in range(8):
            waiting.add(1)
        assert [lend(), lend()] == [1, 1]
        waiting.add(2)
        waiting.add(2)
        waiting.add(3)
        assert [lend() for _ in range(4)] == [2, 3, 2, 1]
        has[1] = 4
        assert waiting.next(lambda owner: 4 - has[owner]) is None
        assert len(waiting) == 5

    asyncio.run(scenario())
