"""The daemon under the real systemd-socket-activate, with a real notification socket."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from harness.daemon import FAKE, script, wait_until
from harness.socket_unit import needs_socket_activate
from harness.wire_client import WireClient, memfd, texts

import sensevoiced

pytestmark = needs_socket_activate


def test_f28_ready_after_warm_up_on_an_activated_socket(tmp_path, activate, manager):
    """The first client starts the daemon, is answered while it loads, and is served after READY=1."""
    control = tmp_path / "control"
    control.mkdir()
    path, process = activate(
        *(sys.executable, str(FAKE), str(control), "--config", "/dev/null"), FAKE_WARM_UP_GATE="warm"
    )
    with WireClient(path, timeout_s=30) as client:
        client.transcribe(1, memfd(script("activated")))
        assert client.status()["state"] == "loading"
        wait_until((control / "engine.log").exists, "warm-up begun")
        assert manager.count("READY=1") == 0
        (control / "warm").touch()
        assert texts(client.events(1)) == ["activated"]
        wait_until(lambda: manager.count("READY=1") == 1, "READY")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert manager.count("STOPPING=1") == 1


def test_the_whole_daemon_is_ready_only_after_warm_up(tmp_path, activate, manager, shared_data):
    """Real front end, real engine.

    READY=1 names what is in force, and the waiting request is answered then.
    """
    demo = Path(sensevoiced.__file__).parent / "demo"
    if (demo / "model.pt").exists():
        model, vad = "demo", "auto"
    else:
        from harness.random_checkpoint import write_tiny

        model, vad = str(write_tiny(tmp_path / "model", n_mels=80)), str(shared_data / "fsmn_vad")
    path, process = activate(
        *(sys.executable, "-m", "sensevoiced", "--config", "/dev/null", "--device", "cpu", "--threads", "1"),
        *("--model", model, "--vad", vad),
        PYTHONPATH=os.pathsep.join(sys.path),
    )
    recording = shared_data / "audio" / "formats" / "gcp_googlework_short.mp4"
    with WireClient(path, timeout_s=180) as client:
        fd = os.open(recording, os.O_RDONLY)
        client.transcribe(1, fd)
        os.close(fd)
        status = client.status()
        assert status["state"] == "loading" or manager.count("READY=1") == 1
        events = client.events(1)
        assert events[-1]["type"] == "done", events[-1]
        assert abs(events[-1]["duration"] - 35.0) < 0.1
        assert manager.count("READY=1") == 1
        ready = next(message for message in manager.messages() if "READY=1" in message)
        assert "cpu, float32, engine torch" in ready[1]
        assert manager.count("EXTEND_TIMEOUT_USEC=") >= 1
        children = client.status()["memory"]["children"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    for child in children:
        wait_until(lambda pid=child["pid"]: not Path(f"/proc/{pid}").exists(), "children gone")
