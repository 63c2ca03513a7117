"""From VAD segments to utterances: long ones are cut where it is quietest, near ones joined.

Frames only, must never import a model.

Silence is never an utterance, and an utterance holds no pause longer than the gap that may be joined
(FunASR's merge_vad does both). Nothing waits longer than it must: a segment leaves as soon as no other can be
joined to it. What comes out depends on the segments alone, not on the blocks they came in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sensevoiced.frontend.vad import Segment

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

EARLIEST_CUT = 2 / 3
"""A long segment is cut in the last third of what an utterance may hold: late enough to keep context, wide
enough to find a pause."""
SMOOTHING_FRAMES = 15
"""150 ms: the length of a short pause between words; a stop consonant's closure is about half of it."""
CUT_TOLERANCE = 0.1
"""Among places whose probability of speech is this near to the least, the quietest is taken."""


class UtterancePlan:
    """Takes one recording's segments in order, open ones as they grow, and gives the utterances.

    All in 10 ms frames.
    """

    def __init__(
        self,
        *,
        max_frames: int,
        merge_frames: int,
        gap_frames: int,
        quietest: Callable[[int, int], int],
    ) -> None:
        """`quietest(first, last)` names the frame between both (included) where a cut hurts least."""
        self._max_frames = max_frames
        # Joining must not undo a cut: no utterance is ever longer than one may be.
        self._merge_frames = min(merge_frames, max_frames)
        self._gap_frames = gap_frames
        self._quietest = quietest
        self._pending: Segment | None = None
        self._cut: int | None = None

    def needed_from(self, otherwise: int) -> int:
        """First frame an utterance to come may hold; segments not seen yet begin at `otherwise`."""
        starts = [otherwise]
        if self._pending is not None:
            starts.append(self._pending.start)
        if self._cut is not None:
            starts.append(self._cut)
        return min(starts)

    def grow(self, start: int, end: int) -> list[Segment]:
        """Look at the open segment, of which [start, end) is certain; give what is complete by that."""
        ready: list[Segment] = []
        self._cut_off(start, end, ready)
        if self._pending is not None and not self._joins(self._pending, Segment(self._base(start), end)):
            self._release(ready)
        return ready

    def close(self, segment: Segment) -> list[Segment]:
        """Take a finished segment."""
        ready: list[Segment] = []
        self._cut_off(segment.start, segment.end, ready)
        self._add(Segment(self._base(segment.start), segment.end), ready)
        self._cut = None
        return ready

    def silence(self, earliest_start: int) -> list[Segment]:
        """Learn that no segment is open, and that none will begin before `earliest_start`."""
        ready: list[Segment] = []
        if self._pending is not None and earliest_start - self._pending.end > self._gap_frames:
            self._release(ready)
        return ready

    def finish(self) -> list[Segment]:
        """Give what is left at the end of the recording."""
        ready: list[Segment] = []
        if self._pending is not None:
            self._release(ready)
        return ready

    def _base(self, start: int) -> int:
        return start if self._cut is None else self._cut

    def _cut_off(self, start: int, end: int, ready: list[Segment]) -> None:
        base = self._base(start)
        while end - base > self._max_frames:
            cut = self._quietest(base + int(EARLIEST_CUT * self._max_frames), base + self._max_frames)
            self._add(Segment(base, cut), ready)
            base = self._cut = cut

    def _joins(self, first: Segment, second: Segment) -> bool:
        return second.start - first.end <= self._gap_frames and second.end - first.start <= self._merge_frames

    def _add(self, segment: Segment, ready: list[Segment]) -> None:
        if self._pending is not None:
            if self._joins(self._pending, segment):
                segment = Segment(self._pending.start, segment.end)
            else:
                self._release(ready)
        self._pending = segment
        if segment.end - segment.start >= self._merge_frames:
            self._release(ready)

    def _release(self, ready: list[Segment]) -> None:
        if self._pending is not None:
            ready.append(self._pending)
            self._pending = None


def quietest_frame(speech: NDArray[np.float64], mel: NDArray[np.float32]) -> int:
    """Give the index where a cut hurts least.

    Least probable speech over 150 ms, and of equals the least energy.
    """

    def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
        padded = np.pad(values, SMOOTHING_FRAMES // 2, mode="edge")
        return np.convolve(padded, np.full(SMOOTHING_FRAMES, 1 / SMOOTHING_FRAMES), mode="valid")

    likely = smooth(speech)
    loud = smooth(mel.mean(axis=1).astype(np.float64))
    loud[likely > likely.min() + CUT_TOLERANCE] = np.inf
    return int(np.argmin(loud))
