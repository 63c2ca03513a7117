"""Imports torch without what only its compiler reads, a quarter of the time that a bare `import torch` takes.

Torch declares in Python, operator by operator, which shape each result would have for tensors without memory.
torch.compile and torch.export ask for that; computing does not. It is one module, torch._meta_registrations,
which torch's own __init__ imports last and uses nothing of. Whoever asks for it later gets the real one.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

TRIED = ("2.13.",)
"""Versions of torch that this was tried with; any other is imported as it wants to be."""
DECLARATIONS = "torch._meta_registrations"


def import_torch() -> None:
    """Import torch; harmless where it is imported already. Raises ImportError where there is none."""
    if "torch" in sys.modules or not _tried():
        import torch  # noqa: PLC0415 - seconds, and for its effect

        return
    sys.modules[DECLARATIONS] = ModuleType(DECLARATIONS)
    try:
        import torch  # noqa: PLC0415
    finally:
        del sys.modules[DECLARATIONS]
    vars(torch).pop(DECLARATIONS.rpartition(".")[2], None)


def _tried() -> bool:
    """Say whether the torch that would be imported is a version that this was tried with."""
    found = importlib.util.find_spec("torch")
    for folder in (found and found.submodule_search_locations) or ():
        try:
            said = (Path(folder) / "version.py").read_text("utf-8")
        except OSError:
            continue
        return any(f"__version__ = '{version}" in said for version in TRIED)
    return False
