"""The file that `make test-oldest` installs from."""

from __future__ import annotations

import re
import tomllib


def test_the_oldest_libraries_are_those_that_are_allowed(repository):
    """Every lower bound of the client and the daemon, but torch's, and nothing else."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    bounds = [*project["dependencies"], *project["optional-dependencies"]["daemon"]]
    allowed = dict(bound.split(">=") for bound in bounds)
    del allowed["torch"]
    lines = (repository / "oldest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert tested.keys() == allowed.keys()
    for name, version in tested.items():
        # the first of those that are published for this Python
        assert re.fullmatch(rf"{re.escape(allowed[name])}(\.\d+)*", version)
