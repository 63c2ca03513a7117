"""The verb `bench`: how fast this machine answers, in about ten seconds, with nothing but the daemon.

The clips are noise and are sent without VAD, so that all of each goes through the model: its time depends on
the length, not on what is said.
"""

from __future__ import annotations

import io
import os
import random
import time
import wave

from svctl.recording import held
from svctl.terminal import encoded, say, write_stdout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from svctl.connection import Connection
    from svctl.options import Values

_RATE_HZ = 16_000
_CLIPS_S = (1, 5, 15)
_PINGS = 20
_ANSWER_S = 120.0
"""A modest CPU needs 10 s for the longest clip; a request that takes longer than this hangs."""
_LOUDNESS = 2_000
"""Of 32,767: as loud as speech."""


class Bench:
    """One run: begun with the connection, over when every clip has had its share of the time."""

    def __init__(self, values: Values) -> None:
        """`values` are the options of the verb."""
        self._json: bool = values["json"]
        self._share_s: float = values["seconds"] / len(_CLIPS_S)
        self._connection: Connection

    def begin(self, _connection: Connection) -> None:
        """Ask for nothing: what is measured begins with a daemon that is there."""

    def finish(self, connection: Connection) -> int:
        """Measure and print. Raises WireError, BrokenPipeError and OutputError."""
        self._connection = connection
        rows = [_row("ping", [self._ping() for _ in range(_PINGS)], None)]
        for seconds in _CLIPS_S:
            if not self._json:
                say(f"{seconds} s clips, one after another")
            rows.append(_row(f"{seconds} s clip", self._clips(seconds), seconds))
        status = connection.call("status", "status", patience_s=_ANSWER_S)["status"]
        if self._json:
            from svctl.formats import json_text  # noqa: PLC0415

            facts = {name: status.get(name) for name in ("server", "model", "device", "precision", "threads")}
            write_stdout(encoded(json_text({**facts, "rows": rows}, indent=2) + "\n"))
        else:
            write_stdout(encoded(_table(status, rows)))
        return 0

    def _ping(self) -> float:
        began_s = time.perf_counter()
        self._connection.call("ping", "pong", patience_s=_ANSWER_S)
        return time.perf_counter() - began_s

    def _clips(self, seconds: int) -> list[float]:
        """Send one clip after another for its share of the time, at least twice; the first warms up."""
        descriptor = held(_noise(seconds))
        try:
            self._clip(descriptor)
            found: list[float] = []
            until_s = time.perf_counter() + self._share_s
            while not found or time.perf_counter() < until_s:
                found.append(self._clip(descriptor))
            return found
        finally:
            os.close(descriptor)

    def _clip(self, descriptor: int) -> float:
        began_s = time.perf_counter()
        request = self._connection.request(
            "transcribe", descriptor, source="fd", label="svctl bench", vad=False
        )
        self._connection.answer(request, "done", time.monotonic() + _ANSWER_S)
        return time.perf_counter() - began_s


def _noise(seconds: int) -> bytes:
    """A WAV of noise, the same at every run."""
    samples = random.Random(0).choices(range(-_LOUDNESS, _LOUDNESS), k=_RATE_HZ)  # noqa: S311 - not for secrets
    second = b"".join(sample.to_bytes(2, "little", signed=True) for sample in samples)
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setparams((1, 2, _RATE_HZ, 0, "NONE", ""))
        file.writeframes(second * seconds)
    return written.getvalue()


def _row(name: str, took: list[float], clip_s: int | None) -> dict[str, Any]:
    ordered = sorted(took)
    p50_s = ordered[len(ordered) // 2]
    return {
        "what": name,
        "requests": len(ordered),
        "p50_s": round(p50_s, 6),
        "p95_s": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))], 6),
        "rtf": None if clip_s is None else round(p50_s / clip_s, 6),
    }


def _table(status: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    facts = [str(status.get(name, "?")) for name in ("model", "device", "precision", "threads")]
    lines = [f"{facts[0]} on {facts[1]}, {facts[2]}, {facts[3]} threads"]
    lines.append(f"{'':10}{'requests':>9}{'p50':>11}{'p95':>11}{'RTF':>8}{'x real time':>13}")
    for row in rows:
        speed = f"{row['rtf']:>8.4f}{1 / row['rtf']:>12.0f}x" if row["rtf"] else ""
        times = "".join(f"{row[name] * 1000:>8.1f} ms" for name in ("p50_s", "p95_s"))
        lines.append(f"{row['what']:10}{row['requests']:>9}{times}{speed}")
    return "\n".join(lines) + "\n"
