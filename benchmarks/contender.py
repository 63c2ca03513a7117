"""What everything that is measured looks like to the workloads; standard library only, no peer's name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

THREAD_VARIABLES = ("OPENBLAS_", "OMP_", "MKL_", "GOMP_", "KMP_", "NUMEXPR_")
"""What would give one contender other threads than the next: nobody inherits them."""

NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"
"""Would have every start compile its modules again, which no installed program does."""


class ContenderError(Exception):
    """A contender could not start or answer; the sentence stands in its row."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What every contender gets the same of."""

    model: Path
    """The checkpoint folder."""
    vad: Path
    device: str
    """In torch's words: `cpu`, `cuda:0`."""
    threads: int
    cache: Path
    """For what is made once and kept: exports, stand-ins."""
    work: Path
    """For sockets, logs and what the run throws away."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One request, as its user sees it."""

    seconds: float
    text: str
    tokens: tuple[int, ...] | None = None
    """Greedy CTC ids without blanks and repeats, the four tags first; None where they cannot be had."""


@dataclass(frozen=True, slots=True)
class Started:
    """Seconds from the start of the process."""

    ready_s: float
    first_answer_s: float


@dataclass(frozen=True, slots=True)
class Burst:
    """Many requests by several clients, each of which asks next when it has its answer."""

    wall_s: float
    latencies_s: tuple[float, ...]
    """Of those that were answered."""
    errors: tuple[str, ...] = ()
    """One sentence for each that was not."""


class Contender(Protocol):
    """One product at one precision, in processes of its own."""

    @property
    def name(self) -> str:
        """A short name, the key of `--only` and of the JSON."""

    @property
    def precision(self) -> str:
        """In torch's words."""

    @property
    def missing(self) -> str | None:
        """Why it cannot run here, in a sentence; None where it can."""

    def start(self, first: Path) -> Started:
        """Start every process, have `first` answered once, and stay warm. ContenderError where that fails."""

    def one(self, clip: Path) -> Answer:
        """Have one clip answered.

        Timed in the process where the user's own code would run in it, at the client of a server.
        """

    def many(self, clips: Sequence[Path], clients: int) -> Burst:
        """Have `clips` answered by so many clients; NotImplementedError where it takes one at a time."""

    def processes(self) -> list[int]:
        """Ids of all its processes now; their memory is summed."""

    def stop(self) -> None:
        """End every process, whatever state it is in; harmless when there is none."""


def environment(**extra: str) -> dict[str, str]:
    """This process's variables without those that would favour or hinder somebody, and with `extra`."""
    hindering = (*THREAD_VARIABLES, NO_BYTECODE)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hindering)}
    return {**kept, **extra}
