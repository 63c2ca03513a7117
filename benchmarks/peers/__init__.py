"""The peers that the daemon is measured against, each in processes and an environment of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peers.command import FunasrCommand
from benchmarks.peers.in_process import Sherpa, Stock
from benchmarks.peers.process import missing
from benchmarks.peers.served import FunasrServer, Service

if TYPE_CHECKING:
    from benchmarks.contender import Contender, Machine


def peers(machine: Machine) -> list[Contender]:
    """All of them, whether installed or not; nothing is started."""
    absent = missing()
    no_sherpa = absent
    if machine.device != "cpu":
        no_sherpa = "sherpa-onnx's package on PyPI computes on the CPU only"
    return [
        Stock("stock", machine, absent),
        Stock("stock-tuned", machine, absent, tuned=True),
        Service("service-1", machine, absent),
        Service("service-tuned", machine, absent, tuned=True),
        Service("service-4", machine, absent, workers=4),
        FunasrServer("funasr-server", machine, absent),
        Sherpa("sherpa-fp32", machine, no_sherpa),
        Sherpa("sherpa-int8", machine, no_sherpa, precision="int8"),
        FunasrCommand("funasr-cli", machine, absent),
    ]
