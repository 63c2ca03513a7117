"""`make fuzz`: what strangers' bytes reach first, under a coverage-guided fuzzer.

Imports nothing of what is fuzzed: the fuzzer has to be there when that happens.
"""

from __future__ import annotations


class BrokenPromise(Exception):
    """The code under test did what it promises never to do."""


def require(holds: object, promise: str) -> None:
    """Raise BrokenPromise where `promise` does not hold."""
    if not holds:
        raise BrokenPromise(promise)
