"""How many compiled kernels oneDNN may keep; to be called before torch is imported, which this does not do.

oneDNN compiles one for each layer and number of rows, a third of a MiB each. Left alone it keeps 1,024 of
them, and again as many in torch's own list: recordings of all lengths then cost 3 MiB a request, for hundreds
of requests. Speech seldom has the same length twice, so few are enough, but those that one batch needs must
fit: the batch asks for them again in each of its 70 layers, and one of 12 utterances that had to compile them
each time took three times as long.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""oneDNN's own list (https://uxlfoundation.github.io/oneDNN/dev_guide_primitive_cache.html), and the one of
torch's layer above it."""
_FOR_A_BATCH = 32
"""Where layers run on a whole batch at once: it needs seven, three batches' worth stays."""
_FOR_A_THREAD = 32
"""Where they run utterance by utterance, each length with kernels of its own. A batch has 96 frames for each
thread, so on two at most six lengths in 8 bits, which are rounded up to eight, with five kernels each, twelve
of attention, with two, and eight of the head. On more threads it is less for each. With 96, 64 and 48 in all
batches of 12 utterances of 13 to 24 frames and of 7 of 9 to 57 took the same time on two threads, and 200
requests the same memory: 64 is what the count above asks for."""


def keep_few(environ: MutableMapping[str, str], *, threads: int, precision: str) -> None:
    """Set the limits that suit `threads` (0: one a core) and `precision`; what is set already stays."""
    threads = threads or len(os.sched_getaffinity(0))
    by_utterance = precision in {"int8", "bfloat16"}
    limit = max(2 * _FOR_A_THREAD, _FOR_A_THREAD * threads) if by_utterance else _FOR_A_BATCH
    for name in _VARIABLES:
        environ.setdefault(name, str(limit))
