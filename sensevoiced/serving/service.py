"""What serving needs of the rest of the daemon, as types only.

The daemon provides it, so that nothing here imports a frontend or an engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sensevoiced.jobs import Decoded, Options, Recognition, Timings


@dataclass(frozen=True, slots=True)
class Segment:
    """One recognised utterance of a job, in the order of the recording.

    `start_s` and `end_s` are times in it.
    """

    index: int
    start_s: float
    end_s: float
    recognition: Recognition
    channel: int = 0
    """From 1 on, where channels are told apart."""


class Transcript(Protocol):
    """A running transcription. Iterate to the end, or `aclose`: both give back everything it holds."""

    @property
    def decoded_s(self) -> float:
        """Audio read so far."""

    @property
    def recognised_s(self) -> float:
        """End of the last segment that was yielded."""

    @property
    def waits_for(self) -> str:
        """What it waits for before it can begin.

        `process`: one of the front end's; `share`: one of those that its user may have. Else "".
        """

    @property
    def decoded(self) -> Decoded:
        """The frontend's last word; there after the iteration has ended."""

    @property
    def timings(self) -> Timings:
        """Where the time went; whole after the iteration has ended."""

    def __aiter__(self) -> AsyncIterator[Segment]:
        """Segments in order. Raises JobError."""

    async def aclose(self) -> None:
        """Stop the work, where it is not finished."""


class Service(Protocol):
    """The daemon, as a session sees it."""

    @property
    def accepting(self) -> bool:
        """False once the daemon is stopping."""

    @property
    def model(self) -> str:
        """Name of the model in force."""

    async def ready(self) -> None:
        """Wait until requests can be served. Raises JobError `shutting_down`."""

    def transcribe(self, source_fd: int, options: Options, *, label: str, owner: int) -> Transcript:
        """Start on a file or a pipe for the user `owner`; owns the descriptor from the call on."""

    async def status(self) -> dict[str, Any]:
        """Everything `svctl status` shows."""

    async def reload(self) -> str:
        """Read the settings again; gives a sentence on what came of it.

        Raises WireError `config`, with the old ones in force.
        """
