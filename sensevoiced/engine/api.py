"""What an engine is: the calls between the batcher and whatever recognises; standard library only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sensevoiced.jobs import EngineInfo, Options, Recognition, Utterance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Work = tuple[Utterance, Options]
"""One utterance, and how its request wants it recognised."""


class OutOfMemory(Exception):
    """The device has too little memory for this batch; a smaller one may fit."""


class DeviceLost(Exception):
    """The device refuses all work from now on; only a new process can use it again."""


class Engine(Protocol):
    """What a backend offers. All methods are called on the engine thread.

    `info` never changes and may be read anywhere.
    """

    info: EngineInfo

    def warm_up(self) -> None:
        """Run typical shapes once, so that no caller pays for initialisation."""

    def run(self, batch: Sequence[Work]) -> list[Recognition]:
        """Recognise a batch, results in its order.

        Raises OutOfMemory where a smaller batch may fit, and DeviceLost where none will run any more.
        """

    def device_memory_bytes(self) -> tuple[int, int] | None:
        """Give (allocated, total) bytes of a device with memory of its own, otherwise None."""

    def close(self) -> None:
        """Give back what the engine holds."""


@runtime_checkable
class Layered(Protocol):
    """An engine that can be asked for something else in the middle of a batch."""

    def between_layers(self, do: Callable[[], None]) -> None:
        """Have `do` called after each layer, on the engine thread; it may call `run`."""
