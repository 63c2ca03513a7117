"""What the daemon says where it has too little memory itself; it must take next to none to say it."""

from __future__ import annotations

from svctl.wire import WireError

RETRY_MS = 1_000
"""When to come back to a daemon that has run out of descriptors, threads or memory: requests end all the
time."""


def lacks_memory(error: BaseException) -> bool:
    """Say whether a lack of memory is all that an exception, or a group of them, tells of."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(lacks_memory, error.exceptions))
    return isinstance(error, MemoryError)


def out_of_memory() -> WireError:
    """What a peer is told."""
    sentence = "The daemon has too little memory for this at the moment: try again."
    return WireError("busy", sentence, retry_after_ms=RETRY_MS)
