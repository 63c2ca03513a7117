"""Which part of a recording is wanted: some of its channels, some of its time.

Must never import a decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sensevoiced.frontend.mixing import mix_down
from sensevoiced.jobs import SAMPLE_RATE_HZ, JobError

if TYPE_CHECKING:
    from sensevoiced.frontend.resample import Samples

MIX, SPLIT = "mix", "split"


@dataclass(frozen=True, slots=True)
class Part:
    """The options of a job that choose; see jobs.Options."""

    channels: str = MIX
    start_s: float = 0.0
    duration_s: float = 0.0

    @property
    def first(self) -> int:
        """The first sample at 16 kHz that is wanted."""
        return round(self.start_s * SAMPLE_RATE_HZ)

    @property
    def end(self) -> float:
        """The first sample that is not wanted any more; infinite where all are."""
        return self.first + round(self.duration_s * SAMPLE_RATE_HZ) if self.duration_s else float("inf")

    def tracks(self, piece: Samples) -> list[Samples]:
        """Divide samples x channels into what becomes a track each, of one channel or two.

        Raises JobError(bad_input) where there is no such channel.
        """
        if self.channels == MIX:
            return [mix_down(piece)]
        if self.channels == SPLIT:
            return [piece[:, at : at + 1] for at in range(piece.shape[1])]
        wanted, there = int(self.channels), piece.shape[1]
        if wanted > there:
            have = "one channel" if there == 1 else f"{there} channels"
            raise JobError("bad_input", f"The recording has {have}, and channel {wanted} was asked for.")
        return [piece[:, wanted - 1 : wanted]]

    def channel(self, track: int) -> int:
        """The number that utterances of a track carry."""
        if self.channels == MIX:
            return 0
        return track + 1 if self.channels == SPLIT else int(self.channels)
