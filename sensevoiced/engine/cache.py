"""Keeps a model's 8-bit weights on disk, so that they are quantised once; imports torch only.

What lies there can always be computed again: a file that is missing, damaged or another user's is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sensevoiced.engine.int8 import Quantised

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

_FORMAT = 1
"""Goes into the name: a later version that quantises differently does not find what this one wrote."""
_OTHERS_MAY_WRITE = 0o022
_UNFINISHED = ".new"
_LEFT_S = 3600.0
"""An unfinished file so old was left by a daemon that was killed; nobody writes for an hour."""


def file_of(weights: Path, cache_dir: Path) -> Path:
    """Name the file of a checkpoint: another path, size or time is another file."""
    real = weights.resolve()
    stat = real.stat()
    model = hashlib.sha256(os.fsencode(real)).hexdigest()[:16]
    # With the time of its creation here: images of systems give every file the same time of change.
    what = f"{_FORMAT} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    version = hashlib.sha256(what.encode()).hexdigest()[:16]
    return cache_dir / f"{model}-{version}.int8.pt"


def read(file: Path) -> dict[str, Quantised]:
    """Give the layers by name, mapped from the file; none where it cannot be used."""
    try:
        stat = file.stat()
        if stat.st_uid not in {0, os.geteuid()} or stat.st_mode & _OTHERS_MAY_WRITE:
            log.warning("%s belongs to somebody else or can be written by others: not used", file)
            return {}
        held: Any = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        layers = {name: Quantised(weight, scale) for name, (weight, scale) in held.items()}
        if all(layer.holds_tensors for layer in layers.values()):
            return layers
        raise TypeError("it holds something else")  # noqa: TRY301 - one sentence for all that is wrong with it
    except FileNotFoundError:
        return {}
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, EOFError, KeyError) as error:
        log.warning("%s cannot be read (%s): quantising again", file, error)
    except pickle.UnpicklingError as error:
        log.warning("%s holds more than weights (%s): quantising again", file, error)
    return {}


def write(file: Path, layers: Mapping[str, Quantised]) -> None:
    """Keep the layers, whole or not at all, in the place of older versions of the same model."""
    temporary: str | None = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        number, temporary = tempfile.mkstemp(dir=file.parent, suffix=_UNFINISHED)
        with os.fdopen(number, "wb") as opened:
            torch.save({name: (layer.weight, layer.scale) for name, layer in layers.items()}, opened)
            opened.flush()
            # Before the name: after a power failure a file under its name is a whole one.
            os.fsync(opened.fileno())
        Path(temporary).replace(file)
        temporary = None
        for older in file.parent.glob(f"{file.name.split('-')[0]}-*.int8.pt"):
            if older != file:
                older.unlink(missing_ok=True)
        for left in file.parent.glob(f"*{_UNFINISHED}"):
            if time.time() - left.stat().st_mtime > _LEFT_S:
                left.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        # On a full disk torch ends its archive with a RuntimeError of its own, on top of the OSError.
        log.info("8-bit weights are not kept, and quantised again at the next start: %s", error)
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
