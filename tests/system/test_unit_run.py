"""The shipped units at work: their sandbox around the daemon, their deadlines, systemd's channels to it.

Tests have no PID 1 to run them, so systemd-socket-activate starts the daemon, the test reads the
notifications, and harness/unit_sandbox.py puts in force what the unit says of system calls, privileges, files
and network.
"""

from __future__ import annotations

import ctypes.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness.asking import ask
from harness.daemon import FAKE, script, wait_until
from harness.figures import note, within
from harness.socket_unit import needs_socket_activate
from harness.unit_sandbox import LIBSECCOMP, directives
from harness.wire_client import Closed, WireClient

from sensevoiced.heartbeat import EXTEND_BY_S
from sensevoiced.models import DEMO_DIR

SANDBOX = Path(__file__).parents[1] / "harness" / "unit_sandbox.py"
DEADLINE_S = 1.5
"""The watchdog's, where a test waits for its end; that of the units is half a minute."""


def have_libseccomp():
    """Whether the library is here that systemd makes its filters with."""
    try:
        ctypes.CDLL(LIBSECCOMP)
    except OSError:
        return False
    return True


pytestmark = [
    needs_socket_activate,
    pytest.mark.skipif(
        not have_libseccomp() or shutil.which("systemd-analyze") is None,
        reason="libseccomp is not installed, or systemd-analyze, which knows systemd's sets of system calls",
    ),
]


def sandboxed(unit, *command):
    """The command that runs a command under a unit."""
    return (sys.executable, SANDBOX, unit, *command)


@pytest.mark.skipif(not (DEMO_DIR / "model.pt").is_file(), reason="the demo model is not built")
def test_f28_the_system_unit_loads_serves_reloads_and_stops(
    repository, tmp_path, activate, manager, record_property
):
    """The real daemon in the unit's sandbox, from first connection to exit 0, within the unit's deadlines.

    More time is asked for while torch is imported and the model loads, READY=1 comes after the warm-up, and
    signs of life come in time whether it is idle or works.
    """
    unit = repository / "systemd" / "sensevoiced.service"
    said = dict(directives(unit))
    watchdog_s = float(said["WatchdogSec"])
    daemon = (sys.executable, "-m", "sensevoiced", "--config", "/dev/null", "--device", "cpu")
    (tmp_path / "cache").mkdir()
    path, process = activate(
        *sandboxed(unit, *daemon, "--model", "demo"),
        WATCHDOG_USEC=round(watchdog_s * 1e6),
        CACHE_DIRECTORY=tmp_path / "cache",
        PYTHONPATH=os.pathsep.join(sys.path),
    )
    log = tmp_path / "log"
    with WireClient(path, timeout_s=180) as client:
        recording = os.open(DEMO_DIR / "samples" / "angry.flac", os.O_RDONLY)
        first = client.ask(1, recording)
        assert first[-1]["type"] == "done", log.read_text()
        assert manager.count("READY=1") == 1
        assert manager.count("EXTEND_TIMEOUT_USEC=") >= 1
        wait_until(lambda: manager.count("WATCHDOG=1") >= 3, "signs of life of an idle daemon")
        idle = manager.count("WATCHDOG=1")
        request = 1
        while manager.count("WATCHDOG=1") < idle + 3:
            request += 1
            assert client.ask(request, recording)[-1]["type"] == "done"
        os.close(recording)
        command = shlex.split(said["ExecReload"].replace("$MAINPID", str(process.pid)))
        assert subprocess.run(command, timeout=30).returncode == 0
        wait_until(lambda: manager.count("READY=1") == 2, "READY=1 after the reload")
        assert manager.count("RELOADING=1") == 1
        children = client.status()["memory"]["children"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(float(said["TimeoutStopSec"])) == 0
    assert manager.count("STOPPING=1") == 1
    assert len(children) >= 1
    text = log.read_text()
    assert "in force: seccomp, no capabilities" in text
    assert "Traceback" not in text
    assert "WARNING" not in text, text
    (jail,) = (line for line in text.splitlines() if "children are closed in by" in line)
    assert "seccomp" in jail
    loading_s = max(
        [manager.longest_gap_s("EXTEND_TIMEOUT_USEC=")] if len(manager.times("EXTEND")) > 1 else [0.0]
    )
    within(record_property, "unit: longest silence while loading", loading_s, EXTEND_BY_S, "s", slack=1)
    pings_s = manager.longest_gap_s("WATCHDOG=1")
    within(record_property, "unit: longest silence idle and working", pings_s, watchdog_s, "s", slack=1)
    note(record_property, next(line for line in text.splitlines() if line.startswith("in force")))
    note(record_property, jail.partition(": ")[2])


@pytest.mark.parametrize("folder", ["", "user"])
def test_f27_a_stuck_engine_misses_the_deadline_in_the_units_sandbox(
    repository, tmp_path, activate, manager, record_property, *, folder
):
    """Pings until the engine hangs, none after it; SIGABRT then prints every stack and leaves no core."""
    unit = repository / "systemd" / folder / "sensevoiced.service"
    control = tmp_path / "cache"
    control.mkdir()
    settings = tmp_path / "settings.toml"
    settings.write_text("[batch]\nstuck_after_s = 0.2\n")
    path, process = activate(
        *sandboxed(unit, sys.executable, FAKE, control, "--config", settings),
        WATCHDOG_USEC=round(DEADLINE_S * 1e6),
        CACHE_DIRECTORY=control,
    )
    with WireClient(path) as client:
        wait_until(lambda: manager.count("WATCHDOG=1") >= 3, "pings")
        ask(client, 1, script({"say": "x", "engine_gate": "never"}))
        wait_until(lambda: "at never" in (control / "engine.log").read_text(), "the engine at the gate")
        wait_until(lambda: manager.silence_s("WATCHDOG=1") > DEADLINE_S, "a deadline missed")
        silence_s = manager.silence_s("WATCHDOG=1")
        process.send_signal(signal.SIGABRT)
        assert process.wait(30) == -signal.SIGABRT
        with pytest.raises(Closed):
            client.events(1)
    log = (tmp_path / "log").read_text()
    assert "Fatal Python error: Aborted" in log
    assert "in wait_for_gate" in log
    assert "in run_forever" in log
    assert list(tmp_path.glob("core*")) == []
    note(
        record_property,
        f"{folder or 'system'} unit: SIGABRT after {silence_s:.1f} s of silence (deadline {DEADLINE_S} s), "
        "all stacks in the log",
    )


def test_the_sandbox_is_one(repository, tmp_path):
    """What the unit forbids fails in it, so that the tests above say something."""
    unit = repository / "systemd" / "sensevoiced.service"
    program = """
import ctypes, os, resource, socket
def refused(call):
    try:
        call()
    except OSError as error:
        return error.strerror
    return "allowed"
libc = ctypes.CDLL(None, use_errno=True)
def checked(done):
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
print(refused(lambda: socket.socket(socket.AF_INET)))
print(refused(lambda: os.chown("/", 0, 0)))
print(refused(lambda: checked(libc.unshare(0x10000000))))
print(refused(lambda: checked(libc.ptrace(0, 0, 0, 0))))
print(refused(lambda: socket.socket(socket.AF_UNIX).close()))
dropped = "CapBnd:\\t0000000000000000" in open("/proc/self/status").read()
print(resource.getrlimit(resource.RLIMIT_CORE)[0], oct(os.umask(0)), dropped)
"""
    words = sandboxed(unit, sys.executable, "-c", program)
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    family, *rest = done.stdout.splitlines()
    assert family == "Address family not supported by protocol"
    assert rest[:4] == ["Operation not permitted"] * 3 + ["allowed"]
    core, umask, no_capabilities = rest[4].split()
    assert (core, umask) == ("0", "0o77")
    assert no_capabilities == "True" or os.geteuid() != 0
