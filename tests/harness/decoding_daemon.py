"""The real daemon with its real front end and a cheap engine: `python decoding_daemon.py CONTROL FLAG...`.

Abuse of files meets the real children within milliseconds, and torch is never imported.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import zlib
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from harness.fakes import FakeEngine, recognised, wait_for_gate  # noqa: E402

from sensevoiced import settings  # noqa: E402
from sensevoiced.__main__ import serve  # noqa: E402
from sensevoiced.parts import parts_of  # noqa: E402


class CheapEngine(FakeEngine):
    """Says a number that only the same features give; waits at the gate that the file `hold` names."""

    def run(self, batch):
        hold = self.control / "hold"
        if hold.exists() and (gate := hold.read_text()):
            self._note(f"at {gate}")
            wait_for_gate(self.control, gate)
        self._note(f"batch {len(batch)}")
        return [
            recognised({"say": f"{zlib.crc32(utterance.features):08x}"}, options)
            for utterance, options in batch
        ]


def main():
    """Serve, as `sensevoiced --model demo` would."""
    control, *words = sys.argv[1:]
    flags = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    flags.setdefault("model", "demo")
    config = settings.load(flags, os.environ)
    parts = dataclasses.replace(parts_of(config), load_engine=lambda: CheapEngine(control))
    return serve(config, parts, reread=lambda: settings.load(flags, os.environ))


if __name__ == "__main__":
    sys.exit(main())
