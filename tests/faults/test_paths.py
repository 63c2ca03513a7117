"""Row F20: paths instead of descriptors, and files that not everybody may read."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.daemon import wait_until
from harness.decoding import SETTINGS, DecodingCanary, DecodingDaemon, ask
from harness.demo import sample, wav
from harness.figures import note
from harness.opened import Opened
from harness.users import FOR_ALL, NOBODY, let_in, needs_root, public_folder
from harness.wire_client import WireClient, memfd, texts

import svctl

SECRET, OWN = wav(sample("angry")), wav(sample("en"))
RUN_S = 120.0
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, PR_CAPBSET_DROP = 1, 2, 24


@pytest.fixture
def folder():
    """A folder that every user may enter."""
    with public_folder() as found:
        yield found


@pytest.fixture
def daemon(folder):
    """A daemon that every user may reach, with the canary after the test."""
    process = DecodingDaemon(folder / "daemon", settings=FOR_ALL + SETTINGS)
    try:
        let_in(process)
        canary = DecodingCanary(process)
        yield process
        canary.check()
    finally:
        process.kill()


@pytest.fixture
def secret(folder):
    """A file that only the daemon's user may read, with its several names and what tells of its opening."""
    path = folder / "secret.wav"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    (folder / "link").symlink_to(path)
    opened = Opened(path)
    yield path, [path, folder / "link", f"{folder}/daemon/../secret.wav"], opened
    opened.close()


def open_files(pid):
    """What a process has open, by name."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield str(fd.readlink())


def as_nobody(daemon):
    """A connection of another user's."""
    os.seteuid(NOBODY)
    try:
        return WireClient(daemon.socket)
    finally:
        os.seteuid(0)


def test_f20_a_path_is_opened_for_the_daemons_own_user(daemon, folder, secret):
    """With all that a path may hold: links, `..`; what is no file is refused without waiting for it."""
    path, names, opened = secret
    with daemon.client() as client:
        heard = texts(ask(client, 1, SECRET))
        for n, name in enumerate(names, start=2):
            assert texts(client.ask(n, source="path", path=str(name))) == heard != []
            assert opened()
        os.mkfifo(folder / "fifo")
        for n, name in enumerate((folder / "fifo", folder, path.parent / "absent"), start=10):
            expected = "not_found" if name.name == "absent" else "bad_input"
            assert client.ask(n, source="path", path=str(name))[-1]["code"] == expected


@needs_root
def test_f20_nothing_is_opened_for_another_user(daemon, secret, record_property):
    """`forbidden` for every path to it, and the daemon opens nothing; a descriptor of theirs is served.

    Reload is not theirs either.
    """
    _, names, opened = secret
    with as_nobody(daemon) as client:
        for n, name in enumerate([*names, "/etc/shadow", f"/proc/{daemon.pid}/environ"]):
            (error,) = client.ask(n, source="path", path=str(name))
            assert error["code"] == "forbidden"
        client.send({"type": "reload", "id": 50})
        assert client.receive()["code"] == "forbidden"
        assert texts(ask(client, 60, OWN))
        assert not [name for name in open_files(daemon.pid) if "secret" in name]
    seen = opened()
    note(record_property, f"{len(names)} ways to name the file of another user: opened {int(seen)} times")
    assert not seen


@needs_root
def test_f20_a_passed_descriptor_is_all_that_a_request_can_reach(daemon, secret):
    """A path beside a descriptor is a label: the answer is that of the descriptor's file."""
    path, _, opened = secret
    with as_nobody(daemon) as client:
        fd = memfd(OWN)
        with_path = texts(client.ask(1, fd, path=str(path), label=str(path)))
        os.close(fd)
        assert with_path == texts(ask(client, 2, OWN))
    assert not opened()


def obey_modes():
    """Let file modes count for what is started next, though root starts it."""
    # Root reads everything by these two capabilities; without them it is told EACCES like everybody.
    prctl = ctypes.CDLL(None).prctl
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@needs_root
def test_f20_svctl_reports_its_own_eacces(daemon, folder, secret, record_property):
    """A file that the daemon may read and its client may not is svctl's own error, and stays closed.

    Row changed: exit status 77 (EX_NOPERM) instead of 66 (EX_NOINPUT), which svctl keeps for files that are
    not there: a script has to tell the two apart.
    """
    path, _, opened = secret
    os.chown(path, NOBODY, NOBODY)
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(svctl.__file__).parents[1]),
        "SENSEVOICE_SOCKET": str(daemon.socket),
        "LC_ALL": "C",
    }
    command = [sys.executable, "-m", "svctl", "transcribe", "secret.wav"]
    process = subprocess.run(
        command,
        cwd=folder,
        env=environ,
        capture_output=True,
        timeout=RUN_S,
        text=True,
        preexec_fn=obey_modes,
    )
    said = (process.returncode, process.stdout, process.stderr)
    note(record_property, f"svctl on a file that it may not read: exit status {process.returncode}")
    assert said == (77, "", "svctl: secret.wav cannot be opened: Permission denied.\n")
    assert not opened()
    with daemon.client() as own:
        assert own.ask(1, source="path", path=str(path))[-1]["type"] == "done"
    wait_until(opened, "the watch itself works")
