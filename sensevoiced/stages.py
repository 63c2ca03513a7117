"""How the time of one job divides into its stages: arithmetic on moments, never a clock.

What a job waits for is counted once: time with an utterance in a running batch is the engine's; time with
utterances at the engine, none of them running, is waiting; time with none there is the front end's as far as
that was at work. What is left belongs to serving.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sensevoiced.jobs import Timings

if TYPE_CHECKING:
    from sensevoiced.jobs import Decoded, Recognised


class Stages:
    """One job's account of its time; `timings` is whole after `settle`. All moments are in seconds."""

    def __init__(self, now_s: float) -> None:
        """Begin with the job's front end not at work yet."""
        self.timings = Timings()
        self._began_s = now_s
        self._first_s: float | None = None
        self._counted_to_s = now_s
        """Up to here, what the engine had of this job is counted."""
        self._at_engine = 0
        self._at_engine_since_s = 0.0
        self._at_engine_s = 0.0

    def handed(self, now_s: float) -> None:
        """Note that the engine was given an utterance."""
        if self._first_s is None:
            self._first_s = now_s
        if not self._at_engine:
            self._at_engine_since_s = now_s
        self._at_engine += 1

    def returned(self, now_s: float) -> None:
        """Note that the engine has one less, whatever came of it."""
        self._at_engine -= 1
        if not self._at_engine:
            self._at_engine_s += now_s - self._at_engine_since_s

    def recognised(self, handed_s: float, found: Recognised) -> None:
        """Count one utterance's way through the engine; they come in the order of their batches."""
        timings = self.timings
        timings.wait_s += self._count(handed_s, found.began_s)
        timings.engine_s += self._count(found.began_s, found.texts_s)
        timings.richtext_s += self._count(found.texts_s, found.ended_s)

    def front_end_ended(self, now_s: float, begun_s: float | None, decoded: Decoded) -> None:
        """Count what the front end did from `begun_s` to now; before that, the job stood in its queue.

        A front end that does not know when it began counts as queued for until its first utterance.
        """
        timings = self.timings
        if begun_s is None:
            begun_s = now_s if self._first_s is None else self._first_s
        timings.queued_s = begun_s - self._began_s
        timings.decode_s, timings.fbank_s, timings.vad_s = decoded.decode_s, decoded.features_s, decoded.vad_s
        timings.frontend_s = decoded.decode_s + decoded.features_s + decoded.vad_s
        at_engine_s = self._at_engine_s + (now_s - self._at_engine_since_s if self._at_engine else 0.0)
        awaited_s = max(0.0, now_s - begun_s - at_engine_s)
        timings.overlap_s = max(0.0, timings.frontend_s - awaited_s)

    def _count(self, from_s: float, to_s: float) -> float:
        """Give how much of a stretch is not counted yet, and count it."""
        from_s = max(from_s, self._counted_to_s)
        self._counted_to_s = max(self._counted_to_s, to_s)
        return max(0.0, to_s - from_s)
