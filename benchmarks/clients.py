"""Several clients at once, each of which asks next when it has its answer; knows neither sockets nor HTTP."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol

from benchmarks.contender import Burst

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


class Client(Protocol):
    """One of them, used by one thread."""

    def one(self, clip: Path) -> object:
        """Have one clip answered; raises where it is not."""

    def close(self) -> None:
        """End the connection, where it has one."""


def burst(clips: Sequence[Path], clients: int, open_client: Callable[[], Client]) -> Burst:
    """Have `clips` answered by so many threads; connecting is on the clock, as it is for a user."""
    waiting = list(reversed(clips))
    lock = threading.Lock()
    latencies: list[float] = []
    errors: list[str] = []
    gate = threading.Barrier(clients + 1)

    def work() -> None:
        client: Client | None = None
        gate.wait()
        try:
            while True:
                with lock:
                    if not waiting:
                        return
                    clip = waiting.pop()
                began = time.perf_counter()
                try:
                    client = client or open_client()
                    client.one(clip)
                except Exception as error:  # noqa: BLE001 - whatever a peer's client raises is an error of that request
                    errors.append(" ".join(f"{type(error).__name__}: {error}".split())[:200])
                else:
                    latencies.append(time.perf_counter() - began)
        finally:
            if client is not None:
                client.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    gate.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return Burst(time.perf_counter() - began, tuple(latencies), tuple(errors))
