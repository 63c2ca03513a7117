"""The command `sensevoiced`: arguments to a Config, a Daemon run to its exit status.

Imports of each verb are its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import logging
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from sensevoiced import __version__, logs, notify, settings, slices
from sensevoiced.config import Config, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sensevoiced.parts import Parts

EX_CONFIG = 78
"""sysexits.h: a setting cannot be used; systemd's RestartPreventExitStatus= names it."""
VERBS = {
    "serve": "serve (the default)",
    "fetch": "download a model",
    "check-config": "read the settings, find the models, say what is wrong, and end",
}
"""Every verb, and what it does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Without a verb it serves: options alone are options of `serve`.
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
        words.insert(0, "serve")
    if words[0] == "fetch":
        return _fetch(words)
    arguments = _parser().parse_args(words)
    flags = {
        name: value for name, value in vars(arguments).items() if isinstance(value, str) and name != "verb"
    }
    try:
        config = settings.load(flags, os.environ)
        from sensevoiced.parts import parts_of  # noqa: PLC0415 - reads YAML, which only the [daemon] extra brings

        parts = parts_of(config)
        if arguments.verb == "check-config":
            return _check(config)
        return serve(config, parts, reread=lambda: settings.load(flags, os.environ))
    except ConfigError as error:
        return _say(error, EX_CONFIG)
    except ModuleNotFoundError as error:
        # The base install is the client alone.
        return _say(f"{error}; the daemon needs its extra: pip install 'sensevoiced[daemon]'", EX_CONFIG)


def serve(config: Config, parts: Parts, *, reread: Callable[[], Config]) -> int:
    """Run a daemon until it is told to stop; gives the exit status."""
    from sensevoiced.daemon import Daemon, StartError  # noqa: PLC0415 - `fetch` and `--help` do without
    from sensevoiced.loop import Loop  # noqa: PLC0415 - the same
    from sensevoiced.serving.listener import ListenError  # noqa: PLC0415 - the same

    # systemd's watchdog ends a stuck daemon with SIGABRT: every thread's stack then goes to the log.
    faulthandler.enable()
    logs.start(config.log_level, os.environ)
    # For the event loop, and through it the front end's children.
    slices.ask_for(slices.SHORT_NS)
    daemon = Daemon(config, parts, reread=reread)
    try:
        with asyncio.Runner(loop_factory=Loop) as runner:
            status = runner.run(daemon.run())
    except ConfigError as error:
        status = _say(error, EX_CONFIG)
    except (ListenError, StartError) as error:
        status = _say(error, 1)
    logs.end()
    if daemon.engine_left_running:
        _leave(status)
    return status


def _fetch(words: Sequence[str]) -> int:
    try:
        from sensevoiced import hub, hub_flags  # noqa: PLC0415 - the only code that goes to the network; never loaded to serve
    except ModuleNotFoundError as error:
        return _say(f"{error}; fetching needs its extra: pip install 'sensevoiced[hub]'", EX_CONFIG)
    return hub.run(_parser(hub_flags.add_arguments).parse_args(words))


def _leave(status: int) -> NoReturn:
    """End without waiting for the engine's thread.

    A batch cannot be interrupted, and torch does not survive the interpreter's end.
    """
    logging.shutdown()
    os._exit(status)


def _say(error: Exception | str, status: int) -> int:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"sensevoiced: {error}\n")
    logs.end()
    # A daemon that came to be has told systemd itself, and the address is gone from the environment.
    notifier = notify.Notifier(os.environ.get("NOTIFY_SOCKET"))
    notifier.status(str(error))
    notifier.close()
    return status


def _check(config: Config) -> int:
    sys.stdout.write(
        f"The configuration is valid: model {config.model}, device {config.device}, socket {config.socket}\n"
    )
    return 0


def _parser(
    add_fetch_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sensevoiced",
        description="Keeps a SenseVoice model loaded and serves it over a Unix socket.",
        epilog="Options such as --model and --socket belong to serve: see `sensevoiced serve --help`.",
    )
    parser.add_argument("--version", action="version", version=f"sensevoiced {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="{" + ",".join(VERBS) + "}")
    for verb, text in VERBS.items():
        add = add_fetch_arguments if verb == "fetch" else settings.add_arguments
        added = verbs.add_parser(verb, help=text)
        if add is not None:
            add(added)
    return parser


if __name__ == "__main__":
    sys.exit(main())
