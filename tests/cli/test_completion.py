"""Completion in the shells that people use: what a press of the tab key offers."""

from __future__ import annotations

import shutil
import subprocess

import pytest


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(svctl, shell):
    """The verb prints it without a daemon; help says where it belongs."""
    status, out, err = svctl("completion", shell)
    assert (status, err) == (0, "")
    assert "_SVCTL_COMPLETE" in out
    assert f"{shell}: " in svctl("completion", "--help")[1]
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: its script was printed and not run")
    subprocess.run([shell, "-n"], input=out, text=True, check=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("tr", ["transcribe"]),
        ("transcribe --skip", ["--skip-existing"]),
        ("transcribe -f srt,v", ["srt,verbose_json", "srt,vtt"]),
        ("transcribe -l y", ["yue"]),
        ("status --w", ["--wait", "--watch"]),
        ("completion z", ["zsh"]),
    ],
)
def test_bash_offers_verbs_options_and_values(on_path, words, offered):
    """As bash itself asks, with the script that the verb prints."""
    typed = ["svctl", *words.split()]
    lines = (
        'eval "$(svctl completion bash)"',
        f"COMP_WORDS=({' '.join(typed)}); COMP_CWORD={len(typed) - 1}",
        "_svctl_completion svctl",
        'printf "%s\\n" "${COMPREPLY[@]}"',
    )
    found = subprocess.run(
        ["bash", "-c", "\n".join(lines)], env=on_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert sorted(found.stdout.split()) == offered
