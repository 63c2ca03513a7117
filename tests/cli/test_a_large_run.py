"""Runs over many recordings: some corrupt, run again, killed in the middle; and names that come slowly."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess

import pytest
import soundfile
from harness.daemon import wait_until

from sensevoiced.models import DEMO_DIR

RUN = ("transcribe", "-r", "-f", "srt,json", "-o", "out", "tree")
CLIPS = {"angry": 1.9, "en": 2.2, "zh": 2.6}
"""Samples and the seconds of them that are taken: a phrase each."""
CORRUPT = (
    b"",
    b"this is no audio\n",
    bytes(4_096),
    b"RIFF\x24\x00\x00\x00WAVEfmt ",
    b"fLaC\x00\x00\x00\x22" + b"\xff" * 400,
)
HANG_S = 300.0
"""Only a hang takes so long."""

sizes = pytest.mark.parametrize("count", [40, pytest.param(300, marks=pytest.mark.slow)])


@pytest.fixture
def clips(tmp_path):
    """Short recordings by name."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, seconds in CLIPS.items():
        samples, rate = soundfile.read(DEMO_DIR / "samples" / f"{name}.flac")
        soundfile.write(folder / f"{name}.flac", samples[: round(seconds * rate)], rate)
    return folder


@pytest.fixture
def plant(clips, tmp_path, ask_demo):
    """Make a tree of recordings; gives what each good one is to give, and the names of the corrupt."""

    def run(count):
        alone = {}
        for name in CLIPS:
            clip = clips / f"{name}.flac"
            answer = json.loads(ask_demo("transcribe", "-f", "json", clip)[1])
            assert answer["text"]
            alone[name] = (ask_demo("transcribe", "-f", "srt", clip)[1], facts(answer))
        corrupt_at = {count * part // 7: data for part, data in enumerate(CORRUPT, 2)}
        good, corrupt = {}, []
        for number in range(count):
            place = f"{number // 20:02}/{number // 5 % 4}/{number:03}"
            path = tmp_path / "tree" / f"{place}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            if number in corrupt_at:
                path.write_bytes(corrupt_at[number])
                corrupt.append(f"tree/{place}.flac")
            else:
                name = list(CLIPS)[number % len(CLIPS)]
                shutil.copy(clips / f"{name}.flac", path)
                good[place] = alone[name]
        return good, corrupt

    return run


def facts(answer):
    """Give what does not depend on the company that a recording has in a batch: all but scores."""
    parts = [(part["start"], part["end"], part["raw"], part["words"]) for part in answer["segments"]]
    return answer["duration"], answer["text"], answer["truncated"], parts


def written(out):
    """Give the inode of every file below a folder but hidden ones, by its name there.

    A run that is killed may leave the hidden file that it was writing.
    """
    found = (path for path in out.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(out)): path.stat().st_ino for path in found}


def assert_right(out, names, good):
    """These transcripts are whole, and of the recordings whose names they have."""
    for name in names:
        place, _, form = name.rpartition(".")
        text = (out / name).read_text(encoding="utf-8")
        srt, facts_alone = good[place]
        if form == "srt":
            assert text == srt, name
        else:
            answer = json.loads(text)
            assert (answer["file"], facts(answer)) == (f"tree/{place}.flac", facts_alone)


def all_of(places):
    """Give the names of the transcripts of these recordings."""
    return {f"{place}.{form}" for place in places for form in ("json", "srt")}


def blamed(told, corrupt):
    """Whether each of the corrupt recordings, and nothing else, has its sentence, in order."""
    return len(told) == len(corrupt) and all(
        line.startswith(f"svctl: {name}: ") for line, name in zip(told, corrupt, strict=True)
    )


@sizes
def test_corrupt_ones_are_told_and_the_others_written(ask_demo, demo, plant, tmp_path, count):
    """The other outputs are right, the status says so, and --skip-existing asks for the corrupt alone."""
    good, corrupt = plant(count)
    status, out, err = ask_demo(*RUN)
    *told, summary = err.splitlines()
    assert (status, out) == (65, "")
    assert blamed(told, corrupt), err
    assert summary.startswith(f"svctl: {len(good)} transcribed, 5 failed; ")
    first = written(tmp_path / "out")
    assert first.keys() == all_of(good)
    assert_right(tmp_path / "out", first, good)

    before = demo.status()["jobs"]
    status, out, err = ask_demo(*RUN, "--skip-existing")
    assert (status, out) == (65, "")
    assert err.splitlines()[:-1] == told
    assert err.splitlines()[-1].startswith(
        f"svctl: 0 transcribed, 5 failed, {len(good)} were there already; "
    )
    demo.wait_status(lambda status: status["jobs"]["failed"] == before["failed"] + 5, "five failures")
    assert demo.status()["jobs"]["done"] == before["done"]
    assert written(tmp_path / "out") == first


@sizes
def test_a_run_that_is_killed_is_completed_by_the_next(  # noqa: PLR0917 - pytest gives them by name
    ask_demo, start, demo, plant, tmp_path, count
):
    """SIGKILL leaves whole transcripts only; with --skip-existing they stay and the others come."""
    good, corrupt = plant(count)
    reader, writer = os.pipe()
    try:
        # It cannot end before it is killed: of the first corrupt file it tells into a pipe that is full.
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(65_536))
        os.set_blocking(writer, True)
        process = start(*RUN, stderr=writer, env={"SENSEVOICE_SOCKET": str(demo.socket)})
        out = tmp_path / "out"
        enough = count // 4
        wait_until(lambda: process.poll() is not None or len(written(out)) >= enough, "transcripts", HANG_S)
        process.kill()
        assert process.wait(HANG_S) == -signal.SIGKILL
    finally:
        os.close(reader)
        os.close(writer)
    kept = written(out)
    assert enough <= len(kept) < len(all_of(good))
    assert kept.keys() <= all_of(good)
    assert_right(out, kept, good)
    demo.wait_status(lambda status: status["queue"]["jobs_active"] == 0, "no job of the killed run")

    status, _, err = ask_demo(*RUN, "--skip-existing")
    complete = sum(all_of([place]) <= kept.keys() for place in good)
    assert status == 65
    assert blamed(err.splitlines()[:-1], corrupt), err
    assert err.splitlines()[-1].startswith(
        f"svctl: {len(good) - complete} transcribed, 5 failed, {complete} were there already; "
    )
    found = written(out)
    assert found.keys() == all_of(good)
    assert_right(out, found, good)
    assert kept.items() <= found.items()
    assert list(out.rglob(".*")) == [], "what the killed run was writing has no owner"


def test_a_line_comes_before_the_next_name_is_there(start, demo, clips):
    """`-0 -f jsonl` at the end of a slow find prints each transcript before find has found the next."""
    process = start(
        *("transcribe", "-q", "-0", "-f", "jsonl"),
        stdin=subprocess.PIPE,
        env={"SENSEVOICE_SOCKET": str(demo.socket)},
    )
    for path in sorted(clips.iterdir()):
        process.stdin.write(os.fsencode(path) + b"\0")
        process.stdin.flush()
        assert select.select([process.stdout], [], [], HANG_S)[0], "no line while the next name is not there"
        assert json.loads(process.stdout.readline())["file"] == str(path)
    out, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, out, err) == (0, b"", b"")
