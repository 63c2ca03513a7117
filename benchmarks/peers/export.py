"""The checkpoint in the form that sherpa-onnx reads, made once in the peers' environment and kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.checkpoint import made_once
from benchmarks.peers.process import PYTHON, WORKERS, Group

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.contender import Machine

FILES = {"float32": "model.onnx", "int8": "model.int8.onnx"}


def sherpa_onnx(machine: Machine, precision: str) -> Path:
    """Give the ONNX file of the machine's model; tokens.txt lies beside it. ContenderError where it fails."""
    weights = (machine.model / "model.pt").stat()

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        log = machine.work / "export_sherpa.log"
        group = Group([PYTHON, WORKERS / "export_sherpa.py", machine.model, folder], log)
        try:
            if group.wait():
                raise group.failure("the export for sherpa-onnx failed")
        finally:
            group.end()

    name = f"sherpa-{weights.st_size}-{weights.st_mtime_ns}"
    return made_once(machine.cache / name, write) / FILES[precision]
