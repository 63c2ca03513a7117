"""engine/kernels.py: few compiled kernels are kept, and never fewer than a batch needs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from sensevoiced.engine import kernels

if TYPE_CHECKING:
    from collections.abc import Mapping

ONEDNN, TORCH = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"


def _limits(threads: int, precision: str, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    found = dict(environ or {})
    kernels.keep_few(found, threads=threads, precision=precision)
    return found


@pytest.mark.parametrize("precision", ["auto", "float32", "float16"])
def test_layers_that_run_on_whole_batches_need_few_on_any_machine(precision: str) -> None:
    """One number of rows at a time."""
    assert _limits(2, precision) == _limits(64, precision) == {ONEDNN: "32", TORCH: "32"}


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_layers_that_run_by_utterance_need_more_with_more_threads(precision: str) -> None:
    """Batches grow with the threads, and with them the numbers of rows."""
    assert int(_limits(16, precision)[ONEDNN]) == 8 * int(_limits(2, precision)[ONEDNN])
    assert _limits(1, precision) == _limits(2, precision)


def test_what_somebody_has_set_stays() -> None:
    """An administrator knows better."""
    assert _limits(2, "int8", {ONEDNN: "7"})[ONEDNN] == "7"


def test_no_threads_means_one_a_core() -> None:
    """As everywhere."""
    assert _limits(0, "int8") == _limits(len(os.sched_getaffinity(0)), "int8")


GROWTH = """
    import os, sys
    from sensevoiced.engine import kernels
    if sys.argv[1] == "few":
        kernels.keep_few(os.environ, threads=1, precision="float32")
    import torch
    from sensevoiced.engine.linear import Linear, PackedLinear

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    torch.set_num_threads(1)
    layer = Linear(512, 2048)
    layer.weight.zero_(), layer.bias.zero_()
    packed = PackedLinear(layer, torch.float32)
    packed(torch.zeros(2000, 512), [])
    before = resident()
    for rows in range(1, 400):
        packed(torch.zeros(rows, 512), [])
    print(resident() - before)
"""


def test_torch_heeds_them() -> None:
    """The names are right, and were read in time: memory grows by less than half."""

    def growth(how: str) -> int:
        environ = {name: value for name, value in os.environ.items() if name not in {ONEDNN, TORCH}}
        command = [sys.executable, "-c", textwrap.dedent(GROWTH), how]
        return int(subprocess.run(command, env=environ, capture_output=True, check=True).stdout)

    few, all_of_them = growth("few"), growth("all")
    if all_of_them < 20 * 2**20:
        pytest.skip(f"400 kernels take only {all_of_them >> 20} MiB on this processor: nothing to save")
    assert few < all_of_them / 2
