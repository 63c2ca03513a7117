"""What tests of the units and of socket activation share."""

from __future__ import annotations

import subprocess

import pytest
from harness.daemon import wait_until
from harness.socket_unit import NAME


@pytest.fixture
def activate(tmp_path, manager):
    """Put a command behind a socket; gives (path, process). The command starts with the first connection."""
    processes = []

    def start(*command, **environ):
        path = tmp_path / "api.sock"
        environ = {"NOTIFY_SOCKET": manager.path, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path), **environ}
        flags = [f"--setenv={name}={value}" for name, value in environ.items()]
        words = ["systemd-socket-activate", f"--listen={path}", f"--fdname={NAME}", *flags, *command]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log)
        processes.append(process)
        wait_until(path.exists, "the socket")
        return path, process

    yield start
    for process in processes:
        process.kill()
        process.wait()
