"""The verbs as click sees them: help, completion, and a sentence for every mistake.

Never imported on the quick path: click costs more than a whole ping.
"""

from __future__ import annotations

import contextlib
import io
import os
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem
from click.types import FloatParamType, IntParamType

from svctl import __version__, completion, verbs
from svctl.options import MAX_PATIENCE_S, METAVARS, SOCKET, VERBS, listed, most, time_s
from svctl.terminal import OutputError, say, write_stdout
from svctl.wire import CHANNELS, ERRORS, MAX_POSITION_S

if TYPE_CHECKING:
    from svctl.options import Option

    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # up to click 8.3 it takes no type

_USAGE = ERRORS["invalid_request"][1]
_EXAMPLES = """\b
Examples:
  svctl transcribe call.wav
  svctl transcribe -r -f srt,json -o transcripts/ recordings/
  ffmpeg -v error -i talk.mkv -f wav - | svctl transcribe -
"""


class _Seconds(FloatParamType):
    """Seconds of patience; a NaN is none, which click's own range lets pass."""

    name = "number of seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not 0 <= seconds <= MAX_PATIENCE_S:
            self.fail(f"{value} is not a number of seconds from 0 to {MAX_PATIENCE_S:.0f}.", param, ctx)
        return seconds


class _Number(IntParamType):
    """A whole number from 1 on."""

    name = "whole number"

    def __init__(self, most: int) -> None:
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not 1 <= number <= self._most:
            self.fail(f"{number} is not from 1 to {self._most}.", param, ctx)
        return number


class _Time(_ParamType):
    """A place in a recording, or a length of it."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = time_s(value) if isinstance(value, str) else value
        if seconds is None:
            hours = MAX_POSITION_S // 3600
            self.fail(
                f"{value!r} is no time; write seconds, 1:30 or 0:01:30.5, up to {hours} hours.", param, ctx
            )
        return seconds


class _Choices(_ParamType):
    """One or more of the allowed words, with commas."""

    name = "words"

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._allowed = allowed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        one = click.Choice(self._allowed)
        for word in value.split(","):
            one.convert(word, param, ctx)
        return value

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(before + comma + word) for word in self._allowed if word.startswith(last)]


def _files(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Leave names to the shell, which knows its files best."""
    return [CompletionItem(incomplete, type="file")]


def _completer(argument: str) -> Any:
    return _files if argument == "FILE" else None


def _option(option: Option) -> click.Option:
    name, flags, kind, default, allowed, text = option
    settings: dict[str, Any] = {"default": default, "help": text}
    if kind == "switch":
        return click.Option([f"{flags[0]}/{flags[1]}", name], show_default=True, **settings)
    if kind == "flag":
        return click.Option([*flags, name], is_flag=True, **settings)
    if kind == "choice":
        if allowed == CHANNELS:
            settings["metavar"] = "[mix|split|N]"
        return click.Option([*flags, name], type=click.Choice(allowed), show_default=True, **settings)
    if kind == "choices":
        metavar = f"[{'|'.join(allowed)}],..."
        settings |= {"show_default": True, "metavar": metavar}
        return click.Option([*flags, name], type=_Choices(allowed), **settings)
    if kind == "seconds":
        return click.Option([*flags, name], type=_Seconds(), metavar=METAVARS[kind], **settings)
    if kind == "time":
        return click.Option([*flags, name], type=_Time(), metavar=METAVARS[kind], **settings)
    if kind == "number":
        return click.Option([*flags, name], type=_Number(most(name)), metavar=METAVARS[kind], **settings)
    if kind == "list":
        return click.Option([*flags, name], multiple=True, metavar=METAVARS[kind], **settings)
    return click.Option([*flags, name], metavar=METAVARS[name], shell_complete=_files, **settings)


def _command(verb: str) -> click.Command:
    argument, text, options = VERBS[verb]

    def callback(**values: Any) -> int:
        names = list(values.pop("names", ()))
        if argument and not names and not listed(values):
            hint = ", or - for standard input" if argument == "FILE" else ""
            raise click.UsageError(f"Name at least one {argument}{hint}.")
        if names and listed(values):
            flag = "--files-from" if values["files_from"] else "-0"
            raise click.UsageError(f"{flag} takes the names from a list; name no FILE beside it.")
        return verbs.run(verb, values, names)

    parameters: list[click.Parameter] = [_option(option) for option in options]
    if argument:
        # not click.Path: plain strings keep the surrogates of names that are not UTF-8
        parameters.append(
            click.Argument(["names"], nargs=-1, metavar=f"{argument}...", shell_complete=_completer(argument))
        )
    return click.Command(verb, callback=callback, params=parameters, help=text, short_help=text)


def _before_the_verb(socket: str) -> None:
    """Take what every verb takes as that verb's default."""
    click.get_current_context().default_map = {verb: {SOCKET[0]: socket} for verb in VERBS}


def group() -> click.Group:
    """All of svctl as a click group, built from the option table."""
    commands = {verb: _command(verb) for verb in VERBS}
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
    top = click.Group(
        "svctl",
        callback=_before_the_verb,
        params=[_option(SOCKET)],
        commands=commands,
        context_settings=settings,
        help="Talk to sensevoiced, the resident speech recogniser.",
        epilog=_EXAMPLES,
    )
    top.add_command(completion.command())
    return click.version_option(__version__, "-V", "--version", prog_name="svctl")(top)


def main(arguments: list[str]) -> int:
    """Run svctl with these words; returns the exit status."""
    # click's help is collected first: written by Python's own buffer, a full disk would be a traceback
    collected = io.BytesIO()
    text = io.TextIOWrapper(collected, encoding="utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(text):
        status = _run(arguments)
        text.flush()
    try:
        write_stdout(collected.getvalue())
    except OutputError as error:
        say(str(error))
        return error.status
    except BrokenPipeError:
        return verbs.BROKEN_PIPE
    return status


def _meant_as_a_name(arguments: list[str]) -> str:
    """A remedy for the first word that begins as an option and is the name of a file, "" where none is."""
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    name = next((word for word in words if word[:1] == "-" and word != "-" and os.path.lexists(word)), "")
    return f" If the file {name} is meant, write ./{name}" if name else ""


def _sentence(error: click.UsageError, arguments: list[str]) -> str:
    """What click says, with where to look for what there is, unless it or we know better."""
    text = " ".join(error.format_message().split())
    if text[-1:] not in ".?)":  # click's versions differ
        text += "."
    if meant := _meant_as_a_name(arguments):
        return text + meant
    if "Did you mean" in text or not text.startswith(("No such ", "Got unexpected ")):
        return text
    command = error.ctx.command_path if error.ctx is not None else "svctl"
    return f"{text.rstrip('.')}; see {command} --help."


def _run(arguments: list[str]) -> int:
    try:
        # no words at all are a mistake that the help answers; click's versions end differently with them
        result = group().main(arguments or ["--help"], prog_name="svctl", standalone_mode=False)
    except click.UsageError as error:
        say(_sentence(error, arguments))
        return _USAGE
    except click.ClickException as error:
        say(error.format_message())
        return _USAGE
    except click.Abort:
        return verbs.INTERRUPTED
    except SystemExit as ending:  # click ends so after it has printed a shell's completions
        return ending.code if isinstance(ending.code, int) else 0
    if not arguments:
        return _USAGE
    return result if isinstance(result, int) else 0
