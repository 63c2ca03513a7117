"""README.md and README.zh-CN.md say the same, their links lead somewhere, and the Python in them runs.

Both are read as a list of sections, one a heading; what has to agree is compared section by section, so that
a message names the place that has to follow.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from itertools import zip_longest

import pytest
from harness.fake_server import FakeServer
from harness.markdown import LINK, SPAN, cells, sections

from svctl import options, wire
from svctl.sources import NotAFileError
from svctl.terminal import CANNOT_CREATE, IO_ERROR
from svctl.verbs import BROKEN_PIPE

ENGLISH, CHINESE = "README.md", "README.zh-CN.md"

_NUMBER = re.compile(r"(?<![A-Za-z0-9_.,])\d+(?:[.,]\d+)*")
"""As it stands: `1,352` and `0.92`, not the 8 of int8."""
_COMMENT = re.compile(r"(^|\s+)#\s.*$")


def facts(text):
    """What a translation keeps of a text: its numbers, counted, and its code and links, each once."""
    bare = LINK.sub("", SPAN.sub("", text))
    return {
        "number": Counter(_NUMBER.findall(bare)),
        "code": Counter(set(SPAN.findall(text))),
        "link": Counter(set(LINK.findall(text)) - {ENGLISH, CHINESE}),
    }


def differences(english, chinese):
    """A sentence for each fact that one of two texts has and the other has not."""
    theirs = facts(chinese)
    for kind, ours in facts(english).items():
        for here, there, counts in (
            (ENGLISH, CHINESE, ours - theirs[kind]),
            (CHINESE, ENGLISH, theirs[kind] - ours),
        ):
            for fact, times in counts.items():
                yield f"the {kind} {fact!r} stands in {here} and not in {there}" + (
                    f" ({times} times more)" if times > 1 else ""
                )


def without_comment(line):
    """A line of a fenced block as both languages have it, and whether a comment followed."""
    code = _COMMENT.sub("", line)
    return code.rstrip(), code != line


def report(problems):
    """Fail with all that was found, one line each."""
    if found := list(problems):
        pytest.fail("\n".join(found), pytrace=False)


@pytest.fixture
def pairs(repository):
    """The sections of both files side by side; their headings are compared before anything else is."""
    both = [sections((repository / name).read_text("utf-8")) for name in (ENGLISH, CHINESE)]
    for english, chinese in zip_longest(*both):
        if english is None or chinese is None:
            more, less, section = (ENGLISH, CHINESE, english) if english else (CHINESE, ENGLISH, chinese)
            report([f"{more} ends with a section that {less} has not: {section.title!r}"])
        elif english.level != chinese.level:
            levels = f"a heading of level {english.level}, its counterpart {chinese.title!r} {chinese.level}"
            report([f"{english.title!r} is {levels}: a section is missing here, or on another level"])
    return list(zip(*both, strict=True))


def test_the_prose_has_the_same_facts(pairs):
    """Numbers, commands and links outside of tables and blocks, section by section."""
    report(
        f"{english.title!r} / {chinese.title!r}: {difference}"
        for english, chinese in pairs
        for difference in differences("\n".join(english.prose), "\n".join(chinese.prose))
    )


def test_the_lists_have_as_many_items(pairs):
    """A point that was added in one language is missed in the other."""

    def items(section):
        return sum(line.startswith("- ") for line in section.prose)

    report(
        f"{english.title!r} has {items(english)} list items, {chinese.title!r} {items(chinese)}"
        for english, chinese in pairs
        if items(english) != items(chinese)
    )


def test_the_tables_have_the_same_rows(pairs):
    """As many, of as many cells, and in each cell the same numbers and commands."""

    def compare(english, chinese):
        more = len(english.rows) - len(chinese.rows)
        if more:
            yield f"{len(english.rows)} table rows in {ENGLISH}, {len(chinese.rows)} in {CHINESE}"
        for pair in zip(english.rows, chinese.rows, strict=False):
            ours, theirs = map(cells, pair)
            where = f"row {ours[0]!r}"
            if len(ours) != len(theirs):
                yield f"{where}: {len(ours)} cells in {ENGLISH}, {len(theirs)} in {CHINESE}"
            found = [
                f"{where}, column {column}: {difference}"
                for column, texts in enumerate(zip(ours, theirs, strict=False), 1)
                for difference in differences(*texts)
            ]
            yield from found
            if more and found:
                return  # the rows below are one off, and say nothing more

    report(
        f"{english.title!r} / {chinese.title!r}: {problem}"
        for english, chinese in pairs
        for problem in compare(english, chinese)
    )


def test_the_fenced_blocks_are_identical(pairs):
    """Only what a comment says may differ, not where one stands."""

    def compare(english, chinese):
        if len(english.blocks) != len(chinese.blocks):
            yield f"{len(english.blocks)} blocks in {ENGLISH}, {len(chinese.blocks)} in {CHINESE}"
        for number, pair in enumerate(zip(english.blocks, chinese.blocks, strict=False), 1):
            (kind, ours), (other_kind, theirs) = pair
            if kind != other_kind:
                yield f"block {number}: {kind!r} in {ENGLISH}, {other_kind!r} in {CHINESE}"
            for line, texts in enumerate(zip_longest(ours, theirs, fillvalue=""), 1):
                if without_comment(texts[0]) != without_comment(texts[1]):
                    yield f"block {number}, line {line}:\n  {ENGLISH}: {texts[0]}\n  {CHINESE}: {texts[1]}"

    report(
        f"{english.title!r} / {chinese.title!r}: {problem}"
        for english, chinese in pairs
        for problem in compare(english, chinese)
    )


@pytest.mark.parametrize(("name", "other"), [(ENGLISH, CHINESE), (CHINESE, ENGLISH)])
def test_every_link_leads_somewhere(repository, name, other):
    """To a file of the repository, or a heading of it; and the two languages link each other."""
    text = (repository / name).read_text("utf-8")
    links = [link for link in LINK.findall(text) if "://" not in link]
    assert other in [line.partition("](")[2].rstrip(")") for line in text.splitlines()[:3]], (
        f"no link to {other} in the first lines of {name}"
    )
    for link in links:
        path, _, anchor = link.partition("#")
        target = repository / (path or name)
        assert target.exists(), f"{name} links {link}, which does not exist"
        if anchor:
            titles = [section.title.lower() for section in sections(target.read_text("utf-8"))]
            there = [re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles]
            assert anchor in there, f"{name} links {link}, but {path} has no such heading"


def python_blocks(text):
    """The source of each Python block."""
    return [
        "\n".join(lines) for section in sections(text) for kind, lines in section.blocks if kind == "python"
    ]


def test_every_python_block_runs(repository, tmp_path):
    """As it is copied from the page, without a warning; what each named recording says is printed."""
    blocks = python_blocks((repository / ENGLISH).read_text("utf-8"))
    assert {"Client", "AsyncClient"} <= set(re.findall(r"\w+", " ".join(blocks)))
    with FakeServer(tmp_path / "api.sock") as server:
        environment = os.environ | {"SENSEVOICE_SOCKET": server.path}
        for block in blocks:
            names = re.findall(r'"([\w-]+\.(?:wav|mp3|flac|m4a))"', block)
            assert names, f"this block names no recording:\n{block}"
            for name in names:
                (tmp_path / name).write_text(f"first of {name}\nlast of {name}")
            words = [sys.executable, "-W", "error", "-c", block]
            done = subprocess.run(
                words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
            )
            assert (done.returncode, done.stderr) == (0, ""), f"{done.stderr}\nin the block:\n{block}"
            for name in names:
                assert f"first of {name}" in done.stdout, f"{name} is not in what the block printed"
                assert f"last of {name}" in done.stdout, f"{name} is not whole in what the block printed"


def test_the_commands_are_those_of_svctl(repository):
    """Every verb is in the table of commands, each flag in it exists, and choices are named in full."""
    by_flag = {flag: option for _, _, verb in options.VERBS.values() for option in verb for flag in option[1]}
    (commands,) = (s for s in sections((repository / ENGLISH).read_text("utf-8")) if s.title == "Commands")
    spans = [span.replace("\\|", "|") for row in commands.rows for span in SPAN.findall(cells(row)[0])]
    verbs = {span.split()[1] for span in spans if span.startswith("svctl ")}
    assert verbs == {*options.VERBS, "completion"}
    for span in spans:
        for flag, choice in re.findall(r"(?<!\w)(--?[a-z0][\w-]*)(?: (\S*\|\S*))?", span):
            assert flag in by_flag, f"svctl has no {flag}, which the table of commands names"
            if choice:
                assert (flag, set(choice.split("|"))) == (flag, set(by_flag[flag][4]))


def test_every_exit_status_is_explained(repository):
    """Those of the protocol's errors, and those that svctl alone can end with."""
    text = (repository / ENGLISH).read_text("utf-8")
    explained = text[text.index("Exit status of `svctl`") : text.index("A file that fails")]
    own = {NotAFileError.exit_status, CANNOT_CREATE, IO_ERROR, BROKEN_PIPE}
    known = own | {status for _, status, _ in wire.ERRORS.values()}
    assert {int(number) for number in _NUMBER.findall(explained)} == known


@pytest.mark.parametrize(
    ("chinese", "sentence"),
    [
        ("用 `svctl ps` 看 3 个，见 [那里](a.md)", ""),
        (
            "用 `svctl ps` 看 4 个，见 [那里](a.md)",
            "the number '3' stands in README.md and not in README.zh-CN.md",
        ),
        (
            "用 `svctl` 看 3 个，见 [那里](a.md)",
            "the code 'svctl' stands in README.zh-CN.md and not in README.md",
        ),
        ("用 `svctl ps` 看 3 个，见那里", "the link 'a.md' stands in README.md and not in README.zh-CN.md"),
    ],
)
def test_a_difference_is_found_and_named(chinese, sentence):
    """The comparison itself: equal facts pass, another number, command or link is said with its side."""
    found = list(differences("`svctl ps` shows 3, see [there](a.md)", chinese))
    assert sentence in found if sentence else found == []


def test_translated_comments_are_no_difference():
    """Their place counts, their words do not, and a `#` inside a word is code."""
    assert (
        without_comment("make demo     # makes it")
        == without_comment("make demo  # 建立")
        == ("make demo", True)
    )
    assert without_comment("make demo") == ("make demo", False)
    assert without_comment("see a#b") == ("see a#b", False)
