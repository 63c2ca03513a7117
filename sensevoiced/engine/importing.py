"""Imports torch without what only its compiler reads, a quarter of the time that a bare `import torch` takes.

Torch declares in Python, operator by operator, which shape each result would have for tensors without memory.
torch.compile and torch.export ask for that; computing does not. It is one module, torch._meta_registrations,
which torch's own __init__ imports last and uses nothing of. Whoever asks for it later gets the real one.

Only where the engine can run on nothing but a CPU: for GPUs it could not be tried.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

TRIED = ("2.13.",)
"""Versions of torch that this was tried with; any other is imported as it wants to be."""
DECLARATIONS = "torch._meta_registrations"
_DEVICES = ("cuda", "hip", "xpu")
"""What torch's version.py says which devices it was built for by; None where it was not."""


def import_torch(device: str) -> None:
    """Import torch for an engine on `device` (`auto` and so on); harmless where it is imported already.

    Raises ImportError where there is no torch.
    """
    if "torch" in sys.modules or not _tried(device):
        import torch  # noqa: PLC0415 - seconds, and for its effect

        return
    sys.modules[DECLARATIONS] = ModuleType(DECLARATIONS)
    try:
        import torch  # noqa: PLC0415
    finally:
        del sys.modules[DECLARATIONS]
    vars(torch).pop(DECLARATIONS.rpartition(".")[2], None)
    # The one thing that is needed of what it would have imported in its turn: without, no torch.Generator.
    from torch._opaque_base import OpaqueBaseMeta  # noqa: PLC0415

    torch._C._set_generator_metaclass(OpaqueBaseMeta)  # noqa: SLF001


def _tried(device: str) -> bool:
    """Say whether the torch that would be imported is one that this was tried with, on that device."""
    about = _about_torch()
    on_cpu = device == "cpu" or not any(about.get(name) for name in _DEVICES)
    return on_cpu and str(about.get("__version__", "")).startswith(TRIED)


def _about_torch() -> dict[str, object]:
    """Read what version.py sets, without importing what it belongs to; {} where that cannot be read."""
    found = importlib.util.find_spec("torch")
    folders = list((found and found.submodule_search_locations) or [])
    try:
        tree = ast.parse((Path(folders[0]) / "version.py").read_text("utf-8"))
    except (IndexError, OSError, SyntaxError, ValueError):
        return {}
    about: dict[str, object] = {}
    for line in tree.body:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        value = getattr(line, "value", None)
        if isinstance(targets[0], ast.Name) and isinstance(value, ast.Constant):
            about[targets[0].id] = value.value
    return about
