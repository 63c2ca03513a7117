"""The folder in which FunASR's commands find their models by name and ask no hub for them; starts nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.contender import Machine


def hub(machine: Machine) -> Path:
    """Make a folder to start FunASR's commands in.

    FunASR takes a name for a path where that exists, relative to its working directory.
    """
    folder = machine.work / "hub"
    models = {"SenseVoiceSmall": machine.model, "speech_fsmn_vad_zh-cn-16k-common-pytorch": machine.vad}
    for name, model in models.items():
        place = folder / "iic" / name
        place.mkdir(parents=True, exist_ok=True)
        for file in model.resolve().iterdir():
            link = place / file.name
            if not link.is_symlink():
                link.symlink_to(file)
    return folder
