"""engine/device.py: what a process takes from the system at its start it does not take later."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

MIB = 2**20
PROGRAM = """
    import os, sys, threading
    import torch
    from sensevoiced.engine.device import reserve_memory

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def main():
        torch.zeros(2**20).sum()
        before = resident()
        reserve_memory(int(sys.argv[1]))
        reserved = resident()
        for size in (1, 3, 8, 20, 40):
            pieces = [torch.zeros(2**18) for _ in range(size)]
            pieces.clear()
        print(reserved - before, resident() - reserved)

    # On a thread, as the engine runs: glibc has another arena for it.
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
"""


@pytest.mark.parametrize(
    ("parameters", "least", "most"), [(234_000_000, 50, 64), (10**10, 55, 66), (10**6, 0, 4)]
)
def test_memory_is_taken_once(parameters, least, most):
    """As much as the model's size asks for, bounded; what fits into it later takes next to nothing more."""
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(parameters)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    taken, later = (int(word) / MIB for word in done.stdout.split())
    assert least <= taken <= most
    if least:
        assert later <= 8


SCARCE = """
    import resource
    import torch
    from sensevoiced.engine.device import reserve_memory

    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 10 * 2**20, resource.RLIM_INFINITY))
    reserve_memory(234_000_000)
    print("goes on")
"""


def test_too_little_of_it_is_no_error():
    """Then batches are divided."""
    command = [sys.executable, "-c", textwrap.dedent(SCARCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")
