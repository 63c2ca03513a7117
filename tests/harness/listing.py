"""What a test finds in a folder afterwards."""

from __future__ import annotations


def listed(folder):
    """Names in a folder."""
    return sorted(path.name for path in folder.iterdir())
