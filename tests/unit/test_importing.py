"""engine/importing.py: torch without its compiler's declarations, which come back for whoever asks."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from sensevoiced.engine.importing import DECLARATIONS, TRIED

ASKED = """
    import sys
    from sensevoiced.engine.importing import DECLARATIONS, import_torch
    import_torch()
    assert DECLARATIONS not in sys.modules
    import torch
    assert not hasattr(torch, "_meta_registrations")
    import_torch()
"""


def _said(program: str, *words: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(ASKED) + textwrap.dedent(program), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_this_torch_is_one_that_was_tried() -> None:
    """With another one the start takes longer, and nobody would notice."""
    assert torch.__version__.startswith(TRIED)


def test_less_is_imported() -> None:
    """Of the modules that only the compiler needs, none."""
    loaded = _said("print(*sys.modules)").split()
    assert not {DECLARATIONS, "torch._refs", "torch._prims", "torch._decomp"} & {*loaded}


def test_whoever_asks_later_gets_the_real_one() -> None:
    """Shapes without memory, as torch.export works them out: by a declaration that was left out at first."""
    program = """
        import torch._meta_registrations
        from torch._subclasses.fake_tensor import FakeTensorMode
        with FakeTensorMode():
            print(*torch.linalg.cholesky(torch.empty(3, 4, 4)).shape)
    """
    assert _said(program).split() == ["3", "4", "4"]


@pytest.mark.parametrize("version", ["2.12.1", "3.0.0"])
def test_an_unknown_version_is_imported_as_it_is(tmp_path, version: str) -> None:
    """Its __init__ may use what is left out."""
    package = tmp_path / "torch"
    package.mkdir()
    package.joinpath("version.py").write_text(f"__version__ = '{version}'\n")
    package.joinpath("_meta_registrations.py").write_text("here = True\n")
    package.joinpath("__init__.py").write_text(
        "from torch import _meta_registrations\nassert _meta_registrations.here\n"
    )
    program = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from sensevoiced.engine.importing import import_torch
        import_torch()
        print(sys.modules["torch"]._meta_registrations.here)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "True\n"
