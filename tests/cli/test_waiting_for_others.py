"""Who waits for a person is not idle: a pager that pauses, a microphone that hears nothing, a slow list."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import termios

import pytest
from harness import lively_svctl
from harness.daemon import DaemonProcess, script

IDLE_S = 10 * lively_svctl.PULSE_S
"""The machine may be busy with other things."""
SETTINGS = f"[serving]\nidle_timeout_s = {IDLE_S}\nwrite_timeout_s = {IDLE_S}"
LONG = "x" * 20_000
"""Of a segment: four of them are more than a pipe holds."""
HANG_S = 300.0


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    """A daemon that soon ends a connection which neither reads nor asks."""
    process = DaemonProcess(tmp_path_factory.mktemp("daemon"), settings=SETTINGS)
    yield process
    assert process.stop() == 0
    assert "Traceback" not in process.text()


@pytest.fixture
def lively(start, daemon):
    """Start svctl against that daemon, with a pulse that is as much quicker."""
    return lambda *words, **settings: start(
        *words, program=(lively_svctl.__file__,), env={"SENSEVOICE_SOCKET": str(daemon.socket)}, **settings
    )


@pytest.fixture
def outlast(daemon):
    """Let the time pass in which the daemon ends those who are idle, as it does before our eyes."""

    def wait():
        for _ in range(2):
            with daemon.client() as idle:
                assert [event["code"] for event in idle.until_closed()] == ["timeout"]

    return wait


@pytest.mark.parametrize("form", ["text", "plain", "jsonl"])
def test_a_pager_may_pause_for_as_long_as_it_likes(lively, daemon, outlast, tmp_path, form):
    """Recordings at the daemon are answered meanwhile, others asked for afterwards, and none is lost."""
    names = [f"{number}.wav" for number in range(12)]
    for name in names:
        (tmp_path / name).write_bytes(script(*[f"{name} {LONG}"] * 4))
    words = ("transcribe", "-j", "2", "-f", form, *names)
    before = daemon.status()["jobs"]["done"]
    process = lively(*words)
    daemon.wait_status(lambda status: status["jobs"]["done"] > before, "the first recording")
    outlast()
    # one that is printed, perhaps one that the pipe held, and two behind them
    assert daemon.status()["jobs"]["done"] - before <= 4
    assert process.poll() is None
    out, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, err) == (0, b"")
    assert lively(*words).communicate(timeout=HANG_S) == (out, b"")
    assert len(out) > len(names) * 4 * len(LONG)


def test_a_pager_may_pause_in_what_could_not_be_transcribed(lively, outlast, tmp_path):
    """Standard error may go into the same pipe."""
    folder = "absent" * 40
    (tmp_path / "last.wav").write_bytes(script("last"))
    names = [*(f"{folder}/{number}.wav" for number in range(500)), "last.wav"]
    process = lively("transcribe", "-f", "raw", *names, stderr=subprocess.STDOUT)
    select.select([process.stdout], [], [], HANG_S)
    outlast()
    assert process.poll() is None
    *failed, last = process.communicate(timeout=HANG_S)[0].decode().splitlines()
    assert failed == [f"svctl: {name} cannot be opened: No such file or directory." for name in names[:-1]]
    assert last.endswith(">last")


def test_a_terminal_may_be_stopped_for_as_long_as_one_likes(lively, daemon, outlast, tmp_path):
    """Ctrl-S holds the line of progress back, too."""
    (tmp_path / "first.wav").write_bytes(script({"say": "first", "decode_gate": "go"}))
    (tmp_path / "second.wav").write_bytes(script("second"))
    leader, follower = os.openpty()
    termios.tcflow(follower, termios.TCOOFF)
    words = ("transcribe", "-j", "1", "first.wav", "second.wav")
    process = lively(*words, stdout=follower, stderr=follower)
    daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 1, "the first recording")
    outlast()
    daemon.open_gate("go")
    daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 0, "its end")
    outlast()
    assert process.poll() is None
    termios.tcflow(follower, termios.TCOON)
    os.close(follower)
    text = b""
    with contextlib.suppress(OSError):  # its last process has gone
        while part := os.read(leader, 2**16):
            text += part
    os.close(leader)
    assert process.wait(HANG_S) == 0
    assert all(said in text for said in (b"/2", b"first\r\n", b"second\r\n"))


def test_a_watch_may_be_stopped_for_as_long_as_one_likes(lively, outlast):
    """What is shown afterwards goes on."""
    leader, follower = os.openpty()
    termios.tcflow(follower, termios.TCOOFF)
    process = lively("status", "--watch", "--json", stdout=follower)
    outlast()
    assert process.poll() is None
    termios.tcflow(follower, termios.TCOON)
    os.close(follower)
    text = b""
    while text.count(b"uptime_s") < 2:
        text += os.read(leader, 2**16)
    process.send_signal(signal.SIGINT)
    assert process.wait(HANG_S) == 130
    os.close(leader)


@pytest.fixture
def microphone(lively, daemon):
    """Transcribe what is said into it, of which something has been."""
    process = lively("transcribe", "--tags", "none", "-", stdin=subprocess.PIPE)
    say(process, "one")
    assert shown(process) == "one\n"
    return process


def say(process, text):
    """Speak, without an end."""
    process.stdin.write(script(text))
    process.stdin.flush()


def shown(process):
    """What a process has printed by now, where it prints something in the end."""
    assert select.select([process.stdout], [], [], HANG_S)[0]
    return os.read(process.stdout.fileno(), 2**20).decode()


def test_nothing_may_be_said_for_as_long_as_one_likes(microphone, outlast):
    """A recording that is still being made has its silences."""
    for text in ("two", "three"):
        outlast()
        say(microphone, text)
        assert shown(microphone) == f"{text}\n"
    assert microphone.communicate(timeout=HANG_S) == (b"", b"")
    assert microphone.returncode == 0


def test_a_client_that_stops_keeps_no_place(microphone, daemon):
    """It gives no sign of life, and so is ended with all it had; when it goes on it is told so."""
    microphone.send_signal(signal.SIGSTOP)
    daemon.wait_status(lambda status: status["queue"]["jobs_active"] == 0, "no job")
    microphone.send_signal(signal.SIGCONT)
    out, err = microphone.communicate(timeout=HANG_S)
    assert (microphone.returncode, out) == (75, b"")
    assert err.decode() == (
        f"svctl: Nothing was asked for {IDLE_S:g} s: connect again; a ping now and then keeps a connection.\n"
    )


def test_a_list_of_names_may_be_as_slow_as_it_likes(lively, outlast, tmp_path):
    """Between two names nothing is asked for."""
    process = lively("transcribe", "-f", "raw", "-0", stdin=subprocess.PIPE)
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(script(name))
        outlast()
        process.stdin.write(f"{name}\0".encode())
        process.stdin.flush()
        assert shown(process).endswith(f">{name}\n")
    out, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, out) == (0, b"")
    assert err.startswith(b"svctl: 2 transcribed, 0 failed; ")
