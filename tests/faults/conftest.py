"""What every abuse test needs: a daemon to abuse, and the canary that sings afterwards."""

from __future__ import annotations

import pytest
from harness.daemon import Canary, DaemonProcess, one_for_all


@pytest.fixture
def start(tmp_path):
    """Start daemons around a fake engine in this test's folder; all are ended, whatever happens."""
    started = []

    def start_one(*, folder=tmp_path, **options):
        daemon = DaemonProcess(folder / f"d{len(started)}", **options)
        started.append(daemon)
        return daemon

    yield start_one
    for daemon in started:
        daemon.kill()


shared, daemon = one_for_all(
    DaemonProcess,
    Canary,
    "[serving]\nhello_timeout_s = 0.5\nframe_timeout_s = 0.5\nidle_timeout_s = 60",
)
"""With quick deadlines, for tests that leave it as it was."""
