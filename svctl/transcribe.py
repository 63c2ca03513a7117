"""The verb `transcribe`: which files, in which format, to which output, with which exit status.

Never imports click: this is the hot path. What only the answers need is imported while the daemon works.
"""

from __future__ import annotations

from svctl import options, pipeline, sources, wire
from svctl.terminal import STDIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from svctl.client import Client
    from svctl.folder import Folder
    from svctl.options import Values


def _only_one(values: Values) -> str:
    """Why this run takes one recording only, or ""."""
    form = values["format"]
    return (
        f"-f {form} holds one recording; several need -o FOLDER, which gets a file for each."
        if form in options.SINGLE_FORMATS and not values["output"]
        else ""
    )


def prepare(values: Values, names: list[str]) -> Folder | None:
    """What can be known before the daemon is asked: whether the words fit together, and where `-o` writes.

    Raises WireError `invalid_request`, and OutputError for a folder that cannot be written.
    """
    if values["timestamps"] and values["format"] != "text":
        raise wire.WireError(
            "invalid_request", f"-t goes with -f text; -f {values['format']} has no use for it."
        )
    if values["timestamps"] and values["tags"] == "emoji":
        raise wire.WireError(
            "invalid_request",
            "-t puts times before the lines of segments; --tags emoji writes a recording as one line.",
        )
    if len(names) > 1 and _only_one(values):
        raise wire.WireError("invalid_request", _only_one(values))
    if not values["output"]:
        return None
    from svctl.folder import Folder  # noqa: PLC0415 - pathlib costs more than the rest of svctl

    return Folder(values["output"], values["format"], names)


class Run:
    """One run of the verb: `begin` sends what can be sent, `finish` writes what is answered."""

    def __init__(self, values: Values, names: list[str]) -> None:
        """Raises as `prepare` does."""
        self._values = values
        self._folder = prepare(values, names)
        self._several = values["null"] or len(names) > 1
        fields = {"language": values["language"], "itn": values["itn"], "vad": values["vad"]}
        run_names = sources.Names(names, STDIN if values["null"] else -1, only_one=_only_one(values))
        patience_s = options.patience_s("transcribe", values)
        self._pipeline = pipeline.Pipeline(run_names, fields, patience_s=patience_s)

    def begin(self, connection: Client) -> None:
        """Send the first requests, once more where another connection was turned away."""
        self._pipeline.begin(connection)

    def finish(self, connection: Client) -> int:
        """Transcribe, print, and return the exit status: 0, or that of the first recording that failed.

        Raises WireError when the connection fails, OutputError and BrokenPipeError when the output does.
        """
        from svctl.printer import Printer  # noqa: PLC0415 - the daemon has its requests and is at work

        wire.load_codec()
        printer = Printer(connection, self._values, self._folder, several=self._several)
        status = 0
        for source, event in self._pipeline.run():
            failed = printer.event(source, event)
            status = status or failed
        printer.end()
        return status
