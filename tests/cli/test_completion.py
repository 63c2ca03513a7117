"""Completion in the shells that people use: what a press of the tab key offers, and types."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading

import pytest
from harness.daemon import wait_until

SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(svctl completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -Uz compinit; compinit -u -D; eval "$(svctl completion zsh)"'),
    "fish": (["fish", "--no-config", "-i"], "svctl completion fish | source"),
}
"""How each starts without anybody's settings, and what its own have to hold."""
RECORDER = """\
#!/bin/sh
if [ -n "$_SVCTL_COMPLETE" ] || [ "$1" = completion ]; then exec "{python}" -m svctl "$@"; fi
printf '%s\\n' "$@" > "{folder}/part" && mv "{folder}/part" "{folder}/typed"
"""
"""In svctl's place: answers the shell as svctl does, and notes the words that it is run with in the end."""
TYPED = [
    ("transcri\t", ["transcribe"]),
    ("transcribe --skip\t", ["transcribe", "--skip-existing"]),
    ("transcribe --format vt\t", ["transcribe", "--format", "vtt"]),
    ("transcribe -f srt,vt\t", ["transcribe", "-f", "srt,vtt"]),
    ("transcribe --tags em\tfir\t", ["transcribe", "--tags", "emoji", "first.wav"]),
    ("transcribe one\t", ["transcribe", "one call.wav"]),
    ("transcribe -o fol\t", ["transcribe", "-o", "folder"]),
    ("transcribe --files-from na\t", ["transcribe", "--files-from", "names.txt"]),
    ("transcribe --format=vt\t", ["transcribe", "--format=vtt"]),
    ("status --js\t", ["status", "--json"]),
]
"""What is typed, with its tabs, and the words that come of it: verbs, flags, values, names of files."""


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_its_script(svctl, shell):
    """The verb prints it without a daemon; help says where it belongs."""
    status, out, err = svctl("completion", shell)
    assert (status, err) == (0, "")
    assert "_SVCTL_COMPLETE" in out
    assert f"{shell}: " in svctl("completion", "--help")[1]
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: its script was printed and not run")
    subprocess.run([shell, "-n"], input=out, text=True, check=True, timeout=60)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_tab_completes_what_is_typed(on_path, tmp_path, shell):
    """In a shell on a terminal, by its own line editor, with the script that the verb prints."""
    command, setup = SHELLS[shell]
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    for name in ("first.wav", "one call.wav", "names.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "bin" / "svctl").write_text(RECORDER.format(python=sys.executable, folder=tmp_path))
    typed = tmp_path / "typed"
    with Terminal(command, cwd=tmp_path, env={**on_path, "HOME": str(tmp_path), "TERM": "dumb"}) as terminal:
        terminal.type(f"{setup}; echo re''ady\n")
        terminal.wait_for("ready")
        for line, words in TYPED:
            terminal.type(f"svctl {line}\n")
            wait_until(typed.exists, f"{line!r} in {terminal.shown!r}")
            # zsh takes the slash that it has put behind a folder away again
            assert typed.read_text().replace("/\n", "\n").splitlines() == words, (line, terminal.shown)
            typed.unlink()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("tr", ["transcribe"]),
        ("transcribe --skip", ["--skip-existing"]),
        ("transcribe -f srt,v", ["srt,verbose_json", "srt,vtt"]),
        ("transcribe -l y", ["yue"]),
        ("status --w", ["--wait", "--watch"]),
        ("completion z", ["zsh"]),
        ("--so", ["--socket"]),
        ("--socket other.sock tra", ["transcribe"]),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_all_that_fits_is_offered(on_path, shell, words, offered):
    """As bash and fish themselves ask, with the script that the verb prints; zsh tells only a terminal."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    typed = ["svctl", *words.split()]
    lines = {
        "bash": (
            'eval "$(svctl completion bash)"',
            f"COMP_WORDS=({' '.join(typed)}); COMP_CWORD={len(typed) - 1}",
            "_svctl_completion svctl",
            'printf "%s\\n" "${COMPREPLY[@]}"',
        ),
        "fish": ("svctl completion fish | source", f"complete -C '{' '.join(typed)}' | cut -f 1"),
    }
    found = subprocess.run(
        [shell, "-c", "\n".join(lines[shell])],
        env=on_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert sorted(found.stdout.split()) == offered


class Terminal:
    """A command on a terminal of its own, for the length of a `with` block."""

    def __init__(self, command, **settings):
        self.shown = ""
        self._leader, follower = os.openpty()
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *command], stdin=follower, stdout=follower, stderr=follower, **settings
        )
        os.close(follower)
        # read all along: a terminal that nobody reads holds up who writes on it
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._reading.join(20)
        os.close(self._leader)

    def type(self, text):
        """Press these keys."""
        os.write(self._leader, text.encode())

    def wait_for(self, text):
        """Wait until this has been shown."""
        wait_until(lambda: text in self.shown, f"{text!r} in {self.shown!r}")

    def _read(self):
        try:
            while data := os.read(self._leader, 4_096):
                self.shown += data.decode("utf-8", "replace")
        except OSError:  # its last process has gone
            return
