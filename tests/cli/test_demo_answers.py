"""What the daemon promises of its answers, with the demo model: the same every time, in any company."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from harness.daemon import DaemonProcess, wait_until

from sensevoiced.models import DEMO_DIR

SCORE_TOLERANCE = 1e-3
CLIENTS = 8
SAMPLES = sorted(DEMO_DIR.glob("samples/*.flac"))


def without_scores(answer):
    """Give the transcript less its scores, and the scores."""
    scores = [
        segment.pop(name)
        for segment in answer["segments"]
        for name in ("language_score", "emotion_score", "event_score")
    ]
    return answer, scores


def test_a_file_asked_twenty_times_gives_the_same_bytes(ask_demo):
    """Twenty single runs of svctl give byte-identical JSON."""
    path = DEMO_DIR / "samples" / "mixed.flac"
    answers = {ask_demo("transcribe", "-f", "json", path) for _ in range(20)}
    assert len(answers) == 1
    status, out, err = answers.pop()
    assert (status, err) == (0, "")
    assert len(json.loads(out)["segments"]) >= 5


def test_eight_clients_get_what_each_gets_alone(ask_demo, start, demo):
    """Among 8 concurrent clients of mixed files all is the same but scores, which agree within 0.001."""
    alone = {path: json.loads(ask_demo("transcribe", "-f", "json", path)[1]) for path in SAMPLES}
    processes = []
    for client in range(CLIENTS):
        files = SAMPLES[client % len(SAMPLES) :] + SAMPLES[: client % len(SAMPLES)]
        process = start("transcribe", "-f", "jsonl", *files, env={"SENSEVOICE_SOCKET": str(demo.socket)})
        processes.append((process, files))
    for process, files in processes:
        out, err = process.communicate()
        assert (process.returncode, err) == (0, b"")
        for path, line in zip(files, out.splitlines(), strict=True):
            found, found_scores = without_scores(json.loads(line))
            expected, expected_scores = without_scores(json.loads(json.dumps(alone[path])))
            assert found == expected
            assert found_scores == pytest.approx(expected_scores, abs=SCORE_TOLERANCE)


@pytest.mark.funasr
def test_the_reference_engine_answers_the_same(ask_demo, svctl, tmp_path):
    """`--engine funasr` behind the daemon gives, for every sample, the raw text of our own engine."""
    pytest.importorskip("funasr")
    command = [
        sys.executable,
        "-m",
        "sensevoiced",
        "--model",
        "demo",
        "--device",
        "cpu",
        "--engine",
        "funasr",
    ]
    reference = DaemonProcess(tmp_path / "funasr", command=command)
    try:
        env = {"SENSEVOICE_SOCKET": str(reference.socket)}
        assert json.loads(svctl("status", "--json", env=env)[1])["engine"] == "funasr"
        for options in ((), ("--no-itn", "-l", "en")):
            words = ("transcribe", "-f", "raw", *options, *SAMPLES)
            assert svctl(*words, env=env) == ask_demo(*words)
    finally:
        assert reference.stop() == 0


def test_every_recording_gets_an_answer(ask_demo, demo, shared_data):
    """Each decodable recording transcribes; each odd or broken file gives that or one sentence; it stays."""
    pid = demo.pid
    undecodable = {"beets_full.wma"}
    for folder, broken_may_be in (("audio", False), ("edge", True)):
        files = sorted(path for path in (shared_data / folder).rglob("*") if path.is_file())
        assert files
        status, out, err = ask_demo("transcribe", "-q", "-f", "jsonl", "--", *files)
        answers = [json.loads(line) for line in out.splitlines()]
        assert [answer["file"] for answer in answers] == list(map(str, files))
        failed = {Path(answer["file"]).name: answer["error"] for answer in answers if "error" in answer}
        assert all(error["code"] in {"bad_input", "too_long"} for error in failed.values()), failed
        assert all(error["message"].rstrip().endswith(".") for error in failed.values()), failed
        assert len(err.splitlines()) == len(failed)
        assert status == (65 if failed else 0)
        if not broken_may_be:
            headerless = {name for name in failed if name.endswith((".pcm", ".raw", ".sw"))}
            assert set(failed) <= undecodable | headerless, failed
    wait_until(lambda: json.loads(ask_demo("status", "--json")[1])["queue"]["jobs_active"] == 0, "idle")
    assert demo.process.poll() is None
    assert demo.pid == pid
    assert "Traceback" not in demo.text()
