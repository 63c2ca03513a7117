"""What a workload works with: the contenders, kept warm between workloads, and where its figures go."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from benchmarks.ours import Ours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.audio import Audio
    from benchmarks.contender import Contender, Machine
    from benchmarks.records import Records
    from benchmarks.table import Table, Target

SLOW_S = 8.0
"""A contender whose single request takes longer gets one round, or the others would wait for it all day."""


@dataclass
class Bench:
    """One run."""

    machine: Machine
    contenders: list[Contender]
    """All that were asked for, in the order of the tables."""
    audio: Audio
    records: Records
    rounds: int = 5
    quick: bool = False
    running: set[str] = field(default_factory=set)
    began_s: float = field(default_factory=time.monotonic)

    @property
    def ours(self) -> list[Ours]:
        """Our daemons that can run here."""
        return [c for c in self.contenders if isinstance(c, Ours) and c.missing is None]

    @property
    def minutes(self) -> float:
        """How long it has taken so far."""
        return (time.monotonic() - self.began_s) / 60

    def chosen(self, *names: str) -> list[Contender]:
        """Those whose names begin with one of these."""
        return [c for c in self.contenders if c.name.startswith(names)]

    def say(self, sentence: str) -> None:
        """Tell a waiting person where it stands."""
        sys.stderr.write(f"[{time.monotonic() - self.began_s:6.0f} s] {sentence}\n")
        sys.stderr.flush()

    def present(self, workload: str, contenders: Sequence[Contender]) -> list[Contender]:
        """Those that can run here; the others' reasons become rows."""
        for contender in contenders:
            if contender.missing is not None:
                self.records.fail(workload, contender.name, contender.missing)
        return [c for c in contenders if c.missing is None]

    def warm(self, workload: str, contenders: Sequence[Contender]) -> list[Contender]:
        """Start those that do not run; gives the ones that do now."""
        for contender in self.present(workload, contenders):
            if contender.name not in self.running:
                self.say(f"{workload}: starting {contender.name}")
                with self.guarded(workload, contender):
                    contender.start(self.audio.dense(5))
                    self.running.add(contender.name)
        return [c for c in contenders if c.name in self.running]

    def warm_ours(self, workload: str) -> list[Ours]:
        """Our daemons, running."""
        self.present(workload, self.chosen("ours-"))
        return [c for c in self.warm(workload, self.ours) if isinstance(c, Ours)]

    @contextlib.contextmanager
    def guarded(self, workload: str, contender: Contender | None = None) -> Iterator[None]:
        """Whatever goes wrong inside becomes a row; a contender that failed is ended, and started afresh."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a peer may fail in any way, and costs its own row only
            name = contender.name if contender else ""
            sentence = (
                str(error) if type(error).__name__ == "ContenderError" else f"{type(error).__name__}: {error}"
            )
            self.say(f"{workload}: {name} failed: {sentence}")
            self.records.fail(workload, name, sentence[:300])
            if contender is not None:
                self.retire([contender])

    def rounds_of(
        self,
        workload: str,
        contenders: Sequence[Contender],
        rounds: int,
        work: Callable[[Contender, int], float],
    ) -> None:
        """Let everyone do `work` in turns; who fails drops out, and who needs above SLOW_S has one round.

        `work` gets the contender and the number of the round, and gives the seconds of its slowest request.
        Each round begins with the next contender, so that nobody always follows the same neighbour.
        """
        racing = list(contenders)
        for number in range(rounds):
            turn = number % len(racing) if racing else 0
            for contender in racing[turn:] + racing[:turn]:
                slowest = SLOW_S + 1
                with self.guarded(workload, contender):
                    slowest = work(contender, number)
                if slowest > SLOW_S:
                    racing.remove(contender)

    def retire(self, contenders: Sequence[Contender]) -> None:
        """End them."""
        for contender in contenders:
            self.running -= {contender.name, contender.name.replace("ours-", "svctl-")}
            contender.stop()

    def close(self) -> None:
        """End every one, whatever happens in between."""
        problems = []
        for contender in reversed(self.contenders):
            try:
                self.retire([contender])
            except Exception as error:  # noqa: BLE001 - the others still have to end
                problems.append(f"{contender.name}: {error}")
        for problem in problems:
            self.say(f"could not be ended: {problem}")


class Workload(Protocol):
    """A module of `workloads`."""

    NAME: str
    """The key of `--only` and of the JSON."""

    def run(self, bench: Bench) -> None:
        """Measure, and note it in `bench.records`."""

    def tables(self, records: Records) -> list[Table]:
        """What was noted, for reading."""

    def targets(self, records: Records) -> list[Target]:
        """What was noted, against what is aimed at."""
