"""svctl: the thin client of sensevoiced, and the library under it.

>>> from svctl import Client
>>> with Client() as client:
...     print(client.transcribe("call.wav").text)
hello world

Names are imported when they are asked for: the command line starts without them.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from svctl.asynchronous import AsyncClient
    from svctl.library import Client
    from svctl.results import Segment, Transcript, Word
    from svctl.wire import WireError as Error

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "Error", "Segment", "Transcript", "Word", "__version__"]

_HOMES = {
    "AsyncClient": ("svctl.asynchronous", "AsyncClient"),
    "Client": ("svctl.library", "Client"),
    "Error": ("svctl.wire", "WireError"),
    "Segment": ("svctl.results", "Segment"),
    "Transcript": ("svctl.results", "Transcript"),
    "Word": ("svctl.results", "Word"),
}


def __getattr__(name: str) -> "Any":
    """Import a name of the library; AttributeError for any other."""
    if name not in _HOMES:
        raise AttributeError(f"module 'svctl' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - see the first lines

    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
