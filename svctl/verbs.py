"""Runs a verb whose words are already understood, and turns every ending into a sentence and an exit status.

Shared by the quick path and by click, and so never imports click.
"""

from __future__ import annotations

from svctl import wire
from svctl.connect import connect
from svctl.terminal import OutputError, encoded, printable, say, write_stdout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from svctl.client import Client
    from svctl.options import Values

INTERRUPTED = wire.ERRORS["cancelled"][1]
_BROKEN_PIPE = 128 + 13
"""What a shell reports for a program that SIGPIPE ended, such as `yes | head`."""
_LOADING_PATIENCE_S = 5.0
"""Even --no-wait gives a daemon time to say hello: 'do not queue' is not 'be instant'."""


def run(verb: str, values: Values, names: list[str]) -> int:
    """Run a verb of options.VERBS; returns the exit status and never raises for what a user can cause."""
    connection: Client | None = None
    try:
        patience_s = _LOADING_PATIENCE_S if values.get("no_wait") else values["wait"]
        connection = connect(values["socket"], patience_s=patience_s)
        return _VERBS[verb](connection, values, names)
    except wire.WireError as error:
        say(error.message)
        return error.exit_status
    except OutputError as error:
        say(str(error))
        return error.status
    except BrokenPipeError:
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        if connection is not None:
            connection.cancel_all()
        return INTERRUPTED
    finally:
        if connection is not None:
            connection.close()


def _transcribe(connection: Client, values: Values, names: list[str]) -> int:
    from svctl import transcribe  # noqa: PLC0415

    return transcribe.run(connection, values, names)


def _ping(connection: Client, values: Values, _names: list[str]) -> int:
    connection.call("ping", "pong", patience_s=values["wait"])
    if not values["quiet"]:
        write_stdout(encoded(f"{connection.server} answers at {connection.path}\n"))
    return 0


def _reload(connection: Client, values: Values, _names: list[str]) -> int:
    outcome = connection.call("reload", "reloaded", patience_s=values["wait"])["message"]
    if not values["quiet"]:
        write_stdout(encoded(f"{printable(outcome or 'The configuration has been read again.')}\n"))
    return 0


def _status(connection: Client, values: Values, _names: list[str]) -> int:
    from svctl import formats, status  # noqa: PLC0415

    answer = connection.call("status", "status", patience_s=values["wait"])["status"]
    write_stdout(
        encoded(formats.json_text(answer, indent=2) + "\n" if values["json"] else status.table(answer))
    )
    return 0


_VERBS = {"transcribe": _transcribe, "ping": _ping, "status": _status, "reload": _reload}
