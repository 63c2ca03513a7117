"""The flags of `sensevoiced fetch`; standard library only, so that the manual needs no extra."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sensevoiced.config import DEFAULT_ASR, DEFAULT_VAD
from sensevoiced.hub_clients import HUGGINGFACE, MODELSCOPE

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `sensevoiced fetch` takes."""
    parser.add_argument("--hub", choices=(MODELSCOPE, HUGGINGFACE), default=MODELSCOPE, help="where from")
    parser.add_argument(
        "--model", default=DEFAULT_ASR, metavar="OWNER/NAME", help="a recognition model, or none"
    )
    parser.add_argument(
        "--vad", default=DEFAULT_VAD, metavar="OWNER/NAME", help="a model that finds the speech, or none"
    )
    parser.add_argument("--revision", help="commit or tag, for a model whose revision is not pinned here")
    parser.add_argument(
        "--to", type=Path, metavar="DIR", help="the models folder (default: the daemon's own)"
    )
