"""What an answer is, whether two are the same, and the tally of all; standard library only."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Message = Mapping[str, Any]
    Answer = dict[str, Any]

SCORE_TOLERANCE = 0.001
"""PROTOCOL.md promises no more: what shares a batch may move a score so far."""
RIGHT, WRONG, LOST = "right", "wrong", "lost"
MAX_SENTENCES = 100
"""Of faults that are told one by one; the count goes on."""


def answer_of(events: Sequence[Message]) -> Answer:
    """What has to be the same every time: a code, or the segments and what `done` says but for its times."""
    last = events[-1]
    if last["type"] == "error":
        return {"error": last["code"]}
    found = [
        {name: value for name, value in event.items() if name not in ("type", "id")}
        for event in events
        if event["type"] == "segment"
    ]
    facts = {name: last[name] for name in ("duration", "truncated", "model", "segments")}
    return {**facts, "events": found}


def difference(expected: Any, got: Any, where: str = "") -> str:
    """The first place where two answers differ, in words; "" where they do not."""
    if isinstance(expected, dict) and isinstance(got, dict):
        if expected.keys() != got.keys():
            return f"{where or 'answer'}: {sorted(expected)} expected, {sorted(got)} came"
        parts = [(f"{where}.{name}".strip("."), value, got[name]) for name, value in expected.items()]
    elif isinstance(expected, list) and isinstance(got, list):
        if len(expected) != len(got):
            return f"{where}: {len(expected)} expected, {len(got)} came"
        parts = [
            (f"{where}[{i}]", one, other) for i, (one, other) in enumerate(zip(expected, got, strict=True))
        ]
    elif where.endswith("_score"):
        return "" if abs(expected - got) <= SCORE_TOLERANCE else f"{where}: {expected} expected, {got} came"
    else:
        return "" if expected == got else f"{where}: {expected!r:.80} expected, {got!r:.80} came"
    return next((found for place, one, other in parts if (found := difference(one, other, place))), "")


class Tally:
    """What became of everything that was sent; safe from any thread."""

    def __init__(self) -> None:
        """Nothing so far."""
        self._lock = threading.Lock()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """By kind of client and outcome: RIGHT, WRONG, LOST, or what a touched request came to."""
        self.errors: Counter[str] = Counter()
        """By code."""
        self.latencies_s: defaultdict[str, list[float]] = defaultdict(list)
        """By what was waited for."""
        self.sentences: list[str] = []

    @property
    def requests(self) -> int:
        """How many have come to an end."""
        with self._lock:
            return self.outcomes.total()

    def ended(self, kind: str, outcome: str) -> None:
        """Count what needs no explanation."""
        with self._lock:
            self.outcomes[kind, outcome] += 1

    def fault(self, kind: str, outcome: str, sentence: str) -> None:
        """Count what must not happen: WRONG or LOST."""
        with self._lock:
            self.outcomes[kind, outcome] += 1
            if len(self.sentences) < MAX_SENTENCES:
                self.sentences.append(f"{kind}, {outcome}: {sentence}")

    def error(self, code: str) -> None:
        """Count an error by its code."""
        with self._lock:
            self.errors[code] += 1

    def waited(self, what: str, seconds: float) -> None:
        """Note a latency."""
        with self._lock:
            self.latencies_s[what].append(seconds)

    def count(self, outcome: str) -> int:
        """How many, of all kinds, came to this."""
        with self._lock:
            return sum(count for (_, found), count in self.outcomes.items() if found == outcome)
