"""The rooms behind serving: which engine and which front end a configuration asks for.

Imports them only when they are made.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sensevoiced.engine import importing, kernels
from sensevoiced.models import find_asr, find_vad, present

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sensevoiced.config import Config
    from sensevoiced.engine.api import Engine
    from sensevoiced.jobs import Options
    from sensevoiced.pipeline import FrontendRun


class ChildState(Protocol):
    """One child process of the front end."""

    @property
    def pid(self) -> int:
        """Its process id."""

    @property
    def rss_bytes(self) -> int:
        """Its resident memory."""

    @property
    def busy(self) -> bool:
        """Whether it has a job."""


class FrontendSnapshot(Protocol):
    """The front end's children, now."""

    @property
    def children(self) -> Sequence[ChildState]:
        """All of them."""

    @property
    def waiting(self) -> int:
        """Jobs that wait for a child."""

    @property
    def max_per_user(self) -> int:
        """Children that one user may have at a time."""

    @property
    def crashed(self) -> int:
        """Children that have ended in a job."""

    @property
    def timeouts(self) -> int:
        """Children that were killed because nothing came from them."""

    @property
    def jail(self) -> Sequence[str]:
        """What the kernel closes them in by."""


class Frontend(Protocol):
    """What turns a source into utterances."""

    async def start(self) -> None:
        """Have the children ready."""

    async def close(self) -> None:
        """End them."""

    def utterances(self, source_fd: int, options: Options, *, label: str, owner: int) -> FrontendRun:
        """Begin with one source, for the user `owner`; owns the descriptor from the call on."""

    def snapshot(self) -> FrontendSnapshot:
        """The children, now."""


@dataclass(frozen=True, slots=True)
class Parts:
    """How to make what a daemon is composed of; tests put in fakes here."""

    model: str
    vad: str
    load_engine: Callable[[], Engine]
    """Called on the engine thread: it imports torch and takes seconds."""
    make_frontend: Callable[[], Frontend]
    models: tuple[str, ...] = ()
    """Names of the recognition models on this machine."""


def parts_of(config: Config) -> Parts:
    """The parts that `config` names. Raises ConfigError where a model is missing or damaged.

    Loads nothing yet.
    """
    asr = find_asr(config.model, config.models_dir)
    vad = find_vad(config.vad, config.models_dir, beside=asr)

    def load_engine() -> Engine:
        if config.engine == "funasr":
            from sensevoiced.engine.funasr import FunasrEngine  # noqa: PLC0415 - ten seconds of imports, only where chosen

            return FunasrEngine.load(
                asr, device=config.device, precision=config.precision, threads=config.threads
            )
        kernels.keep_few(os.environ, threads=config.threads, precision=config.precision)
        importing.import_torch(config.device)
        from sensevoiced.engine.sensevoice import TorchEngine  # noqa: PLC0415 - torch takes seconds to import

        return TorchEngine.load(
            asr,
            device=config.device,
            precision=config.precision,
            threads=config.threads,
            cache_dir=config.cache_dir,
        )

    def make_frontend() -> Frontend:
        from sensevoiced.frontend.pool import FrontendPool  # noqa: PLC0415 - not before the socket listens

        asked = config.frontend.max_end_silence_time
        vad_options = {"max_end_silence_time": asked} if asked else None
        return FrontendPool(config.frontend, asr, vad, vad_options=vad_options)

    return Parts(
        model=asr.name,
        vad=vad.name,
        load_engine=load_engine,
        make_frontend=make_frontend,
        models=present(config.models_dir),
    )
