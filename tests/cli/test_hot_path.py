"""What a start of svctl imports: an answer at once, or an answer that one waits for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import svctl

HEAVY = {
    *("click", "asyncio", "numpy", "torch", "sensevoiced", "dataclasses", "typing", "inspect", "argparse"),
    *("socket", "signal", "enum", "pathlib", "re", "logging", "json", "runpy", "importlib", "contextlib"),
}
OF_MSGPACK = {"msgpack", "datetime", "struct", "collections"}
"""What its import brings along, and nothing else needs."""
OF_A_PING = {"_socket", "errno", "gc", "__future__"}
"""All that svctl imports beside its own modules and what Python itself has imported at its start."""


def imports(environment, tmp_path, *words):
    """Run Python under -X importtime: its exit status and the names of all modules it imported."""
    command = [sys.executable, "-S", "-X", "importtime", *words]
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
    return process.returncode, names


def imported(environment, tmp_path, *words):
    """Run svctl as it is installed, as a script: its exit status and the top-level names it imported."""
    script = str(Path(svctl.__file__).with_name("__main__.py"))
    status, names = imports(environment, tmp_path, script, *words)
    assert "svctl.wire" in names
    return status, {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("words", [["ping"], ["ping", "-q", "--wait=3"], ["reload"]])
def test_a_ping_imports_next_to_nothing(environment, tmp_path, server, words):
    """A ping costs its own modules and the socket: no msgpack, no poll, no containers, no enums."""
    status, names = imported(environment, tmp_path, *words)
    _, before = imports(environment, tmp_path, "-c", "import os")
    assert status == 0
    assert names - before - OF_A_PING == {"svctl"}


@pytest.mark.parametrize(
    "words",
    [
        ["transcribe", "first.wav"],
        ["transcribe", "-l", "en", "--no-itn", "--tags=emoji", "-q", "--wait", "3", "first.wav"],
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
    # several recordings may well be worth msgpack's import
    assert names & (HEAVY if "absent.wav" in words else HEAVY | OF_MSGPACK) == set()


def test_what_only_answers_need_is_imported_behind_the_request(environment, tmp_path, serve):
    """Until the daemon has its work, and for its refusal, neither msgpack nor the formats are imported."""

    def greet(peer, hello):
        assert next(peer.messages())["type"] == "transcribe"
        peer.send({"type": "error", "code": "unsupported", "message": "This daemon speaks 2.0."})
        peer.hang_up()

    serve(greet=greet)
    (tmp_path / "first.wav").write_text("hello")
    script = str(Path(svctl.__file__).with_name("__main__.py"))
    status, names = imports(environment, tmp_path, script, "transcribe", "first.wav")
    assert status == 69
    assert names & (OF_MSGPACK | {"select", "svctl.formats", "svctl.printer"}) == set()


def test_json_costs_json_alone(environment, tmp_path, server):
    """-f json adds the json module and what it imports itself."""
    (tmp_path / "first.wav").write_text("hello")
    status, names = imported(environment, tmp_path, "transcribe", "-f", "json", "first.wav")
    assert status == 0
    assert names & HEAVY == {"json", "re", "enum"}


def test_click_is_imported_where_it_is_needed(environment, tmp_path):
    """Help comes from click, so the tests above can fail."""
    assert "click" in imported(environment, tmp_path, "--help")[1]
