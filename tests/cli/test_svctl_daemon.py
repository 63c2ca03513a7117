"""svctl against the real daemon: first around a fake engine, then with the demo model and its samples."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import pytest
from harness.daemon import DaemonProcess, script

import sensevoiced

SAMPLES = Path(sensevoiced.__file__).parent / "demo" / "samples"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    """A real daemon whose engine and front end do as a script says."""
    process = DaemonProcess(tmp_path_factory.mktemp("daemon"))
    yield process
    assert process.stop() == 0
    assert "Traceback" not in process.text()


@pytest.fixture
def ask(svctl, daemon):
    """Run svctl against the scripted daemon."""
    return lambda *words, **settings: svctl(*words, env={"SENSEVOICE_SOCKET": str(daemon.socket)}, **settings)


def write(path, *lines):
    """A recording for the scripted front end."""
    path.write_bytes(script(*lines))
    return path.name


def test_verbs_without_audio(ask, daemon):
    """Ping, status and reload work against the real daemon."""
    assert ask("ping") == (0, f"sensevoiced/{sensevoiced.__version__} answers at {daemon.socket}\n", "")
    answer = json.loads(ask("status", "--json")[1])
    assert (answer["pid"], answer["state"]) == (daemon.pid, "ready")
    table = ask("status")[1]
    assert f"pid {daemon.pid}, ready" in table
    assert ask("reload")[::2] == (0, "")


def test_files_come_back_in_order(ask, tmp_path):
    """Twenty files over one connection give twenty transcripts in their order."""
    names = [write(tmp_path / f"{n}.wav", *[f"file {n}"] * (n % 3 + 1)) for n in range(20)]
    status, out, err = ask("transcribe", "-f", "jsonl", "-l", "yue", *names)
    answers = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (0, "")
    assert [answer["file"] for answer in answers] == names
    assert [answer["text"] for answer in answers] == [
        " ".join([f"file {n}"] * (n % 3 + 1)) for n in range(20)
    ]
    assert {segment["language"] for answer in answers for segment in answer["segments"]} == {"yue"}
    assert answers[2]["segments"][2]["words"] == [
        {"word": "file", "start": 2.0, "end": 2.5},
        {"word": "2", "start": 2.5, "end": 3.0},
    ]


def test_descriptor_and_stream_give_the_same(ask, tmp_path):
    """A file on standard input and the same bytes through a pipe are one recording."""
    write(tmp_path / "a.wav", "one", "two")
    with (tmp_path / "a.wav").open("rb") as file:
        passed = ask("transcribe", "-f", "json", "-", stdin=file)
    streamed = ask("transcribe", "-f", "json", "-", data=(tmp_path / "a.wav").read_bytes())
    assert passed == streamed
    assert json.loads(passed[1])["text"] == "one two"


def test_errors_of_single_files_leave_the_others(ask, tmp_path):
    """One file's sentence, the others' transcripts, and the first failure's exit status."""
    (tmp_path / "noise.wav").write_bytes(b"\x00\x01 no script")
    names = [
        write(tmp_path / "long.wav", {"fail": "too_long"}),
        "noise.wav",
        write(tmp_path / "good.wav", "fine"),
    ]
    status, out, err = ask("transcribe", "-f", "plain", *names)
    assert (status, out) == (65, "==> good.wav <==\nfine\n")
    assert err == "svctl: long.wav: As the script says.\nsvctl: noise.wav: This is no script.\n"


def test_interrupt_drops_the_work(start, daemon, tmp_path):
    """Ctrl-C while the front end works ends svctl with 130 and the daemon's job with it."""
    write(tmp_path / "slow.wav", {"say": "never", "decode_gate": "never"})
    process = start("transcribe", "slow.wav", env={"SENSEVOICE_SOCKET": str(daemon.socket)})
    daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 1, "the job")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == (b"", b"")
    assert process.returncode == 130
    daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 0, "no job")


def test_a_full_daemon_is_waited_for(svctl, start, tmp_path):
    """F17: with room for one job at a time all files are transcribed; --no-wait says busy, exit status 75."""
    full = DaemonProcess(tmp_path / "full", settings="[serving]\nmax_jobs = 1\n")
    env = {"SENSEVOICE_SOCKET": str(full.socket)}
    try:
        names = [write(tmp_path / f"{n}.wav", f"file {n}") for n in range(4)]
        status, out, err = svctl("transcribe", "-f", "raw", *names, env=env)
        assert (status, err) == (0, "")
        assert [line.rpartition(">")[2] for line in out.splitlines()] == [f"file {n}" for n in range(4)]
        write(tmp_path / "slow.wav", {"say": "later", "decode_gate": "go"})
        slow = start("transcribe", "slow.wav", env=env)
        full.wait_status(lambda status: status["queue"]["jobs_active"] == 1, "the job")
        assert svctl("transcribe", "--no-wait", "0.wav", env=env)[0] == 75
        full.open_gate("go")
        assert slow.communicate(timeout=20)[0] == b"[EN][NEUTRAL] later\n"
    finally:
        full.stop()


def test_a_daemon_that_is_killed_is_one_sentence(svctl, start, tmp_path):
    """F31: a daemon that dies in the middle of a request gives one clear error and exit status 69."""
    dying = DaemonProcess(tmp_path / "dying")
    write(tmp_path / "slow.wav", {"say": "never", "decode_gate": "never"})
    process = start("transcribe", "slow.wav", env={"SENSEVOICE_SOCKET": str(dying.socket)})
    dying.wait_status(lambda status: status["queue"]["jobs_active"] == 1, "the job")
    dying.kill()
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err.count(b"\n")) == (69, b"", 1)
    assert svctl("ping", env={"SENSEVOICE_SOCKET": str(dying.socket)})[0] == 69


def test_svctl_that_dies_is_dropped(start, daemon, tmp_path):
    """A client that is killed takes its work with it."""
    write(tmp_path / "slow.wav", {"say": "never", "decode_gate": "never"})
    process = start("transcribe", "slow.wav", env={"SENSEVOICE_SOCKET": str(daemon.socket)})
    daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 1, "the job")
    before = daemon.status()["jobs"]["cancelled"]
    process.kill()
    daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 0, "no job")
    assert daemon.status()["jobs"]["cancelled"] == before + 1


@pytest.fixture(scope="module")
def expected():
    """What the sample clips say: file name to its rows."""
    if not (SAMPLES / "expected.tsv").is_file():
        pytest.skip("the sample clips are not built")
    rows = {}
    with (SAMPLES / "expected.tsv").open(encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table, delimiter="\t"):
            rows.setdefault(row["file"], []).append(row)
    return rows


def test_samples_give_the_same_bytes_every_time(ask_demo, expected):
    """The same files give byte-identical JSON, with every key of the contract and times that fit."""
    names = [SAMPLES / name for name in expected]
    runs = [ask_demo("transcribe", "-f", "json", *names) for _ in range(3)]
    assert set(runs) == {runs[0]}
    status, out, _ = runs[0]
    assert status == 0
    for answer in json.loads(out):
        assert {"file", "duration", "language", "text", "segments", "model"} <= answer.keys()
        for segment in answer["segments"]:
            assert 0 <= segment["start"] < segment["end"] <= answer["duration"] + 0.1
            assert all(0 <= segment[f"{tag}_score"] <= 1 for tag in ("language", "emotion", "event"))
            for word in segment["words"]:
                assert segment["start"] <= word["start"] <= word["end"] <= segment["end"] + 0.1


def test_samples_are_heard_in_their_languages(ask_demo, expected):
    """Every language spoken in a sample clip is found in its transcript, and nothing else is spoken."""
    names = list(expected)
    _, out, _ = ask_demo("transcribe", "-f", "jsonl", *[SAMPLES / name for name in names])
    for name, line in zip(names, out.splitlines(), strict=True):
        heard = {segment["language"] for segment in json.loads(line)["segments"] if segment["text"]}
        assert heard == {row["language"] for row in expected[name] if row["text with ITN"]}, name


def test_the_demo_model_is_what_status_shows(ask_demo, demo):
    """Status names the model, its size and where it runs."""
    answer = json.loads(ask_demo("status", "--json")[1])
    assert (answer["model"], answer["device"], answer["pid"]) == ("demo", "cpu", demo.pid)
    assert answer["memory"]["daemon_rss_bytes"] > 2**20
    assert answer["parameters"] > 100_000
