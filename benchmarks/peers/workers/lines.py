"""The worker's side of the talk with the benchmark: one JSON object a line over stdin and stdout.

Imports nothing of any peer.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Answer = dict[str, Any]


class Lines:
    """Takes stdout for itself on creation: whatever a library prints from then on goes to stderr."""

    def __init__(self) -> None:
        """Set the descriptor of the answers aside."""
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def serve(self, recognise: Callable[[Path], Answer]) -> None:
        """Say that the model is there, then answer clip after clip until the benchmark hangs up."""
        self._say({"ready": True})
        for line in sys.stdin:
            try:
                answer = recognise(Path(json.loads(line)["clip"]))
            except Exception as error:  # noqa: BLE001 - whatever a peer fails with is its answer
                answer = {"error": f"{type(error).__name__}: {error}"}
            self._say(answer)

    def _say(self, answer: Answer) -> None:
        self._out.write(json.dumps(answer, ensure_ascii=False) + "\n")
        self._out.flush()
