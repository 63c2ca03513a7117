"""The fake daemon around an engine that lacks memory: `python scarce_daemon.py CONTROL_FOLDER FLAG...`.

A batch of more utterances than the file `fits` in the control folder says does not fit; a `heavy` utterance
does not fit in any company, nor alone; one that says `lose` takes the device with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from harness import fake_daemon  # noqa: E402

from sensevoiced.engine.api import DeviceLost, OutOfMemory  # noqa: E402


class ScarceEngine(fake_daemon.FakeEngine):
    lost = False

    def run(self, batch):
        lines = [json.loads(utterance.features) for utterance, _ in batch]
        fits = self.control / "fits"
        self.lost = self.lost or any("lose" in line for line in lines)
        if self.lost:
            raise DeviceLost("as the script says")
        if any("heavy" in line for line in lines) or (fits.exists() and len(batch) > int(fits.read_text())):
            self._note(f"too many: {len(batch)}")
            raise OutOfMemory("as the script says")
        return super().run(batch)


if __name__ == "__main__":
    fake_daemon.FakeEngine = ScarceEngine
    sys.exit(fake_daemon.main())
