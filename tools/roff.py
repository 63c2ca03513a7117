r"""Turns a manual page written in a little Markdown into roff for man(7); standard library only.

The Markdown: `#` and `##` headings, paragraphs, fenced code, a backslash for a line break, and definitions,

    `-q`, `--quiet`
    :   Print errors only.

with `code` in bold, *WORDS* in italics, and flags in bold wherever they stand. A converter (pandoc, scdoc)
would be one more program for whoever runs `make install`; argparse-manpage and click-man need packages too.
"""

from __future__ import annotations

import re
import textwrap

_WIDTH = 80
"""Columns of the roff source: mandoc -T lint complains about longer lines."""
_SPAN = re.compile(r"`([^`]+)`|(?<!\w)\*([A-Z][\w/ -]*)\*|(?<![\w-])(--?\w[\w-]*|-)(?!\w)")
"""Code, emphasis, or a flag, which has to keep its ASCII hyphens to be copied."""
_SENTENCE = re.compile(r"(?<=[a-z0-9)}`*][.!?]) (?=\S)")
_VERBATIM = {"-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}
"""What a typesetter would turn into typographic look-alikes: groff_char(7), man-pages(7)."""
_PROSE = {"^": r"\(ha", "~": r"\(ti"}


def page(name: str, section: str, *, date: str, source: str, manual: str, markdown: str) -> str:
    """The page in roff."""
    head = " ".join(_quoted(word) for word in (name.upper(), section, date, source, manual))
    # neither names of settings hyphenated nor gaps around long paths: as DocBook's pages begin
    return "\n".join([f".TH {head}", ".nh", ".ad l", *_blocks(markdown.splitlines())]) + "\n"


def inline(text: str) -> str:
    """One run of text with its markup, escaped."""
    done, at = [], 0
    for span in _SPAN.finditer(text):
        code, emphasis, flag = span.groups()
        word = _escaped(code or emphasis or flag, _VERBATIM)
        done.append(_escaped(text[at : span.start()], _PROSE))
        # of itself a hyphen is a dash, and NAME's parsers look for the bare one
        done.append(word if flag == "-" else rf"\f{'I' if emphasis else 'B'}{word}\fR")
        at = span.end()
    return "".join(done) + _escaped(text[at:], _PROSE)


def _escaped(text: str, table: dict[str, str]) -> str:
    named = {"\\": r"\e", **table}
    return "".join(named.get(c, c if c.isascii() else rf"\[u{ord(c):04X}]") for c in text)


def _quoted(text: str) -> str:
    r"""As one argument of a macro; \(dq because a quotation mark would end it."""
    return '"' + _escaped(text, _PROSE).replace('"', r"\(dq") + '"'


def _line(text: str) -> str:
    """As a line of text, never of roff's own: those begin with a point or an apostrophe."""
    return rf"\&{text}" if text[:1] in (".", "'") else text


def _filled(lines: list[str]) -> list[str]:
    """Running text: every sentence begins a line, as roff wants to space them itself."""
    out: list[str] = []
    text = ""
    for line in lines:
        text += " " + line.strip().removesuffix("\\")
        if line.endswith("\\"):
            out += [*_sentences(text), ".br"]
            text = ""
    return [*out, *_sentences(text)]


def _sentences(text: str) -> list[str]:
    wrapped = (
        textwrap.wrap(inline(one), _WIDTH, break_long_words=False, break_on_hyphens=False)
        for one in _SENTENCE.split(text.strip())
    )
    return [_line(line) for lines in wrapped for line in lines]


def _blocks(lines: list[str]) -> list[str]:
    out: list[str] = []
    block: list[str] = []
    fenced = False
    for line in [*lines, ""]:
        if line.startswith("```"):
            fenced = not fenced
            out += [".PP", ".RS 4", ".EX"] if fenced else [".EE", ".RE"]
        elif fenced:
            out.append(_line(_escaped(line, _VERBATIM)))
        elif line.strip():
            block.append(line)
        elif block:
            # a heading is its own paragraph break
            heading = bool(out) and out[-1].startswith((".SH", ".SS"))
            out += _block(block, first=heading)
            block = []
    return out


def _block(block: list[str], *, first: bool) -> list[str]:
    if block[0].startswith("#"):
        level, _, title = block[0].partition(" ")
        return [f".SH {_escaped(title, _PROSE)}" if level == "#" else f".SS {inline(title)}"]
    for number, line in enumerate(block):
        if line.startswith(":"):
            terms = [inline(term) for term in block[:number]]
            tags = [part for term in terms for part in (".TQ", _line(term))]
            return [".TP", *tags[1:], *_filled([line[1:], *block[number + 1 :]])]
    return [*([] if first else [".PP"]), *_filled(block)]
