"""engine/importing.py: torch without its compiler's declarations, which come back for whoever asks."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from sensevoiced.engine.importing import DECLARATIONS, TRIED

IMPORT = """
    import sys
    from sensevoiced.engine.importing import DECLARATIONS, import_torch
    import_torch("cpu")
    assert DECLARATIONS not in sys.modules
    import torch
    assert not hasattr(torch, "_meta_registrations")
    import_torch("cpu")
"""


def _said(program, *words):
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()


def _after_import(program):
    return _said(textwrap.dedent(IMPORT) + textwrap.dedent(program))


def test_this_torch_is_one_that_was_tried():
    """With another one the start takes longer, and nobody would notice."""
    assert torch.__version__.startswith(TRIED)


def test_less_is_imported():
    """Of the modules that only the compiler needs, none."""
    loaded = _after_import("print(*sys.modules)")
    assert not {DECLARATIONS, "torch._refs", "torch._prims", "torch._decomp"} & {*loaded}


def test_generators_work():
    """What was left out would have given them their metaclass."""
    assert _after_import("print(torch.Generator().manual_seed(3).initial_seed())") == ["3"]


def test_whoever_asks_later_gets_the_real_one():
    """Shapes without memory, as torch.export works them out: by a declaration that was left out at first."""
    program = """
        import torch._meta_registrations
        from torch._subclasses.fake_tensor import FakeTensorMode
        with FakeTensorMode():
            print(*torch.linalg.cholesky(torch.empty(3, 4, 4)).shape)
        print(torch.Generator().manual_seed(3).initial_seed())
    """
    assert _after_import(program) == ["3", "4", "4", "3"]


@pytest.mark.parametrize(
    ("about", "device", "whole"),
    [
        ("__version__ = '2.12.1'\ncuda: object = None", "cpu", True),
        ("__version__ = '3.0.0'", "cpu", True),
        ("no python", "cpu", True),
        (f"__version__ = '{TRIED[0]}7'\ncuda: object = '13.0'", "auto", True),
        (f"__version__ = '{TRIED[0]}7'\nhip = '6'", "cuda:0", True),
        (f"__version__ = '{TRIED[0]}7'\ncuda: object = '13.0'", "cpu", False),
        (f"__version__ = '{TRIED[0]}7'\ncuda: object = None", "auto", False),
    ],
)
def test_only_a_torch_that_was_tried_and_only_for_a_cpu(tmp_path, about, device, whole):
    """Any other version's __init__ may use what is left out, and so may a GPU."""
    package = tmp_path / "torch"
    package.mkdir()
    for name, text in {
        "version.py": about,
        "_meta_registrations.py": "here = True",
        "_opaque_base.py": "OpaqueBaseMeta = type",
        "_C.py": "_set_generator_metaclass = print",
        "__init__.py": "from torch import _C, _meta_registrations as it\nfound = hasattr(it, 'here')",
    }.items():
        package.joinpath(name).write_text(text + "\n")
    program = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from sensevoiced.engine.importing import import_torch
        import_torch(sys.argv[2])
        print(sys.modules["torch"].found)
    """
    assert _said(program, tmp_path, device)[-1] == str(whole)
