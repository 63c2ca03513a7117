"""`funasr.AutoModel` as scripts use it: `stock.py MODEL VAD DEVICE THREADS`, in the peers' environment.

The clock runs around generate(). Dither is off, which saves FunASR the drawing of its noise and makes its
tokens the same from call to call.
"""

from __future__ import annotations

import sys
import time
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lines import Answer, Lines

if TYPE_CHECKING:
    from pathlib import Path

BLANK = 0


class Stock:
    """The model with its VAD, and a look at the best ids of what it last recognised."""

    def __init__(self, model: str, vad: str, device: str, threads: int) -> None:
        """Load both; `threads` 0 leaves them to FunASR."""
        from funasr import AutoModel  # noqa: PLC0415 - only now is stdout out of its way

        exact = {"frontend_conf": {"dither": 0.0}}
        self._auto = AutoModel(
            model=model,
            vad_model=vad,
            vad_kwargs={"max_single_segment_time": 30_000, **exact},
            device=device,
            disable_update=True,
            disable_pbar=True,
            **({"ncpu": threads} if threads else {}),
            **exact,
        )
        self._auto.model.ctc.ctc_lo.register_forward_hook(self._look)
        self._best: list[list[int]] = []
        self._looked_s = 0.0

    def recognise(self, clip: Path) -> Answer:
        """Run the whole way from the file to the text; our own look at the logits is not on the clock."""
        self._best, self._looked_s = [], 0.0
        start = time.perf_counter()
        results = self._auto.generate(
            input=str(clip), language="auto", use_itn=True, merge_vad=True, merge_length_s=15, batch_size_s=60
        )
        seconds = time.perf_counter() - start - self._looked_s
        text = " ".join(result["text"] for result in results)
        return {"seconds": seconds, "text": text, "tokens": self._tokens()}

    def _look(self, _module: Any, _inputs: Any, logits: Any) -> None:
        start = time.perf_counter()
        self._best += logits.argmax(-1).tolist()
        self._looked_s += time.perf_counter() - start

    def _tokens(self) -> list[int] | None:
        """Ids of a clip that was one segment; several are recognised in order of length, not of time."""
        if len(self._best) != 1:
            return None
        return [token for token, _ in groupby(self._best[0]) if token != BLANK]


if __name__ == "__main__":
    lines = Lines()
    lines.serve(Stock(*sys.argv[1:4], int(sys.argv[4])).recognise)
