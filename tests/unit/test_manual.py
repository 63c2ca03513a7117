"""The manual pages: complete against the tables they are made of, and sound roff to whatever reads it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sensevoiced import __main__ as sensevoiced
from sensevoiced import hub_flags, settings
from sensevoiced.config import Config
from svctl import options, sources, terminal, verbs, wire

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import roff  # noqa: E402 - found in the folder above

PAGES = ("man1/svctl.1", "man5/sensevoiced.toml.5", "man8/sensevoiced.8")


@pytest.fixture(scope="module")
def manual(tmp_path_factory):
    """The folder of the pages, written by a Python that sees no installed package."""
    place = tmp_path_factory.mktemp("man")
    command = [sys.executable, "-I", "-S", "-B", TOOLS / "man.py", place]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    subprocess.run(command, check=True, timeout=60, env=environment)
    return place


def _entries(manual, page):
    """Heading to the entries below it, each the plain words of its terms (`.TP`, `.TQ`)."""
    found, heading, terms = {}, "", False
    for line in (manual / page).read_text("ascii").splitlines():
        if line.startswith((".SH ", ".SS ")):
            heading = line[4:].partition(" ")[0]
            found.setdefault(heading, [])
        elif terms:
            found[heading].append(re.sub(r"\\f.|\\&", "", line).replace(r"\-", "-"))
        terms = line in (".TP", ".TQ")
    return found


def _words(entries):
    return {word for entry in entries for word in re.split(r"[ ,]+", entry)}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_usual_sections(manual, page):
    """Every page begins with NAME, SYNOPSIS and DESCRIPTION and ends with EXAMPLES and SEE ALSO."""
    text = (manual / page).read_text("ascii")
    headings = re.findall(r"(?m)^\.SH (.*)$", text)
    assert headings[:3] == ["NAME", "SYNOPSIS", "DESCRIPTION"]
    assert headings[-2:] == ["EXAMPLES", "SEE ALSO"]
    assert "@" not in text
    number = page.rpartition(".")[2]
    assert text.startswith(f'.TH "{Path(page).stem.upper()}" "{number}" "2023-11-14" ')
    if number != "5":
        assert {"OPTIONS", "EXIT STATUS", "ENVIRONMENT", "FILES"} < set(headings)


def test_every_verb_and_flag_of_svctl_has_an_entry(manual):
    """Below its verb, or among the options that all verbs have; the verbs are in the synopsis too."""
    found = _entries(manual, "man1/svctl.1")
    text = (manual / "man1/svctl.1").read_text("ascii")
    for verb, (_, _, table) in options.VERBS.items():
        assert f"\\fBsvctl {verb}\\fR" in text
        there = _words(found[verb]) | _words(found["OPTIONS"])
        assert {flag for option in table for flag in option[1]} <= there, verb


def test_what_a_flag_may_be_is_in_its_entry(manual):
    """The words that an option allows stand below it, and its help."""
    text = (manual / "man1/svctl.1").read_text("ascii").replace("\n", " ")
    for verb, (_, _, table) in options.VERBS.items():
        below = text.partition(f".SS {verb} ")[2].partition(" .S")[0] + text.partition(".SH OPTIONS ")[2]
        for _, flags, _, _, allowed, help_text in table:
            term = ", ".join(rf"\fB{flag}\fR".replace("-", r"\-") for flag in flags)
            entry = below.partition(f".TP {term} ")[2].partition(".TP")[0]
            assert roff.inline(help_text) in entry, (verb, flags)
            assert all(f"\\fB{word}\\fR" in entry for word in allowed), (verb, flags)


def test_every_exit_status_of_svctl_has_an_entry(manual):
    """Each with the error codes that end with it."""
    text = (manual / "man1/svctl.1").read_text("ascii")
    listed = [int(word) for word in _entries(manual, "man1/svctl.1")["EXIT"]]
    own = {sources.NotAFileError.exit_status, terminal.CANNOT_CREATE, terminal.IO_ERROR, verbs.BROKEN_PIPE}
    assert listed == sorted({0, *own, *(status for _, status, _ in wire.ERRORS.values())})
    for code, (_, status, _) in wire.ERRORS.items():
        entry = text.partition(f".TP\n\\fB{status}\\fR\n")[2].partition(".TP")[0]
        assert f"\\fB{code}\\fR" in entry, code


def test_every_verb_and_flag_of_the_daemon_has_an_entry(manual):
    """Those of `serve`, `check-config` and `fetch`, with the variables that stand for flags."""
    found = _entries(manual, "man8/sensevoiced.8")
    parser = argparse.ArgumentParser()
    settings.add_arguments(parser)
    fetch = argparse.ArgumentParser()
    hub_flags.add_arguments(fetch)
    flags = re.compile(r"--[\w-]+")
    assert {*flags.findall(parser.format_help()), *flags.findall(fetch.format_help())} <= _words(
        found["OPTIONS"]
    )
    assert found["COMMANDS"] == list(sensevoiced.VERBS)
    assert set(settings.ENVIRONMENT.values()) <= _words(found["ENVIRONMENT"])
    assert str(sensevoiced.EX_CONFIG) in found["EXIT"]


def test_every_setting_has_an_entry(manual):
    """Below its section, with its default and a text."""
    found = _entries(manual, "man5/sensevoiced.toml.5")
    sections = {"Of": Config}
    for field in dataclasses.fields(Config):
        if field.name in ("frontend", "batch", "serving"):
            sections[f"[{field.name}]"] = field.default_factory
    for heading, kind in sections.items():
        names = {field.name for field in dataclasses.fields(kind)} - {"frontend", "batch", "serving"}
        assert {entry.partition(" = ")[0] for entry in found[heading]} == names
    text = (manual / "man5/sensevoiced.toml.5").read_text("ascii")
    assert re.findall(r"(?m)^\.T[PQ]\n.*\n(?=\.TP|\.SS|\.SH)", text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("With -o: --max-line-width 42", r"With \fB\-o\fR: \fB\-\-max\-line\-width\fR 42"),
        ("- is standard input, 16-bit", r"\- is standard input, 16-bit"),
        ("`a\\b -print0 'x' ~`", r"\fBa\eb \-print0 \(aqx\(aq \(ti\fR"),
        ("*FILE*, 2 * 3 * 4", r"\fIFILE\fR, 2 * 3 * 4"),
        ("中 ~/x", r"\[u4E2D] \(ti/x"),
    ],
)
def test_characters_that_roff_reads_are_escaped(text, expected):
    """Backslashes, quotes, tildes, hyphens of flags, and whatever is not ASCII."""
    assert roff.inline(text) == expected


def test_no_line_of_text_becomes_a_request():
    """A line that begins with a point or an apostrophe is text, in running text, terms and code."""
    markdown = "# X\n\n... and 'so'\n\n.term\n:   'text'\n\n```\n.code\n'code\n```\n"
    made = roff.page("x", "1", date="", source="", manual="", markdown=markdown).splitlines()[4:]
    requests = {".PP", ".TP", ".RS 4", ".EX", ".EE", ".RE"}
    assert [line for line in made if line[:1] in (".", "'") and line not in requests] == []
    assert [line[2:] for line in made if line.startswith(r"\&")] == [
        "... and 'so'",
        ".term",
        "'text'",
        ".code",
    ]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "words",
    [
        ["groff", "-man", "-ww", "-z"],
        ["man", "--warnings", "-E", "UTF-8", "-l"],
        ["mandoc", "-T", "lint", "-W", "warning"],
    ],
    ids=lambda words: words[0],
)
def test_formatters_have_nothing_to_warn_of(manual, page, words):
    """Whichever of groff, man-db and mandoc is installed formats the pages without a word."""
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MANPAGER": "cat"}
    done = subprocess.run(
        [*words, manual / page], capture_output=True, text=True, timeout=60, env=environment
    )
    said = done.stdout if words[0] == "mandoc" else done.stderr
    assert (done.returncode, said) == (0, "")


@pytest.mark.parametrize("page", PAGES)
def test_apropos_finds_the_page(manual, page):
    """The line below NAME is one that the index of manuals can be made of."""
    if shutil.which("lexgrog") is None:
        pytest.skip("lexgrog (man-db) is not installed")
    done = subprocess.run(["lexgrog", manual / page], capture_output=True, text=True, timeout=60)
    assert (done.returncode, f'"{Path(page).stem} - ' in done.stdout) == (0, True)
