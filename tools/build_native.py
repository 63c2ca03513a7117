"""Builds sensevoiced/engine/native.c into the package, where there is a compiler; hatchling calls it.

Without one, or for another processor than x86-64, the package is the same without it, and slower on a CPU:
the engine then computes with torch alone.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCE = Path("sensevoiced/engine/native.c")
LIBRARY = Path("sensevoiced/engine/libsensevoice.so")
FEATURES = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx512bf16", "fma")
"""What native.c asks for; whether the processor that it runs on has them, it says itself."""
FLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wextra"]
FLAGS += [f"-m{name}" for name in FEATURES]


class NativeHook(BuildHookInterface[Any]):
    """Adds the compiled library to a wheel, or to the folder that an editable installation reads."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build it; a wheel that has it is for this platform only, for any Python."""
        root = Path(self.root)
        if version == "editable":
            self._warn(build(root / SOURCE, root / LIBRARY))
            return
        self._folder = tempfile.TemporaryDirectory(prefix="sensevoiced-")
        library = Path(self._folder.name) / LIBRARY.name
        lacking = build(root / SOURCE, library)
        self._warn(lacking)
        if not lacking:
            build_data["force_include"][str(library)] = str(LIBRARY)
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{re.sub('[-.]', '_', sysconfig.get_platform())}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Tidy up: it is in the wheel now."""
        del build_data, artifact_path
        if version != "editable":
            self._folder.cleanup()

    def _warn(self, lacking: str) -> None:
        if lacking:
            self.app.display_warning(f"sensevoiced is built without compiled layers: {lacking}")


def build(source: Path, library: Path, more: Sequence[str] = ()) -> str:
    """Compile, with `more` flags, whole or not at all; say in a sentence why not, or nothing.

    A library that is there already stays where this fails: the engine does not use one of another source.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "they are for Linux on x86-64."
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    except ValueError as error:
        return f"the compiler's name in CC cannot be read: {error}."
    try:
        _compile(compiler, source, library, more)
    except OSError as error:
        if error.filename == compiler[0]:
            return f"there is no C compiler {compiler[0]}; install one, or name it in CC."
        return f"{error.strerror} ({error.filename})."
    except subprocess.CalledProcessError as error:
        return f"{compiler[0]} failed: {error.stderr.strip()[-500:]}"
    return ""


def _compile(compiler: Sequence[str], source: Path, library: Path, more: Sequence[str]) -> None:
    stamp = hashlib.sha256(source.read_bytes()).hexdigest()
    # Beside its place, so that it comes there in one step, whoever else builds or runs at the same time.
    with tempfile.TemporaryDirectory(
        dir=library.parent, prefix=f"{library.stem}-", ignore_cleanup_errors=True
    ) as folder:
        made = Path(folder) / library.name
        command = [*compiler, *FLAGS, *more, f'-DSOURCE="{stamp}"', str(source), "-lm", "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")
        made.replace(library)
