"""The recipes of README.md, run as they stand there against a real daemon with the demo model.

A recipe whose tool is not installed is skipped with that reason. What a recipe takes (a folder of calls, a
film, a microphone) is made of the demo's samples.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from harness.daemon import wait_until
from harness.markdown import sections

from sensevoiced.models import DEMO_DIR
from svctl.subtitles import columns

SAMPLES = DEMO_DIR / "samples"
ANGRY = "I want to make a complaint."
RUN_S = 300.0
"""No recipe takes 10 s; only a hang takes so long."""
DUCKDB = """#!{python}
import sys, duckdb
print(duckdb.sql(sys.argv[2]))
"""
"""`duckdb -c SQL`, where only the Python module of that name is there."""
ARECORD = """#!{python}
import pathlib, sys, time
assert sys.argv[1:] == ["-q", "-f", "S16_LE", "-r", "16000"], sys.argv
sys.stdout.buffer.write(pathlib.Path("microphone.wav").read_bytes())
sys.stdout.buffer.flush()
time.sleep(600)
"""
"""A microphone that says one sentence and is then silent, without ever ending."""

RECIPES = {
    "calls": "calls.jsonl",
    "subtitles": "talks/",
    "dialogue": "call.wav",
    "meeting": "meeting.mkv",
    "live": "arecord",
    "spool": "[Service]",
}
"""Each recipe by what only it names."""


@pytest.fixture(scope="module")
def recipes(repository):
    """The lines of each recipe, by its name in RECIPES."""
    (found,) = (s for s in sections((repository / "README.md").read_text("utf-8")) if s.title == "Recipes")
    blocks = ["\n".join(lines) for _, lines in found.blocks]
    named = {name: [text for text in blocks if mark in text] for name, mark in RECIPES.items()}
    assert sorted(text for texts in named.values() for text in texts) == sorted(blocks)
    return {name: text for name, (text,) in named.items()}


@pytest.fixture
def shell(on_path, demo, tmp_path):
    """Run lines of a recipe; gives what they print and what they say, and wants status 0."""

    def run(lines, status=0):
        shim(tmp_path, "duckdb", DUCKDB, unless=shutil.which("duckdb"))
        done = subprocess.run(
            ["sh", "-c", lines],
            cwd=tmp_path,
            env=on_path | {"SENSEVOICE_SOCKET": str(demo.socket)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=RUN_S,
        )
        out, told = done.stdout.decode(), done.stderr.decode()
        assert done.returncode == status, told
        return out, told

    return run


def shim(folder, name, text, *, unless=None):
    """Put a program of this name where `on_path` finds it."""
    if not unless:
        program = folder / "bin" / name
        program.write_text(text.format(python=sys.executable))
        program.chmod(0o755)


def needs(program):
    """Skip where a program that a recipe names is not installed."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def plant(folder, *names):
    """Copy samples of the demo into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(SAMPLES / f"{name}.flac", folder)


def speech(name, seconds=None):
    """The samples of a recording of the demo, and their rate."""
    samples, rate = soundfile.read(SAMPLES / f"{name}.flac", dtype="int16")
    return samples[: None if seconds is None else round(seconds * rate)], rate


def lines_of(text, *programs):
    """The lines of a recipe that begin with one of these programs."""
    return "\n".join(line for line in text.splitlines() if line.split()[0] in programs)


@pytest.fixture
def calls(recipes, shell, tmp_path):
    """calls.jsonl of a folder with an angry call, another one, and a file that is none."""
    plant(tmp_path / "calls", "angry", "zh")
    (tmp_path / "calls" / "broken.wav").write_text("this is no audio")
    shell(lines_of(recipes["calls"], "svctl"), status=65)
    objects = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text("utf-8").splitlines()]
    assert [one["file"] for one in objects] == ["calls/angry.flac", "calls/broken.wav", "calls/zh.flac"]
    return objects


def test_questions_about_calls_by_jq(recipes, shell, calls):
    """Who was angry, in which call and when; and which files were no recordings."""
    needs("jq")
    told = shell(lines_of(recipes["calls"], "jq"))[0].splitlines()
    (angry,) = calls[0]["segments"]
    assert told[0].split("\t") == ["calls/angry.flac", "1", str(angry["start"]), angry["text"]]
    assert told[1] == f"calls/broken.wav: {calls[1]['error']['message']}"
    assert len(told) == 2


def test_questions_about_calls_by_duckdb(recipes, shell, calls):
    """Its SQL finds each language with its minutes, a broken file among the lines or not."""
    if not (shutil.which("duckdb") or importlib.util.find_spec("duckdb")):
        pytest.skip("duckdb is not installed, neither the program nor the Python module")
    told = shell(lines_of(recipes["calls"], "duckdb"))[0]
    for one in (calls[0], calls[2]):
        (row,) = [row for row in told.splitlines() if re.search(rf"\b{one['language']}\b", row)]
        assert re.search(r"\b1\b", row), told
        minutes = float(re.findall(r"\d\.\d+", row)[0])
        assert minutes == pytest.approx(one["duration"] / 60, rel=1e-3)


def test_subtitles_of_a_tree(recipes, shell, tmp_path):
    """In the same tree, in both formats, in two short lines; a second run adds only what is new."""
    plant(tmp_path / "talks" / "monday", "en", "zh")
    shell(recipes["subtitles"])
    made = {path: path.stat().st_ino for path in (tmp_path / "subtitles").rglob("*.*")}
    assert {str(path.relative_to(tmp_path)) for path in made} == {
        f"subtitles/monday/{name}.{form}" for name in ("en", "zh") for form in ("srt", "vtt")
    }
    for path in made:
        cues = path.read_text("utf-8").split("\n\n")
        shown = [line.splitlines() for line in cues if "-->" in line]
        assert shown
        for cue in shown:
            text = cue[2:] if path.suffix == ".srt" else cue[1:]
            assert 1 <= len(text) <= 2
            assert all(columns(line) <= 42 for line in text)
    plant(tmp_path / "talks" / "tuesday", "angry")
    told = shell(recipes["subtitles"])[1]
    assert "1 transcribed, 0 failed, 2 were there already" in told
    assert {path: path.stat().st_ino for path in made} == made
    assert ANGRY in (tmp_path / "subtitles" / "tuesday" / "angry.srt").read_text("utf-8").replace("\n", " ")


def test_a_call_as_a_dialogue(recipes, shell, tmp_path):
    """Each side under its number, in the order of time."""
    (agent, rate), (customer, _) = speech("en", 2.2), speech("angry", 2.0)
    second = np.zeros(rate, "int16")
    left = np.concatenate([agent, second, np.zeros_like(customer), second, agent])
    right = np.concatenate([np.zeros_like(agent), second, customer, second, np.zeros_like(agent)])
    soundfile.write(tmp_path / "call.wav", np.stack([left, right], axis=1), rate)
    turns = shell(recipes["dialogue"])[0].splitlines()
    found = [re.fullmatch(r"\[([\d.]+)-[\d.]+\] ([12]): \[EN\].* (.+)", turn) for turn in turns]
    assert [turn[2] for turn in found] == ["1", "2", "1"], turns
    starts = [float(turn[1]) for turn in found]
    assert starts == sorted(starts)
    assert "complaint" in turns[1]


def test_the_minutes_of_a_meeting(recipes, shell, tmp_path):
    """A film's sound: each stretch with the time of its beginning and its language."""
    needs("ffmpeg")
    needs("jq")
    film = ["-f", "lavfi", "-i", "color=size=64x64:rate=5", "-i", SAMPLES / "mixed.flac", "-shortest"]
    command = ["ffmpeg", "-v", "error", *film, tmp_path / "meeting.mkv"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=RUN_S)
    shell(recipes["meeting"])
    minutes = (tmp_path / "minutes.txt").read_text("utf-8").splitlines()
    found = [re.fullmatch(r"(\d\d:\d\d:\d\d)\t(\w+)\t(.+)", line) for line in minutes]
    assert {line[2] for line in found} >= {"zh", "en", "ja", "ko"}, minutes
    starts = [line[1] for line in found]
    assert starts == sorted(starts)
    assert starts[0] == "00:00:00"
    assert starts[-1] > "00:00:20"


def test_subtitles_of_what_is_being_said(recipes, on_path, demo, tmp_path):
    """A subtitle is on the screen while the microphone is still open, and the lesson is kept."""
    said, rate = speech("angry")
    with soundfile.SoundFile(tmp_path / "whole.wav", "w", rate, 1, "PCM_16") as file:
        file.write(np.concatenate([said, np.zeros(4 * rate, "int16")]))
    # a recorder that writes into a pipe knows no length: arecord claims 2 GiB
    data = bytearray((tmp_path / "whole.wav").read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = (0x8000_0000).to_bytes(4, "little")
    (tmp_path / "microphone.wav").write_bytes(data)
    shim(tmp_path, "arecord", ARECORD)
    live, afterwards = recipes["live"].splitlines()
    environment = on_path | {"SENSEVOICE_SOCKET": str(demo.socket)}
    process = subprocess.Popen(
        ["sh", "-c", live],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert select.select([process.stdout], [], [], RUN_S)[0], (
            "nothing is shown while the microphone is open"
        )
        first = [process.stdout.readline().decode() for _ in range(4)]
        assert first[:2] == ["WEBVTT\n", "\n"]
        assert re.match(r"00:00:0\d\.\d{3} --> ", first[2])
        assert first[3].startswith(ANGRY)
        # tee writes what it shows into its file afterwards
        kept = tmp_path / "live.vtt"
        wait_until(lambda: kept.read_text("utf-8").startswith("".join(first)), "the cue in live.vtt", RUN_S)
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: all of the pipe
        process.communicate(timeout=RUN_S)
    subprocess.run(["sh", "-c", afterwards], cwd=tmp_path, env=environment, check=True, timeout=RUN_S)
    assert ANGRY in (tmp_path / "lesson.vtt").read_text("utf-8").replace("\n", " ")


@pytest.fixture
def units(recipes, on_path, tmp_path):
    """The units of the spool recipe by name, as files of a home folder in which svctl is installed."""
    (tmp_path / ".local").mkdir()
    (tmp_path / ".local" / "bin").symlink_to(tmp_path / "bin")
    folder = tmp_path / ".config" / "systemd" / "user"
    folder.mkdir(parents=True)
    parts = [part.split("\n", 1) for part in recipes["spool"].split("# ~/.config/systemd/user/")[1:]]
    for name, text in parts:
        (folder / name).write_text(text)
    return {name: folder / name for name, _ in parts}


def test_systemd_accepts_the_spool_units(units, tmp_path):
    """`systemd-analyze verify` has nothing to say of them."""
    needs("systemd-analyze")
    (tmp_path / "runtime").mkdir(mode=0o700)
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", *units.values()],
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path / "runtime"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=RUN_S,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_spool_is_transcribed_as_it_fills(units, shell, tmp_path):
    """Each start of the service does what has come since the last one, and only that."""
    service = units["transcribe.service"].read_text("utf-8")
    (command,) = re.findall(r"^ExecStart=(.+)", service, re.MULTILINE)
    command = shlex.join(shlex.split(command.replace("%h", str(tmp_path))))
    plant(tmp_path / "spool", "angry")
    assert shell(command) == ("", "")
    first = tmp_path / "transcripts" / "angry.json"
    assert json.loads(first.read_text("utf-8"))["text"].startswith(ANGRY)
    inode = first.stat().st_ino
    plant(tmp_path / "spool" / "later", "zh")
    assert shell(command) == ("", "")
    assert (tmp_path / "transcripts" / "later" / "zh.json").exists()
    assert first.stat().st_ino == inode
