"""What every verb of svctl accepts, as one table: the quick parser and cli.py's click options come from it.

Never imports click: importing it takes longer than a whole `svctl ping`.
"""

from __future__ import annotations

from svctl.wire import CHANNELS, LANGUAGES, MAX_POSITION_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Value = str | float | bool | tuple[str, ...]
    Option = tuple[str, tuple[str, ...], str, Any, tuple[str, ...], str]
    Values = dict[str, Any]

FORMATS = ("text", "json", "jsonl", "verbose_json", "raw", "plain", "srt", "vtt", "tsv")
SINGLE_FORMATS = ("srt", "vtt", "tsv", "verbose_json")
"""Of one recording: two in one stream, or a heading between them, are no such file any more."""
EXTENSIONS = {"text": "txt", "plain": "txt", "raw": "txt", "verbose_json": "json"}
"""Endings of the files of -o, where they are not the format's own name."""
TAGS = ("bracket", "enclosed", "emoji", "raw", "none")

PATIENCE_S = 60.0
"""How long a full or loading daemon is waited for: longer than a large model takes to load."""
PING_PATIENCE_S = 5.0
"""A health check wants an answer, also when it is no."""
MAX_PATIENCE_S = 86_400.0
"""A day; a clock can count it in milliseconds, and nobody means more."""

MAX_NUMBER = 10_000
"""Columns or lines: no screen has more."""
JOBS, MAX_JOBS = 6, 32
"""Recordings at the daemon at once: as it is shipped, it refuses more than the second of one connection."""

METAVARS = {
    "output": "FOLDER",
    "files_from": "FILE",
    "socket": "PATH",
    "seconds": "SECONDS",
    "time": "TIME",
    "number": "N",
    "list": "PATTERN",
}
"""How help writes the value of an option: by its name, or else by its kind."""

# (name, flags, kind, default, allowed values, help). Kinds: a "flag" is set by its presence, a "switch" has
# an off flag (the last one), and "text", "choice", "choices" (several with commas), "list" (given once or
# more), "number" (above zero), "seconds" and "time" take a value.
SOCKET: Option = (
    "socket",
    ("--socket",),
    "text",
    "",
    (),
    "Socket of the daemon; default: $SENSEVOICE_SOCKET, then the user's, then the system's.",
)
_QUIET: Option = ("quiet", ("-q", "--quiet"), "flag", False, (), "Print errors only.")
_FORMAT_HELP = (
    "How the transcript is written; several, with commas, need -o. In json and jsonl a recording that fails "
    'is {"file": ..., "error": {"code": ..., "message": ...}}.'
)
_OUTPUT_HELP = (
    "Write a file for each recording and format into this folder instead of standard output; with -r in the "
    "same tree as the recordings. No recording of this run is ever replaced; one named twice is done once."
)
_WIDTH_HELP = (
    "srt and vtt: columns of a line, the channel's number included; Chinese and Japanese characters take two."
)
_GLOB_HELP = (
    "With -r: take files that match, not those with a known ending; transcripts (.txt, .srt, ...) only where "
    "the pattern ends so. May be given again."
)
_LIST_HELP = (
    "Read file names from this file, one a line (- is standard input). Windows' line ends are taken, too: a "
    "name that itself ends in a carriage return needs -0."
)
_NULL_HELP = (
    "Names in the list are ended by a NUL, as find -print0 writes them. Without --files-from the list is "
    "standard input."
)
_WORDS_HELP = (
    "text, srt, vtt and tsv: a line, subtitle or row for each word, with its times; a Chinese or Japanese "
    "character is a word. JSON has the words in any case."
)
_JOBS_HELP = (
    f"How many recordings the daemon has at once, up to {MAX_JOBS} (default: {JOBS}): decoding one overlaps "
    "recognising another."
)
_WAIT_FOR_START = "where it is given, also for one whose socket is not there yet."


def _wait(default: float) -> Option:
    # None tells a default from the same number that was asked for
    return (
        "wait",
        ("--wait",),
        "seconds",
        None,
        (),
        f"How long to wait for a daemon that is loading or full (default: {default:g}); {_WAIT_FOR_START}",
    )


VERBS: dict[str, tuple[str, str, tuple[Option, ...]]] = {
    # verb: (name of its arguments, or "" where it takes none; help; options)
    "transcribe": (
        "FILE",
        "Transcribe audio files; - is standard input.",
        (
            (
                "format",
                ("-f", "--format"),
                "choices",
                "text",
                FORMATS,
                _FORMAT_HELP,
            ),
            (
                "language",
                ("-l", "--language"),
                "choice",
                "auto",
                LANGUAGES,
                "Language of the speech; auto lets the model decide.",
            ),
            ("itn", ("--itn", "--no-itn"), "switch", True, (), "Punctuation and numbers in digits."),
            (
                "tags",
                ("--tags",),
                "choice",
                "bracket",
                TAGS,
                "How -f text shows language, emotion and event; other formats have no use for it.",
            ),
            (
                "timestamps",
                ("-t", "--timestamps"),
                "flag",
                False,
                (),
                "Put [start-end] in seconds before each line of -f text (not with --tags emoji).",
            ),
            ("words", ("--words",), "flag", False, (), _WORDS_HELP),
            (
                "max_line_width",
                ("--max-line-width",),
                "number",
                None,
                (),
                _WIDTH_HELP,
            ),
            (
                "max_line_count",
                ("--max-line-count",),
                "number",
                None,
                (),
                "srt and vtt: lines of a subtitle; needs --max-line-width.",
            ),
            (
                "vad",
                ("--vad", "--no-vad"),
                "switch",
                True,
                (),
                "Cut at pauses; without it a recording of up to 60 s is one segment.",
            ),
            (
                "channels",
                ("--channels",),
                "choice",
                "mix",
                CHANNELS,
                "mix: their mean; split: each under its number, as the two sides of a call; or one of them.",
            ),
            ("start", ("--start",), "time", 0.0, (), "Begin so far into the recording: 90, 1:30, 0:01:30.5."),
            ("duration", ("--duration",), "time", 0.0, (), "Take so much of it; 0: all."),
            (
                "output",
                ("-o", "--output"),
                "text",
                None,  # "" is what an unset variable gives, and a mistake
                (),
                _OUTPUT_HELP,
            ),
            (
                "force",
                ("--force",),
                "flag",
                False,
                (),
                "With -o: replace transcripts that are there.",
            ),
            (
                "skip_existing",
                ("--skip-existing",),
                "flag",
                False,
                (),
                "With -o: leave out what is transcribed already, so that a run that broke off goes on.",
            ),
            ("recursive", ("-r", "--recursive"), "flag", False, (), "Take the recordings below folders too."),
            (
                "glob",
                ("--glob",),
                "list",
                (),
                (),
                _GLOB_HELP,
            ),
            (
                "exclude",
                ("--exclude",),
                "list",
                (),
                (),
                "With -r: leave out files and folders that match. May be given again.",
            ),
            (
                "files_from",
                ("--files-from",),
                "text",
                "",
                (),
                _LIST_HELP,
            ),
            (
                "null",
                ("-0", "--null"),
                "flag",
                False,
                (),
                _NULL_HELP,
            ),
            ("jobs", ("-j", "--jobs"), "number", JOBS, (), _JOBS_HELP),
            (
                "progress",
                ("--progress", "--no-progress"),
                "switch",
                True,
                (),
                "Show on a terminal's standard error how far the run is.",
            ),
            (
                "color",
                ("--color",),
                "choice",
                "auto",
                ("auto", "always", "never"),
                "Colour -f text; auto: on a terminal, unless NO_COLOR is set.",
            ),
            _QUIET,
            _wait(PATIENCE_S),
            (
                "no_wait",
                ("--no-wait",),
                "flag",
                False,
                (),
                "Fail at once with exit status 75 when the daemon is full.",
            ),
            SOCKET,
        ),
    ),
    "status": (
        "",
        "Show what the daemon runs, holds and has done.",
        (
            ("json", ("--json",), "flag", False, (), "Write it as JSON, with --watch one object a line."),
            ("watch", ("-w", "--watch"), "flag", False, (), "Ask again every second, until Ctrl-C."),
            _wait(PATIENCE_S),
            SOCKET,
        ),
    ),
    "ps": (
        "",
        "Show the requests that are not finished: yours, or everybody's for root.",
        (("json", ("--json",), "flag", False, (), "Write them as JSON."), _wait(PATIENCE_S), SOCKET),
    ),
    "cancel": (
        "JOB",
        "End unfinished requests by their number in `svctl ps`.",
        (_QUIET, _wait(PATIENCE_S), SOCKET),
    ),
    "models": (
        "",
        "Show which models the daemon has, and which one is loaded.",
        (("json", ("--json",), "flag", False, (), "Write them as JSON."), _wait(PATIENCE_S), SOCKET),
    ),
    "bench": (
        "",
        "Measure how fast this machine answers: clips of noise of 1, 5 and 15 s, one after another.",
        (
            ("seconds", ("--seconds",), "seconds", 10.0, (), "How long to measure (default: 10)."),
            ("json", ("--json",), "flag", False, (), "Write it as JSON."),
            _wait(PATIENCE_S),
            SOCKET,
        ),
    ),
    "version": ("", "Show the version of svctl and of the daemon.", (_wait(PING_PATIENCE_S), SOCKET)),
    "ping": ("", "Ask the daemon for a sign of life.", (_QUIET, _wait(PING_PATIENCE_S), SOCKET)),
    "reload": ("", "Let the daemon read its configuration again.", (_QUIET, _wait(PATIENCE_S), SOCKET)),
}
"""Every verb and option of svctl."""


def patience_s(verb: str, values: Values) -> float:
    """How long this run waits for a daemon that is loading or full: what was asked for, or the default."""
    if values.get("no_wait"):
        return 0.0
    wait: float | None = values["wait"]
    if wait is not None:
        return wait
    return PING_PATIENCE_S if verb in ("ping", "version") else PATIENCE_S


def parse(verb: str, arguments: list[str]) -> tuple[Values, list[str]] | None:
    """The option values by name, and the file names; None where only click can say what is meant or wrong.

    It accepts a part of what click accepts and means the same by it (a test holds them together): whole
    flags, `--flag=value`, and `--`. Clusters of short flags, help, and every mistake are click's.
    """
    argument, _, options = VERBS[verb]
    by_flag = {flag: option for option in options for flag in option[1]}
    values: Values = {option[0]: option[3] for option in options}
    names: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word == "--":
            names.extend(rest)
            break
        if word == "-" or word[:1] != "-":
            names.append(word)
            continue
        flag, given, text = word.partition("=") if word.startswith("--") else (word, "", "")
        option = by_flag.get(flag)
        if option is None:
            return None
        value = _value(option, flag, text if given else None, rest)
        if value is None:
            return None
        values[option[0]] = (*values[option[0]], value) if option[2] == "list" else value
    if argument and bool(names) == listed(values):
        return None  # names from both sides, or from none
    return None if names and not argument else (values, names)


def listed(values: Values) -> bool:
    """Whether the file names come from a list."""
    return bool(values.get("null") or values.get("files_from"))


def most(name: str) -> int:
    """The highest that the option of this name can be, of kind "number"."""
    return MAX_JOBS if name == "jobs" else MAX_NUMBER


def time_s(text: str) -> float | None:
    """Seconds of a time as ffmpeg has it: 90.5, 1:30 or 0:01:30.5, up to MAX_POSITION_S; else None."""
    parts = text.split(":")
    digits = [*parts[:-1], parts[-1].replace(".", "", 1)]
    if len(parts) > len("hms") or not all(part.isascii() and part.isdigit() for part in digits):
        return None
    seconds = float(parts[0])
    for part in parts[1:]:
        if float(part) >= 60:  # noqa: PLR2004 - seconds of a minute, minutes of an hour
            return None
        seconds = seconds * 60 + float(part)
    return seconds if seconds <= MAX_POSITION_S else None


def formats(values: Values) -> tuple[str, ...]:
    """The formats that were asked for, each once."""
    asked: str = values["format"]
    return tuple(dict.fromkeys(asked.split(",")))


def _value(option: Option, flag: str, given: str | None, rest: Iterator[str]) -> Value | None:
    """What an option is set to: by presence, by the text behind `=`, or by the next word; None if unclear."""
    name, flags, kind, _, allowed, _ = option
    if kind in ("flag", "switch"):
        return None if given is not None else kind == "flag" or flag != flags[-1]
    value = next(rest, "-") if given is None else given
    chosen = value.split(",") if kind == "choices" else [value]
    if (given is None and value.startswith("-")) or (allowed and not set(chosen) <= set(allowed)):
        return None
    if kind == "number":
        plain = value.isascii() and value.isdigit() and len(value) <= len(str(MAX_NUMBER))
        return int(value) if plain and 0 < int(value) <= most(name) else None
    if kind == "time":
        return time_s(value)
    if kind == "seconds":
        # plain decimals only; click has a sentence for the rest
        digits = value.replace(".", "", 1)
        plain = digits.isascii() and digits.isdigit()
        return float(value) if plain and float(value) <= MAX_PATIENCE_S else None
    return value
