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
FLAGS = ["-std=c11", "-O3", "-fPIC", "-shared", "-Wall", "-Wextra", *(f"-m{name}" for name in FEATURES)]


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
    """Compile, with `more` flags, whole or not at all; say in a sentence why not, or nothing."""
    lacking = "they are for Linux on x86-64."
    if sys.platform == "linux" and platform.machine() == "x86_64":
        lacking = _compile(source, library, more)
    if lacking:
        # One of an earlier version would not be used, but somebody might wonder.
        library.unlink(missing_ok=True)
    return lacking


def _compile(source: Path, library: Path, more: Sequence[str]) -> str:
    compiler = shlex.split(os.environ.get("CC") or "cc")
    stamp = hashlib.sha256(source.read_bytes()).hexdigest()
    unfinished = library.with_suffix(f".{os.getpid()}.new")
    command = [*compiler, *FLAGS, *more, f'-DSOURCE="{stamp}"', str(source), "-lm", "-o", str(unfinished)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
        unfinished.replace(library)
    except FileNotFoundError:
        return f"there is no C compiler {compiler[0]}; install one, or name it in CC."
    except OSError as error:
        return f"{error.strerror} ({error.filename})."
    except subprocess.CalledProcessError as error:
        return f"{compiler[0]} failed: {error.stderr.strip()[-500:]}"
    finally:
        unfinished.unlink(missing_ok=True)
    return ""
