"""`make demo`'s script: its exit status is true whatever goes wrong, and nothing of it is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sensevoiced import models

FAKE_DAEMON = """#!/bin/sh
trap 'echo stopped >> "$PIDFILE"; exit {at_stop}' TERM
echo $$ > "$PIDFILE"
echo "a line of its log"
{body}
"""
WAITS = "while :; do sleep 0.05; done"


@pytest.fixture
def demo(repository, tmp_path):
    """Start the script with a made-up daemon and client on its PATH."""

    def start(*, daemon=WAITS, at_stop=0, ping="test -s $PIDFILE", transcribe="echo '[ZH] text'"):
        commands = tmp_path / "bin"
        commands.mkdir()
        client = f'case "$1" in ping) {ping} ;; transcribe) {transcribe} ;; status) echo facts ;; esac\n'
        scripts = {
            "sensevoiced": FAKE_DAEMON.format(body=daemon, at_stop=at_stop),
            "svctl": "#!/bin/sh\n" + client,
        }
        for name, text in scripts.items():
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        (tmp_path / "tmp").mkdir()
        samples = tmp_path / "checkout" / "sensevoiced" / "demo" / "samples"
        samples.mkdir(parents=True)
        (samples / "clip.wav").write_bytes(b"RIFF")
        (tmp_path / "checkout" / "tools").mkdir()
        script = shutil.copy(repository / "tools" / "demo.sh", tmp_path / "checkout" / "tools")
        environment = {
            **os.environ,
            "PATH": f"{commands}:{os.environ['PATH']}",
            "PIDFILE": str(tmp_path / "pid"),
            "TMPDIR": str(tmp_path / "tmp"),
        }
        return subprocess.Popen(
            ["sh", script],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def _daemon_is_gone(tmp_path):
    pid = int((tmp_path / "pid").read_text().split()[0])
    return not Path(f"/proc/{pid}").exists() and not list((tmp_path / "tmp").iterdir())


def test_all_well(demo, tmp_path):
    """Every clip is transcribed, the status shown, the daemon stopped by SIGTERM: exit status 0."""
    out, err = (process := demo()).communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "[ZH] text" in out
    assert out.rstrip().endswith("facts\n\nThe daemon has ended.")
    assert (tmp_path / "pid").read_text().endswith("stopped\n")
    assert _daemon_is_gone(tmp_path)


def test_a_daemon_that_does_not_start(demo, tmp_path):
    """Its own words are shown, and the demo fails."""
    process = demo(daemon="exit 78", ping="exit 69")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the daemon did not start" in err
    assert "a line of its log" in err
    assert _daemon_is_gone(tmp_path)


def test_a_clip_that_fails(demo, tmp_path):
    """A failing transcription is the demo's exit status, and the daemon is stopped all the same."""
    process = demo(transcribe="exit 65")
    process.communicate(timeout=60)
    assert process.returncode == 65
    assert _daemon_is_gone(tmp_path)


def test_a_daemon_that_ends_badly(demo, tmp_path):
    """A daemon that fails while it stops fails the demo, even when every clip was transcribed."""
    process = demo(at_stop=7)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ended with status 7" in err


def test_an_interrupted_demo(demo, tmp_path):
    """A demo that is told to stop while it waits takes its daemon along."""
    process = demo(ping="test -s $PIDFILE && touch $TMPDIR/asked; exit 69")
    while not (tmp_path / "tmp" / "asked").exists():
        assert process.poll() is None
        os.sched_yield()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    (tmp_path / "tmp" / "asked").unlink(missing_ok=True)
    assert _daemon_is_gone(tmp_path)


def test_the_real_demo(repository):
    """With the shipped model and clips, transcripts have tags, and the daemon ends well."""
    if not (models.DEMO_DIR / "model.pt").is_file():
        pytest.skip("the demo model has not been trained in this checkout")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    words = ["sh", str(repository / "tools" / "demo.sh")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for language in ("ZH", "EN", "YUE", "JA", "KO"):
        assert f"[{language}]" in done.stdout
    assert done.stdout.rstrip().endswith("The daemon has ended.")
