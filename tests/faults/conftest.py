"""What every abuse test needs: a daemon to abuse, and the canary that sings afterwards."""

from __future__ import annotations

import pytest
from harness.daemon import Canary, DaemonProcess


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


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One daemon with quick deadlines for all tests of a module that leave it as it was."""
    settings = "[serving]\nhello_timeout_s = 0.5\nframe_timeout_s = 0.5\nidle_timeout_s = 60"
    daemon = DaemonProcess(tmp_path_factory.mktemp("daemon"), settings=settings)
    yield daemon
    daemon.kill()


@pytest.fixture
def daemon(shared):
    """The module's daemon, with the canary after the test."""
    canary = Canary(shared)
    yield shared
    canary.check()
