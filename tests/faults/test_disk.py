"""Section E of the abuse table, disks (F35): full ones, read-only ones, and a log that goes nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import starved_disk
from harness.daemon import START_S, wait_until
from harness.demo import DemoCanary, DemoDaemon, sample, wav
from harness.figures import note
from harness.svctl_process import run_svctl
from harness.wire_client import memfd, texts

STARVED = Path(starved_disk.__file__)


@pytest.fixture
def start_demo(tmp_path):
    """Start a daemon with the demo model in 8 bits, so that it has something to write; ended at the end."""
    started = []

    def start(wrapper, home):
        folder = tmp_path / "d"
        folder.mkdir(exist_ok=True)
        daemon = DemoDaemon(
            folder,
            settings=f'precision = "int8"\ncache_dir = "{home}/cache"\nlog_level = "debug"\n',
            environ={"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home)},
            wrapper=wrapper,
            ready=False,
        )
        started.append(daemon)
        wait_until(lambda: daemon.process.poll() is not None or ready(daemon), "ready", START_S)
        assert daemon.process.poll() is None, daemon.text()
        return daemon

    yield start
    for daemon in started:
        daemon.kill()


def ready(daemon):
    """Whether it serves; its log may not say so."""
    try:
        return daemon.status()["state"] == "ready"
    except OSError:
        return False


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What a daemon says of every kind of request where it can write as it likes."""
    folder = tmp_path_factory.mktemp("free")
    daemon = DemoDaemon(folder, settings=f'precision = "int8"\ncache_dir = "{folder}/cache"')
    try:
        yield every_way(daemon, daemon.folder)
    finally:
        daemon.kill()


def every_way(daemon, folder):
    """Texts by descriptor, streamed, by path, of a file that libav reads, and by svctl from a pipe."""
    recording = wav(sample("en"))
    (folder / "en.wav").write_bytes(recording)
    with daemon.client() as client:
        fds = [memfd(recording), memfd(wav(sample("ja"), form="OGG", subtype="VORBIS"))]
        by_descriptor = [texts(client.ask(number, fd)) for number, fd in enumerate(fds)]
        for fd in fds:
            os.close(fd)
        client.transcribe(2, source="stream")
        for start in range(0, len(recording), 50_000):
            client.send({"type": "audio", "id": 2, "data": recording[start : start + 50_000]})
        client.send({"type": "end", "id": 2})
        streamed = texts(client.events(2))
        by_path = texts(client.ask(3, source="path", path=str(folder / "en.wav")))
    piped = run_svctl(daemon.socket, "transcribe", "-f", "raw", "-", cwd=folder, data=recording)
    found = [*by_descriptor, streamed, by_path, piped]
    assert all(found)
    return found


def check(daemon, expected, record_property, what):
    """The same answers as elsewhere, and the canary."""
    canary = DemoCanary(daemon)
    for _ in range(3):
        assert every_way(daemon, daemon.folder) == expected
    canary.check()
    assert daemon.stop() == 0
    note(record_property, f"{what}: {3 * len(expected)} of {3 * len(expected)} answers as elsewhere")


def needs_mounts():
    """Skip where mounts are not ours to make."""
    if not starved_disk.possible():
        pytest.skip("full and read-only disks are mounted for the test, which needs root and CAP_SYS_ADMIN")


def test_f35_full_disks(start_demo, answers, tmp_path, record_property):
    """/tmp, caches, home and the log are full: no weights are kept, lines are lost, all is answered."""
    needs_mounts()
    folder = tmp_path / "d"
    wrapper = [sys.executable, str(STARVED), "full", str(folder)]
    daemon = start_demo(wrapper, folder / "full")
    inside = Path(f"/proc/{daemon.pid}/root") / folder.relative_to("/") / "full"
    assert os.statvfs(inside).f_bavail == 0
    assert list((inside / "cache").iterdir()) == []
    check(daemon, answers, record_property, "full")


def test_f35_read_only_disks(start_demo, answers, tmp_path, record_property):
    """Not a byte can be written but to the log and the socket's folder: all is answered."""
    needs_mounts()
    folder, home = tmp_path / "d", tmp_path / "home"
    home.mkdir()
    daemon = start_demo([sys.executable, str(STARVED), "read-only", str(folder)], home)
    assert os.statvfs(Path(f"/proc/{daemon.pid}/root/tmp")).f_flag & os.ST_RDONLY
    assert "8-bit weights are not kept" in daemon.text()
    check(daemon, answers, record_property, "read-only")
    assert not list(home.iterdir())


def test_f35_no_file_can_grow_and_the_log_is_full(start_demo, answers, tmp_path, record_property):
    """The same without mounts: no file of the daemon's may be larger than 64 KiB, and its log is /dev/full.

    Not 0: a child rehearses with a small recording in memory, and the kernel counts that as a file.
    """
    home = tmp_path / "home"
    home.mkdir()
    # Not as the harness's own log: who reads /dev/full gets zeros without end.
    nowhere = ["sh", "-c", 'exec prlimit --fsize=65536:65536 "$@" 2>/dev/full', "sh"]
    daemon = start_demo(nowhere, home)
    check(daemon, answers, record_property, "files of 64 KiB at most, log on /dev/full")
    assert not list(home.rglob("*.pt*"))


def test_f35_a_wrong_setting_is_78_even_where_nobody_can_be_told(record_property):
    """The exit status says it where the sentence cannot be written: such a daemon is not started again."""
    command = [sys.executable, "-m", "sensevoiced", "--config", "/nowhere"]
    with Path("/dev/full").open("w") as full:
        assert subprocess.run(command, stderr=full, timeout=START_S).returncode == 78
    note(record_property, "exit 78 with standard error on /dev/full")
