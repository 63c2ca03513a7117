"""What a start of svctl imports: an answer at once, or an answer that one waits for."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    *("click", "asyncio", "numpy", "torch", "sensevoiced", "dataclasses", "typing", "inspect", "argparse"),
    *("socket", "pathlib", "re", "signal", "logging", "json"),
}


def imported(environment, tmp_path, *words):
    """Run svctl under -X importtime: its exit status and the top-level names of all modules it imported."""
    command = [sys.executable, "-S", "-X", "importtime", "-m", "svctl", *words]
    # -S: what site-packages' .pth files import is the environment's choice, not svctl's
    path = [entry for entry in sys.path if entry.endswith("site-packages")]
    environment = environment | {"PYTHONPATH": ":".join([environment["PYTHONPATH"], *path])}
    process = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    names = {
        line.rpartition("|")[2].strip()
        for line in process.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "svctl.wire" in names
    return process.returncode, {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(
    "words",
    [
        ["ping"],
        ["transcribe", "first.wav"],
        ["transcribe", "-l", "en", "--no-itn", "--tags=emoji", "-t", "-q", "--wait", "3", "first.wav"],
        ["transcribe", "first.wav", "absent.wav"],
        ["transcribe", "-f", "srt", "first.wav"],
        ["status"],
    ],
)
def test_the_hot_path_imports_nothing_heavy(environment, tmp_path, server, words):
    """Plain words cost neither click nor any large module of the standard library."""
    (tmp_path / "first.wav").write_text("hello")
    status, names = imported(environment, tmp_path, *words)
    assert status == (66 if "absent.wav" in words else 0)
    assert names & HEAVY == set()


def test_json_costs_json_alone(environment, tmp_path, server):
    """-f json adds the json module and what it imports itself."""
    (tmp_path / "first.wav").write_text("hello")
    status, names = imported(environment, tmp_path, "transcribe", "-f", "json", "first.wav")
    assert status == 0
    assert names & HEAVY == {"json", "re"}


def test_click_is_imported_where_it_is_needed(environment, tmp_path):
    """Help comes from click, so the test above can fail."""
    assert "click" in imported(environment, tmp_path, "--help")[1]
