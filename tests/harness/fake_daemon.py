"""The real daemon around a fake engine and front end: `python fake_daemon.py CONTROL_FOLDER FLAG...`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from harness.fakes import FakeEngine, FakeFrontend, wait_for_gate  # noqa: E402

from sensevoiced import settings  # noqa: E402
from sensevoiced.__main__ import serve  # noqa: E402
from sensevoiced.config import ConfigError  # noqa: E402
from sensevoiced.parts import Parts  # noqa: E402


def main():
    """Serve, as `sensevoiced` would."""
    control, *words = sys.argv[1:]
    flags = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))

    def load_engine():
        if "FAKE_LOAD_GATE" in os.environ:
            wait_for_gate(control, os.environ["FAKE_LOAD_GATE"])
        if "FAKE_LOAD_FAILS" in os.environ:
            raise OSError("the fake weights are unreadable")
        return FakeEngine(control)

    parts = Parts(
        model="fake", vad="fake", load_engine=load_engine, make_frontend=lambda: FakeFrontend(control)
    )
    try:
        config = settings.load(flags, os.environ)
    except ConfigError as error:
        sys.stderr.write(f"sensevoiced: {error}\n")
        return 78
    return serve(config, parts, reread=lambda: settings.load(flags, os.environ))


if __name__ == "__main__":
    sys.exit(main())
