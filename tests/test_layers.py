"""The import layers of both packages, read from the syntax trees: imports point downward only.

A new module has to be given its place in the tables below; one without a place fails.
"""

from __future__ import annotations

import ast
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import sensevoiced
import svctl

L0 = (
    *("sensevoiced", "sensevoiced.config", "sensevoiced.descriptors", "sensevoiced.features"),
    "sensevoiced.jobs",
    *("sensevoiced.metrics", "sensevoiced.notify", "sensevoiced.slices", "sensevoiced.threads"),
)

MAY_IMPORT: tuple[tuple[str, tuple[str, ...]], ...] = (
    # Nouns and settings: the standard library, and one another where one is below the other.
    ("sensevoiced", ()),
    ("sensevoiced.config", ()),
    ("sensevoiced.threads", ()),
    ("sensevoiced.descriptors", ("sensevoiced.threads",)),
    ("sensevoiced.features", ()),
    ("sensevoiced.jobs", ()),
    ("sensevoiced.metrics", ()),
    ("sensevoiced.notify", ()),
    ("sensevoiced.slices", ()),
    ("sensevoiced.logs", ()),
    ("sensevoiced.shortage", ("svctl.wire",)),
    ("sensevoiced.loop", ("sensevoiced.shortage",)),
    ("sensevoiced.settings", ("sensevoiced.config",)),
    (
        "sensevoiced.models",
        ("sensevoiced.config", "sensevoiced.features", "sensevoiced.jobs", "yaml"),
    ),
    # Fetching models: a branch of its own, that nothing else may reach.
    ("sensevoiced.hub_pins", ("sensevoiced.config",)),
    ("sensevoiced.hub_clients", ("modelscope_hub", "huggingface_hub")),
    ("sensevoiced.hub_flags", ("sensevoiced.config", "sensevoiced.hub_clients")),
    ("sensevoiced.hub", ("sensevoiced.config", "sensevoiced.models", "sensevoiced.hub_*")),
    # Front end: the parent's side without numpy (see NEVER_REACH), the child's side with the decoders.
    ("sensevoiced.frontend.channel", (*L0, "msgpack")),
    ("sensevoiced.frontend.jail", ()),
    (
        "sensevoiced.frontend*",
        (
            *(*L0, "sensevoiced.logs", "sensevoiced.models", "sensevoiced.frontend.*"),
            *("numpy", "soundfile", "av"),
        ),
    ),
    # Engine: the scheduler is blind to models; only one module knows FunASR.
    ("sensevoiced.engine", ()),
    ("sensevoiced.engine.api", L0),
    ("sensevoiced.engine.turns", L0),
    ("sensevoiced.engine.runner", (*L0, "sensevoiced.engine.api")),
    (
        "sensevoiced.engine.batcher",
        (*L0, *(f"sensevoiced.engine.{name}" for name in ("api", "turns", "runner"))),
    ),
    (
        "sensevoiced.engine.funasr",
        (*L0, "sensevoiced.models", "sensevoiced.engine.*", "torch", "numpy", "funasr"),
    ),
    (
        "sensevoiced.engine.*",
        (*L0, "sensevoiced.models", "sensevoiced.engine.*", "torch", "numpy", "sentencepiece"),
    ),
    # Serving: neither front end nor engine; the daemon hands it callables.
    (
        "sensevoiced.serving*",
        (*L0, "sensevoiced.shortage", "sensevoiced.serving.*", "svctl.wire", "svctl.framing"),
    ),
    # Where the rooms are joined.
    ("sensevoiced.stages", L0),
    (
        "sensevoiced.pipeline",
        (*L0, "sensevoiced.stages", "sensevoiced.serving.service", "sensevoiced.engine.api"),
    ),
    (
        "sensevoiced.parts",
        (
            *L0,
            "sensevoiced.models",
            "sensevoiced.pipeline",
            "sensevoiced.engine.*",
            "sensevoiced.frontend.pool",
        ),
    ),
    (
        "sensevoiced.backend",
        (
            *(*L0, "sensevoiced.logs", "sensevoiced.pipeline", "sensevoiced.parts"),
            *("sensevoiced.engine.api", "sensevoiced.engine.batcher"),
        ),
    ),
    ("sensevoiced.heartbeat", (*L0, "sensevoiced.engine.batcher")),
    (
        "sensevoiced.daemon",
        (
            *(*L0, "sensevoiced.logs", "sensevoiced.settings", "sensevoiced.pipeline", "sensevoiced.parts"),
            *("sensevoiced.backend", "sensevoiced.heartbeat", "sensevoiced.serving*", "svctl.wire"),
        ),
    ),
    (
        "sensevoiced.__main__",
        (
            *(*L0, "sensevoiced.logs", "sensevoiced.settings", "sensevoiced.models", "sensevoiced.parts"),
            *("sensevoiced.daemon", "sensevoiced.loop", "sensevoiced.serving.listener"),
            *("sensevoiced.hub", "sensevoiced.hub_flags"),
        ),
    ),
    # The client: nothing of the daemon; msgpack in the framing, click in the command line.
    ("svctl", ("svctl.*",)),  # for type checkers only: the names of the library
    ("svctl.wire", ()),
    ("svctl.framing", ("svctl.brief", "svctl.wire", "msgpack")),
    ("svctl.cli", ("svctl*", "click")),
    ("svctl.completion", ("svctl*", "click")),
    ("svctl*", ("svctl*",)),
)
"""First matching module pattern -> what it may import beside the standard library."""

SVCTL_FLOORS: tuple[tuple[str, ...], ...] = (
    ("svctl", "svctl.brief", "svctl.terminal", "svctl.emoji", "svctl.subtitles"),
    ("svctl.wire",),
    ("svctl.framing", "svctl.objects", "svctl.options"),
    ("svctl.connection", "svctl.formats", "svctl.status", "svctl.sources", "svctl.progress"),
    ("svctl.folder", "svctl.walk"),
    ("svctl.recording", "svctl.results"),
    ("svctl.connect", "svctl.pipeline", "svctl.printer"),
    ("svctl.transcribe", "svctl.library", "svctl.bench", "svctl.link"),
    ("svctl.asynchronous",),
    ("svctl.verbs", "svctl.completion"),
    ("svctl.cli",),
    ("svctl.__main__",),
)
"""Lowest first: within svctl a module imports from floors below its own."""

HEAVY = ("torch", "numpy", "funasr", "av", "soundfile", "sentencepiece")
NEVER_REACH: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("svctl*", ("sensevoiced*", *HEAVY)),
    ("sensevoiced.frontend.pool", (*HEAVY, "sensevoiced.frontend.worker")),
    ("sensevoiced.pipeline", HEAVY),
    ("sensevoiced.frontend*", ("torch", "funasr", "sensevoiced.engine*", "sensevoiced.serving*")),
    ("sensevoiced.serving*", (*HEAVY, "sensevoiced.engine*", "sensevoiced.frontend*")),
    ("sensevoiced.engine.batcher", HEAVY),
    ("sensevoiced.daemon", ("sensevoiced.hub*", "modelscope_hub", "huggingface_hub")),
)
"""Not even by way of other modules, at run time."""


def _matches(name, patterns):
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def imports_of(source, modules):
    """List (imported name, only for type checking) of one module; `modules` are our own."""
    found = []

    def visit(node, typing_only):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, typing_only=True)
            for child in node.orelse:
                visit(child, typing_only)
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.append((full if full in modules else base, typing_only))
        for child in ast.iter_child_nodes(node):
            visit(child, typing_only)

    visit(ast.parse(source), typing_only=False)
    return found


def _own_or_top(name):
    """Our own modules by their full name, other packages by their first."""
    top = name.split(".")[0]
    return name if top in ("sensevoiced", "svctl") or name.startswith(".") else top


def violations(sources):
    """Check {module: source} against the tables; return one sentence for each wrong import."""
    imports = {
        module: [(_own_or_top(name), typing) for name, typing in imports_of(source, sources)]
        for module, source in sources.items()
    }
    wrong = []
    for module, names in imports.items():
        allowed = next((may for pattern, may in MAY_IMPORT if fnmatchcase(module, pattern)), None)
        if allowed is None or (module.split(".")[0] == "svctl" and _floor(module) is None):
            wrong.append(f"{module} has no layer: give it a place in test_layers.py")
            continue
        for name, typing in names:
            own = name.split(".")[0] in ("sensevoiced", "svctl")
            if name.startswith("."):
                wrong.append(f"{module} imports {name} relatively: absolute imports show the direction")
            elif name in sys.stdlib_module_names or name == "__future__" or (typing and not own):
                continue
            elif not _matches(name, allowed):
                wrong.append(f"{module} may not import {name}")
            elif module.startswith("svctl.") and own and (_floor(name) or 0) >= (_floor(module) or 0):
                wrong.append(f"{module} may not import {name}, which is not below it")
    return wrong + _unwanted_reach(
        {m: {n for n, typing in found if not typing} for m, found in imports.items()}
    )


def _floor(module):
    return next((floor for floor, names in enumerate(SVCTL_FLOORS) if module in names), None)


def _unwanted_reach(imports):
    wrong = []
    for module in imports:
        reached, waiting = {}, [(module, module)]
        while waiting:
            name, way = waiting.pop()
            for further in imports.get(name, ()):
                if further not in reached:
                    reached[further] = f"{way} -> {further}"
                    waiting.append((further, reached[further]))
        for pattern, never in NEVER_REACH:
            if fnmatchcase(module, pattern):
                wrong += [f"{module} reaches {n}: {way}" for n, way in reached.items() if _matches(n, never)]
    return wrong


def _sources():
    found = {}
    for package in (sensevoiced, svctl):
        root = Path(package.__file__).parent
        for file in sorted(root.rglob("*.py")):
            parts = (package.__name__, *file.relative_to(root).with_suffix("").parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = file.read_text(encoding="utf-8")
    return found


def test_imports_point_downward():
    """No module of either package imports what its layer does not allow, directly or by way of another."""
    assert violations(_sources()) == []


@pytest.mark.parametrize(
    ("sources", "sentence"),
    [
        ({"sensevoiced.config": "import torch"}, "sensevoiced.config may not import torch"),
        (
            {
                "sensevoiced.serving.session": "from sensevoiced.engine import batcher",
                "sensevoiced.engine": "",
            },
            "sensevoiced.serving.session may not import sensevoiced.engine",
        ),
        (
            {"sensevoiced.jobs": "def late():\n    from sensevoiced import daemon", "sensevoiced.daemon": ""},
            "sensevoiced.jobs may not import sensevoiced.daemon",
        ),
        (
            {
                "sensevoiced.config": "from typing import TYPE_CHECKING\n"
                "if TYPE_CHECKING:\n    from sensevoiced.serving.session import Session"
            },
            "sensevoiced.config may not import sensevoiced.serving.session",
        ),
        (
            {"sensevoiced.daemon": "import sensevoiced.hub"},
            "sensevoiced.daemon may not import sensevoiced.hub",
        ),
        ({"sensevoiced.engine.batcher": "import numpy"}, "sensevoiced.engine.batcher may not import numpy"),
        (
            {
                "sensevoiced.frontend.pool": "from sensevoiced.frontend import audio",
                "sensevoiced.frontend.audio": "import numpy",
            },
            "sensevoiced.frontend.pool reaches numpy: sensevoiced.frontend.pool -> sensevoiced.frontend.a",
        ),
        ({"svctl.connection": "import sensevoiced.jobs"}, "svctl.connection may not import sensevoiced.jobs"),
        ({"svctl.formats": "import click"}, "svctl.formats may not import click"),
        ({"svctl.connection": "import msgpack"}, "svctl.connection may not import msgpack"),
        (
            {"svctl.formats": "from svctl import verbs", "svctl.verbs": ""},
            "svctl.formats may not import svctl.verbs, which is not below it",
        ),
        ({"svctl.novelty": ""}, "svctl.novelty has no layer: give it a place in test_layers.py"),
        ({"sensevoiced.novelty": ""}, "sensevoiced.novelty has no layer: give it a place in test_layers.py"),
        ({"svctl.cli": "from . import verbs"}, "svctl.cli imports . relatively"),
    ],
)
def test_the_checker_sees_a_wrong_import(sources, sentence):
    """Each kind of violation is found in a source made up for it."""
    assert any(found.startswith(sentence) for found in violations(sources)), violations(sources)


def test_the_checker_lets_right_imports_pass():
    """What the layers allow is not reported: standard library, layers below, types of other packages."""
    sources = {
        "svctl.cli": "import os, click\nfrom svctl import verbs, __version__",
        "svctl.verbs": "from svctl.connection import Connection",
        "sensevoiced.frontend.pool": "import typing\nif typing.TYPE_CHECKING:\n    import numpy",
        "sensevoiced.serving.session": "from svctl.wire import check\nfrom sensevoiced.jobs import Options",
    }
    assert violations(sources) == []
