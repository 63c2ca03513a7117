"""Fixtures of more than one file of unit tests."""

from __future__ import annotations

import asyncio

import pytest
from harness.pools import end_shared


@pytest.fixture
def path(tmp_path):
    """Where the test's daemon listens."""
    return tmp_path / "api.sock"


@pytest.fixture
def recording(tmp_path):
    """A file that the scripted daemon reads as two lines."""
    file = tmp_path / "call.wav"
    file.write_text("hello\nworld")
    return file


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Describe a front end whose VAD goes by energy."""
    from harness.energy_vad import write_models

    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def run():
    """Run a scenario on an event loop that lives as long as the pool that a module's tests may share."""
    with asyncio.Runner() as runner:
        yield runner.run
        runner.run(end_shared())


@pytest.fixture
def two_threads():
    """Let torch compute on two threads, and afterwards on as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
