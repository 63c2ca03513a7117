"""Runs a verb whose words are already understood, and turns every ending into a sentence and an exit status.

Shared by the quick path and by click, and so never imports click.
"""

from __future__ import annotations

import os
import time

from svctl import __version__, options, wire
from svctl.connect import connect
from svctl.terminal import STDOUT, OutputError, encoded, printable, say, write_stdout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from svctl.bench import Bench
    from svctl.connection import Connection
    from svctl.options import Values
    from svctl.transcribe import Run
    from svctl.wire import Message

INTERRUPTED = wire.ERRORS["cancelled"][1]
BROKEN_PIPE = 128 + 13
"""What a shell reports for a program that SIGPIPE ended, such as `yes | head`."""
_WATCH_S = 1.0
_SCREEN = "\x1b[H\x1b[2J"
"""Home, and the screen empty (ECMA-48 CUP, ED)."""
_LOADING_PATIENCE_S = 5.0
"""Even --no-wait and --wait 0 give a daemon time to say hello and to answer: 'do not queue' is not 'be
instant'."""


def run(verb: str, values: Values, names: list[str]) -> int:
    """Run a verb of options.VERBS; returns the exit status and never raises for what a user can cause."""
    connection: Connection | None = None
    try:
        work = _work(verb, values, names)
        patience_s = options.patience_s(verb, values)
        connection = connect(
            values["socket"],
            patience_s=patience_s,
            answer_s=_LOADING_PATIENCE_S,
            absent_s=patience_s if values["wait"] is not None else 0.0,
            behind=work.begin,
        )
        return work.finish(connection)
    except wire.WireError as error:
        say(error.message)
        return error.exit_status
    except OutputError as error:
        say(str(error))
        return error.status
    except BrokenPipeError:
        return BROKEN_PIPE
    except KeyboardInterrupt:
        if connection is not None:
            connection.cancel_all()
        return INTERRUPTED
    finally:
        if connection is not None:
            connection.close()


def _work(verb: str, values: Values, names: list[str]) -> Run | Bench | _Call | _Cancel:
    if verb == "transcribe":
        from svctl.transcribe import Run  # noqa: PLC0415 - a ping needs none of it

        return Run(values, names)
    if verb == "cancel":
        return _Cancel(values, names)
    if verb == "bench":
        from svctl.bench import Bench  # noqa: PLC0415 - a ping needs none of it

        return Bench(values)
    return _Call(verb, values)


class _Call:
    """A verb that is one request."""

    def __init__(self, verb: str, values: Values) -> None:
        self._kind, self._answer, self._printed = _CALLS[verb]
        self._called = f"svctl {verb}"
        self._values = values
        self._deadline = time.monotonic() + options.patience_s(verb, values)
        self._asked = 0

    def begin(self, connection: Connection) -> None:
        """Ask."""
        self._asked = connection.request(self._kind)

    def finish(self, connection: Connection) -> int:
        """Wait for the answer and print it; with --watch again and again."""
        connection.needs(self._kind, self._called)
        asked: int | None = self._asked
        while True:
            event = connection.call(
                self._kind,
                self._answer,
                patience_s=max(0.0, self._deadline - time.monotonic()),
                answer_s=_LOADING_PATIENCE_S,
                asked=asked,
            )
            if self._values.get("watch"):
                connection.wait_writable(STDOUT)  # a terminal may be stopped (Ctrl-S)
            if not self._values.get("quiet"):
                write_stdout(encoded(self._printed(connection, self._values, event)))
            if not self._values.get("watch"):
                return 0
            asked = None
            time.sleep(_WATCH_S)


class _Cancel:
    """The verb `cancel`: one request for each number."""

    def __init__(self, values: Values, names: list[str]) -> None:
        for name in names:
            # the length first: Python refuses to read thousands of digits
            digits = name.isascii() and name.isdigit() and len(name) <= len(str(wire.MAX_ID))
            if not digits or not 0 < int(name) <= wire.MAX_ID:
                sentence = f"{name:.40} is no number of a request: `svctl ps` shows them."
                raise wire.WireError("invalid_request", sentence)
        self._jobs = [int(name) for name in names]
        self._quiet: bool = values["quiet"]
        self._patience_s = options.patience_s("cancel", values)
        self._asked: list[int] = []

    def begin(self, connection: Connection) -> None:
        """Ask for all of them."""
        self._asked = [connection.request("drop", job=job) for job in self._jobs]

    def finish(self, connection: Connection) -> int:
        """Say what came of each; the first that failed decides the exit status."""
        connection.needs("drop", "svctl cancel")
        status = 0
        deadline = time.monotonic() + max(self._patience_s, _LOADING_PATIENCE_S)
        for job, asked in zip(self._jobs, self._asked, strict=True):
            try:
                connection.answer(asked, "dropped", deadline)
            except wire.WireError as error:
                if error.request is None:
                    raise
                say(error.message)
                status = status or error.exit_status
            else:
                if not self._quiet:
                    write_stdout(encoded(f"job {job} is cancelled\n"))
        return status


def _jobs(_connection: Connection, values: Values, event: Message) -> str:
    from svctl import formats, status  # noqa: PLC0415

    return formats.json_text(event["jobs"], indent=2) + "\n" if values["json"] else status.jobs(event["jobs"])


def _models(_connection: Connection, values: Values, event: Message) -> str:
    from svctl import formats, status  # noqa: PLC0415

    loaded = event["status"].get("model")
    names = sorted({*event["status"].get("models", ()), *([loaded] if loaded else ())})
    if values["json"]:
        return (
            formats.json_text([{"name": name, "loaded": name == loaded} for name in names], indent=2) + "\n"
        )
    return status.models(names, loaded)


def _version(connection: Connection, _values: Values, _event: Message) -> str:
    ours = f"{wire.VERSION_MAJOR}.{wire.VERSION_MINOR}"
    theirs = f"{wire.VERSION_MAJOR}.{connection.minor}"
    return (
        f"svctl/{__version__}, protocol {ours}\n"
        f"{printable(connection.server)}, protocol {theirs}, at {connection.path}\n"
    )


def _ping(connection: Connection, _values: Values, _event: Message) -> str:
    return f"{connection.server} answers at {connection.path}\n"


def _reload(_connection: Connection, _values: Values, event: Message) -> str:
    return f"{printable(event['message'] or 'The configuration has been read again.')}\n"


def _status(_connection: Connection, values: Values, event: Message) -> str:
    from svctl import formats, status  # noqa: PLC0415

    if values["json"]:
        return formats.json_text(event["status"], indent=None if values["watch"] else 2) + "\n"
    table = status.table(event["status"])
    if not values["watch"]:
        return table
    return _SCREEN + table if os.isatty(STDOUT) else table + "\n"


_CALLS = {
    "ping": ("ping", "pong", _ping),
    "reload": ("reload", "reloaded", _reload),
    "status": ("status", "status", _status),
    "models": ("status", "status", _models),
    "version": ("ping", "pong", _version),
    "ps": ("jobs", "jobs", _jobs),
}
"""Verbs that are one request: verb to request, answering event, and what is printed of it."""
