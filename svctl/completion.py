"""The verb `completion`, and what a shell is told while somebody presses the tab key: click's, and mended.

Never imported on the quick path, as it imports click.
"""

from __future__ import annotations

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

_STARTUP = {
    "bash": 'eval "$(svctl completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(svctl completion zsh)" in ~/.zshrc, after compinit',
    "fish": "svctl completion fish > ~/.config/fish/completions/svctl.fish",
}


class _Mended(ShellComplete):
    """Completes `--flag=val` too: click offers the value alone, which takes the place of all of it."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """What fits: as click's, whole."""
        if args[-1:] == ["="]:
            args = args[:-1]  # bash breaks the word into three, and replaces the last
        found = super().get_completions(args, incomplete)
        flag, given, _ = incomplete.partition("=")
        if given and flag.startswith("--"):
            for item in found:
                item.value = f"{flag}={item.value}"
        return found


class _Bash(_Mended, BashComplete):
    pass


class _Zsh(_Mended, ZshComplete):
    pass


class _Fish(_Mended, FishComplete):
    # click's cuts values and help at every comma
    source_template = FishComplete.source_template.replace('string split ","', 'string split --max 1 ","')


_KINDS: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}
for kind in _KINDS.values():
    add_completion_class(kind)


def command() -> click.Command:
    """Print the script by which a shell completes svctl's words."""

    def callback(shell: str) -> int:
        click.echo(_KINDS[shell](click.Group("svctl"), {}, "svctl", "_SVCTL_COMPLETE").source())
        return 0

    return click.Command(
        "completion",
        callback=callback,
        params=[click.Argument(["shell"], type=click.Choice(sorted(_STARTUP)))],
        help="Print what makes a shell complete svctl's verbs and options.",
        epilog="\b\n" + "\n".join(f"{shell}: {line}" for shell, line in sorted(_STARTUP.items())),
    )
