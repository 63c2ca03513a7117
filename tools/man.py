"""Writes the manual pages: the text in man/*.md, with what the code itself knows put in its places.

    python3 tools/man.py FOLDER     # FOLDER/man1/svctl.1, man5/sensevoiced.toml.5, man8/sensevoiced.8

`make install` and `make man` run it, and so no page lies in the repository to grow old. Needs the standard
library only: the tables it reads are those by which svctl and sensevoiced read their own words.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import roff  # noqa: E402 - beside this file

from sensevoiced import __main__ as sensevoiced  # noqa: E402 - in this checkout, installed or not
from sensevoiced import __version__, hub_flags, settings  # noqa: E402
from svctl import connect, folder, options, sources, terminal, verbs, wire  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PAGES = (
    ("svctl", "1", "User Commands"),
    ("sensevoiced.toml", "5", "File Formats"),
    ("sensevoiced", "8", "System Administration"),
)
_SETTING = re.compile(r"#(\w+) = (.*)")
_SECTION = re.compile(r"\[\w+\]")


def synopsis() -> str:
    """A line for each verb of svctl."""
    named = (
        (verb, f" *{argument}*..." if argument else "") for verb, (argument, _, _) in options.VERBS.items()
    )
    return " \\\n".join(f"`svctl {verb}` [*OPTION*]...{names}" for verb, names in named) + " \\"


def commands() -> str:
    """Every verb of svctl with the options that not all of them have."""
    shared = _shared()
    out = []
    for verb, (argument, text, table) in options.VERBS.items():
        out.append(f"## {verb} {argument and argument + '...'}".rstrip())
        out.append(text)
        out += [_option(option) for option in table if option not in shared]
    return "\n\n".join(out)


def shared_options() -> str:
    """The options that mean the same for every verb of svctl."""
    return "\n\n".join(map(_option, _shared()))


def _shared() -> list[options.Option]:
    first, *others = (table for _, _, table in options.VERBS.values())
    return [option for option in first if all(option in table for table in others)]


def _option(option: options.Option) -> str:
    name, flags, kind, default, allowed, text = option
    if kind == "flag":
        return _definition(_codes(flags), text)
    if kind == "switch":
        return _definition(_codes(flags), f"{text} The default is `{flags[0 if default else -1]}`.")
    value = options.METAVARS.get(name) or options.METAVARS.get(kind) or name.upper()
    if allowed:
        text += (
            f" {'One or more, with commas,' if kind == 'choices' else 'One'} of {_choices(allowed, default)}."
        )
    return _definition(f"{_codes(flags)} *{value}*", text)


def statuses() -> str:
    """Every exit status of svctl but 0, and which error codes end with it."""
    meanings: dict[int, list[str]] = {
        wire.ERRORS["invalid_request"][1]: ["wrong usage"],
        verbs.INTERRUPTED: ["Ctrl-C"],
        terminal.CANNOT_CREATE: ["a transcript cannot be written (`-o`)"],
        terminal.IO_ERROR: ["standard output cannot be written, or what `-o` writes to is full or broken"],
        verbs.BROKEN_PIPE: ["the reader of standard output has gone"],
    }
    told = {code: (status, meaning) for code, (_, status, meaning) in wire.ERRORS.items()}
    # the codes of svctl itself
    for error, meaning in (
        (sources.NotAFileError(""), "a folder, pipe, socket or device in the place of a recording"),
        (folder.TakenError(""), "its place is taken"),
    ):
        told[error.code] = (error.exit_status, meaning)
    for code, (status, meaning) in told.items():
        meanings.setdefault(status, []).append(f"`{code}`: {meaning}")
    return "\n\n".join(
        _definition(f"`{status}`", "; ".join(meanings[status]) + ".") for status in sorted(meanings)
    )


def flags_of(add_arguments: Callable[[Any], None]) -> str:
    """What a function declares that gives an argparse parser its flags."""
    recorder = _Recorder()
    add_arguments(recorder)
    out = []
    for flags, facts in recorder.declared:
        value = facts.get("metavar") or flags[0].lstrip("-").upper()
        text, default = facts["help"], facts.get("default")
        if choices := facts.get("choices"):
            text += f": one of {_choices(choices, default)}"
        elif default is not None:
            text += f" (default: `{default}`)"
        out.append(_definition(f"{_codes(flags)} *{value}*", f"{text}."))
    return "\n\n".join(out)


class _Recorder:
    """Stands in for an argparse parser, which has no public way to tell what it was given."""

    def __init__(self) -> None:
        self.declared: list[tuple[tuple[str, ...], dict[str, Any]]] = []

    def add_argument(self, *flags: str, **facts: Any) -> None:
        self.declared.append((flags, facts))


def settings_of(text: str) -> str:
    """Every setting of the commented settings file: a comment is the text of the settings below it."""
    _header, *paragraphs = text.strip().split("\n\n")
    out = ["## Of the daemon"]
    for paragraph in paragraphs:
        lines = paragraph.strip().splitlines()
        comment = " ".join(line[2:] for line in lines if line.startswith("# "))
        if _SECTION.fullmatch(lines[-1]):
            out += [f"## {lines[-1]}", comment]
            continue
        # Of two settings below one comment a second comment may speak: each takes what is above it.
        terms: list[str] = []
        above: list[str] = []
        for line in lines:
            if setting := _SETTING.fullmatch(line):
                terms.append(f"`{setting[1]} = {setting[2]}`")
                continue
            if terms:
                out.append(_definition("\n".join(terms), " ".join(above)))
                terms, above = [], []
            above.append(line.removeprefix("# "))
        out.append(_definition("\n".join(terms), " ".join(above)))
    return "\n\n".join(out)


def _definition(terms: str, text: str) -> str:
    return f"{terms}\n:   {text}"


def _codes(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _choices(allowed: Iterable[str], default: object) -> str:
    *words, last = (f"`{word}`{' (the default)' if word == default else ''}" for word in allowed)
    return f"{', '.join(words)} and {last}"


def places() -> dict[str, str]:
    """What stands between two @ in man/*.md, and what takes its place."""
    commented = (ROOT / "systemd" / "sensevoiced.toml").read_text(encoding="utf-8")
    return {
        "synopsis": synopsis(),
        "verbs": commands(),
        "common": shared_options(),
        "statuses": statuses(),
        "daemon_verbs": "\n\n".join(
            _definition(f"`{verb}`", f"{text}.") for verb, text in sensevoiced.VERBS.items()
        ),
        "daemon_flags": flags_of(settings.add_arguments),
        "fetch_flags": flags_of(hub_flags.add_arguments),
        "environment": _codes(settings.ENVIRONMENT.values()),
        "settings": settings_of(commented),
        "RETRYABLE": _codes(code for code, (again, _, _) in wire.ERRORS.items() if again),
        "EX_CONFIG": str(sensevoiced.EX_CONFIG),
        "SYSTEM_FILE": str(settings.SYSTEM_FILE),
        "USER_FILE": str(settings.USER_FILE),
        "SYSTEM_SOCKET": connect.SYSTEM_SOCKET,
    }


def main() -> int:
    """Write every page below the folder that is named; returns the exit status."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: tools/man.py FOLDER\n")
        return os.EX_USAGE
    # https://reproducible-builds.org/specs/source-date-epoch/
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    date = time.strftime("%Y-%m-%d", time.gmtime(seconds))
    known = places()
    for name, section, manual in PAGES:
        text = (ROOT / "man" / f"{name}.{section}.md").read_text(encoding="utf-8")
        text = re.sub(r"@(\w+)@", lambda place: known[place[1]], text)
        page = Path(sys.argv[1]) / f"man{section}" / f"{name}.{section}"
        page.parent.mkdir(parents=True, exist_ok=True)
        source = f"sensevoiced {__version__}"
        page.write_text(
            roff.page(name, section, date=date, source=source, manual=manual, markdown=text), encoding="ascii"
        )
        page.chmod(0o644)
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
