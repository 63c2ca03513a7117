"""What people type and what comes back: transcripts of a real shell with a real daemon and the demo model.

In transcripts/*.txt a line `$ ...` is typed, and `> ...` goes on with it; what follows is what it printed,
standard output and standard error as they came, and `[exit N]` where the status N is not 0. Blank lines and
`# ...` before the next command are for readers. In what was printed `<n>` stands for any number, `...` for
any text within a line, and a line of `...` for one or more lines. Each transcript is one run of sh in a
folder of its own, where clips/ holds the demo's samples.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import click
import pytest

from sensevoiced.models import DEMO_DIR
from svctl.cli import group

TRANSCRIPTS = sorted(Path(__file__).with_name("transcripts").glob("*.txt"))
MARK = "@@ended with"
"""Printed after each command, with its status: no transcript has it."""
OPERATORS = "();<>|&\n"
RUN_S = 120.0
"""No transcript takes 5 s on a machine of its own."""


def steps(text):
    """Give each command of a transcript with what it prints, the status as the last line if it is not 0."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        typed, *printed = part.splitlines()
        while printed and printed[0].startswith("> "):
            typed += "\n" + printed.pop(0)[2:]
        while printed and (not printed[-1] or printed[-1].startswith("# ")):
            printed.pop()
        yield typed, "\n".join(printed)


def play(commands, environment, folder):
    """Give what each command of one sh printed, in the form that `steps` has."""
    script = "exec 2>&1\n" + "".join(f"{command}\nprintf '\\n{MARK} %s\\n' $?\n" for command in commands)
    shell = subprocess.Popen(
        ["sh", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, _ = shell.communicate(timeout=RUN_S)
    finally:
        if shell.returncode is None:  # it hangs: nothing that it started may outlive the test
            os.killpg(shell.pid, signal.SIGKILL)
            shell.communicate()
    *printed, rest = re.split(rf"\n{MARK} (\d+)\n", out.decode())
    assert rest == ""
    for text, status in zip(printed[::2], printed[1::2], strict=True):
        yield "\n".join([*text.rstrip("\n").splitlines(), *([f"[exit {status}]"] if status != "0" else [])])


def pattern(printed):
    """Give the regular expression that the printed lines of a transcript stand for."""
    lines = []
    for line in printed.splitlines():
        fixed = re.escape(line).replace(r"\.\.\.", ".*").replace("<n>", r"\d+(\.\d+)?")
        lines.append(r"(?s:.+)" if line == "..." else fixed)
    return "\n".join(lines)


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_transcript_is_what_happens(path, on_path, demo, tmp_path):
    """Every command prints what its transcript says and ends with the status that it says."""
    if path.stem == "mistakes" and not hasattr(click, "NoSuchCommand"):
        pytest.skip("this click has other words for mistakes than those in the transcript")
    shutil.copytree(DEMO_DIR / "samples", tmp_path / "clips")
    wanted = list(steps(path.read_text()))
    environment = on_path | {"SENSEVOICE_SOCKET": str(demo.socket), "COLUMNS": "80"}
    played = play([command for command, _ in wanted], environment, tmp_path)
    # what fits is shown as the transcript has it, so that the difference is what does not
    found = [
        (command, printed if re.fullmatch(pattern(printed), actual) else actual)
        for (command, printed), actual in zip(wanted, played, strict=True)
    ]
    assert shown(found) == shown(wanted)


def shown(found):
    """Give steps as a transcript again."""
    return "\n".join(f"$ {command}\n{printed}" for command, printed in found)


def typed_flags(command):
    """Give the pairs of verb and flag in a command line, and (verb, "") for the verb itself."""
    words = shlex.shlex(command, posix=True, punctuation_chars=OPERATORS)
    words.whitespace, words.whitespace_split, words.commenters = " ", True, ""
    verb = None
    for word in words:
        if set(word) <= set(OPERATORS):
            verb = None
        elif word == "svctl":
            verb = ""
        elif verb == "":
            verb = word
            yield verb, ""
        elif verb:
            yield verb, word.partition("=")[0]


def test_every_verb_and_flag_is_shown():
    """No verb, nothing that stands before one and no spelling of a flag is without a transcript."""
    known = {
        (verb, flag)
        for verb, command in group().commands.items()
        for parameter in command.params
        for flag in ("", *parameter.opts, *parameter.secondary_opts)
        if flag.startswith("-") or not flag
    } | {(word, "") for word in (*group().commands, *(parameter.opts[-1] for parameter in group().params))}
    typed = {
        pair
        for path in TRANSCRIPTS
        for command, _ in steps(path.read_text())
        for pair in typed_flags(command)
    }
    assert sorted(known - typed) == []
