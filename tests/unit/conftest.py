"""Fixtures of more than one file of unit tests."""

from __future__ import annotations

import pytest


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
