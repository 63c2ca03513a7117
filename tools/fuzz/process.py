"""One fuzzing process: `python -m tools.fuzz.process TARGET ARGUMENT...`, the arguments libFuzzer's.

Executed by `python -m tools.fuzz`, never imported.
"""

from __future__ import annotations

import sys
from importlib import import_module

import atheris


def main() -> None:
    """Import the target under instrumentation and fuzz it; libFuzzer ends the process."""
    target, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=["svctl", "sensevoiced"]):
        check = import_module(f"tools.fuzz.{target}").make_check()
    atheris.Setup([sys.argv[0], *arguments], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
