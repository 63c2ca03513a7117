"""The verb `transcribe`: which files, in which format, to which output, with which exit status.

Never imports click: this is the hot path. What only the answers need is imported while the daemon works.
"""

from __future__ import annotations

import time

from svctl import framing, options, pipeline, sources, wire
from svctl.terminal import STDIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from svctl.connection import Connection
    from svctl.folder import Folder
    from svctl.options import Values

_NEWER = {"channels": "mix", "start": 0.0, "duration": 0.0}
"""Fields of a request that not every daemon of this major version knows, with their defaults."""
_LOOK_AHEAD_S = 0.01
"""For which names are counted each time that the progress is shown: answers do not wait for longer."""


def _only_one(values: Values) -> str:
    """Why this run takes one recording only, or ""."""
    form = values["format"]
    return (
        f"-f {form} holds one recording; several need -o FOLDER, which gets a file for each."
        if form in options.SINGLE_FORMATS and not values["output"]
        else ""
    )


def _mistake(values: Values, names: list[str]) -> str:
    """Why the words do not fit together, or ""."""
    several = len(names) > 1 or values["recursive"]
    if values["output"] is not None and not values["output"]:
        return "-o is given no FOLDER (an unset variable?); without -o transcripts go to standard output."
    if values["output"] == "-":
        return (
            "-o takes a FOLDER; without it transcripts go to standard output (a folder of that name is ./-)."
        )
    if values["no_wait"] and values["wait"]:
        return f"--no-wait does not wait, and --wait {values['wait']:g} does; leave out one of them."
    return (
        _of_formats(values)
        or _of_parts(values)
        or _of_folders(values)
        or (_only_one(values) if several else "")
    )


def _of_formats(values: Values) -> str:
    forms = options.formats(values)
    if values["timestamps"] and "text" not in forms:
        return f"-t goes with -f text; -f {values['format']} has no use for it."
    if values["timestamps"] and values["tags"] == "emoji":
        return "-t puts times before the lines of segments; --tags emoji writes a recording as one line."
    if values["tags"] != "bracket" and "text" not in forms:
        return f"--tags goes with -f text; -f {values['format']} has no use for it."
    if values["max_line_count"] and not values["max_line_width"]:
        return "--max-line-count counts the lines that --max-line-width makes; give both."
    if values["max_line_width"] and not {*forms} & {"srt", "vtt"}:
        return f"--max-line-width goes with -f srt and vtt; -f {values['format']} has no use for it."
    if len(forms) > 1 and not values["output"]:
        return f"-f {values['format']} are several files; they need -o FOLDER."
    endings = [options.EXTENSIONS.get(form, form) for form in forms]
    for ending in endings:
        same = [form for form, its_own in zip(forms, endings, strict=True) if its_own == ending]
        if len(same) > 1:
            sentence = f"{' and '.join(same)} are files .{ending} both; take one of them."
            return f"-f {values['format']}: {sentence}"
    return ""


def _of_parts(values: Values) -> str:
    """Of what a segment is made of: its words, and its channel."""
    forms = {*options.formats(values)}
    if values["words"] and forms <= {"plain", "raw"}:
        sentence = f"--words gives each word its times, and -f {values['format']} has none"
        return f"{sentence}; take text, srt, vtt or tsv."
    if values["words"] and "text" in forms and values["tags"] not in ("bracket", "none"):
        return "--words writes words without tags, which are those of segments; leave out --tags."
    if values["channels"] == "split" and "raw" in forms:
        return "-f raw has no place for the number of a channel; -f text --tags raw has."
    if values["channels"] == "split" and values["tags"] == "emoji" and "text" in forms:
        return "--tags emoji writes one line, without the numbers of channels; take other tags."
    return ""


def _of_folders(values: Values) -> str:
    for name, flag in (("force", "--force"), ("skip_existing", "--skip-existing")):
        if values[name] and not values["output"]:
            return f"{flag} is about transcripts in a folder; it needs -o FOLDER."
    if values["force"] and values["skip_existing"]:
        return "--force replaces transcripts and --skip-existing leaves them; take one of them."
    if (values["glob"] or values["exclude"]) and not values["recursive"]:
        return "--glob and --exclude choose among the files below folders; they need -r."
    return ""


def prepare(values: Values, names: list[str]) -> Folder | None:
    """What can be known before the daemon is asked: whether the words fit together, and where `-o` writes.

    Raises WireError `invalid_request`, and OutputError for a folder that cannot be written.
    """
    if mistake := _mistake(values, names):
        raise wire.WireError("invalid_request", mistake)
    if not values["output"]:
        return None
    from svctl.folder import Folder  # noqa: PLC0415 - pathlib costs more than the rest of svctl

    return Folder(
        values["output"],
        options.formats(values),
        names,
        force=values["force"],
        skip_existing=values["skip_existing"],
    )


def _list(values: Values) -> int:
    """The descriptor to read names from, -1 where they are on the command line; raises WireError."""
    if not values["files_from"]:
        return STDIN if values["null"] else -1
    if values["files_from"] == "-":
        return STDIN
    return sources.open_list(values["files_from"])


class Run:
    """One run of the verb: `begin` sends what can be sent, `finish` writes what is answered."""

    def __init__(self, values: Values, names: list[str]) -> None:
        """Raises as `prepare` does."""
        self._values = values
        self._folder = prepare(values, names)
        self._many = options.listed(values) or values["recursive"]
        self._several = self._many or len(names) > 1
        self._left_out: dict[str, int] = {}
        below = None
        if values["recursive"]:
            from svctl import walk  # noqa: PLC0415 - only -r walks

            wanted = walk.Filter(values["glob"], values["exclude"])

            def below(root: str) -> Iterator[sources.Found]:
                return walk.walk(root, wanted)

        fields = {"language": values["language"], "itn": values["itn"], "vad": values["vad"]}
        # an older daemon knows nothing of these, and would leave them out of account without a word
        self._newer = {name: values[name] for name in _NEWER if values[name] != _NEWER[name]}
        fields |= self._newer
        self._names = sources.Names(
            names,
            _list(values),
            ended_by=b"\0" if values["null"] else b"\n",
            below=below,
            only_one=_only_one(values),
        )
        patience_s = options.patience_s("transcribe", values)
        self._pipeline = pipeline.Pipeline(
            self._names, fields, patience_s=patience_s, in_flight=values["jobs"], wanted=self._wanted
        )

    def _wanted(self, source: sources.Source) -> bool:
        why = self._folder.claim(source) if self._folder is not None else ""
        if why:
            self._left_out[why] = self._left_out.get(why, 0) + 1
        return not why

    def _total(self) -> int | None:
        """How many recordings this run transcribes, as far as that is known; only progress asks."""
        self._names.look_ahead(time.monotonic() + _LOOK_AHEAD_S)
        total = self._names.total
        return None if total is None else total - sum(self._left_out.values())

    def begin(self, connection: Connection) -> None:
        """Send the first requests, once more where another connection was turned away."""
        self._pipeline.begin(connection)

    def finish(self, connection: Connection) -> int:
        """Transcribe, print, and return the exit status: 0, or that of the first recording that failed.

        Raises WireError when the connection fails, OutputError and BrokenPipeError when the output does.
        """
        from svctl.printer import Printer  # noqa: PLC0415 - the daemon has its requests and is at work
        from svctl.progress import Progress  # noqa: PLC0415

        if self._several:
            framing.load_codec()  # a clip's answer is read by hand
        for name in self._newer:
            connection.needs(name)
        counts = self._many or (self._several and self._folder is not None)
        wanted = self._values["progress"] and not self._values["quiet"]
        progress = Progress(wanted=wanted, total=self._total, under_way=lambda: self._pipeline.under_way)
        printer = Printer(
            connection, self._values, self._folder, progress, several=self._several, counts=counts
        )
        status = 0
        try:
            for source, event in self._pipeline.run():
                failed = printer.event(source, event)
                status = status or failed
        except BaseException:
            progress.clear()  # Ctrl-C and a daemon that goes leave a clean line, too
            printer.broke_off(self._names.total, self._left_out)
            raise
        progress.clear()
        printer.end(self._left_out)
        return status
