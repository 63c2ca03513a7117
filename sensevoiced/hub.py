"""`sensevoiced fetch`: brings a model from ModelScope or Hugging Face into the models folder, verified.

Must never be imported while serving: only `__main__` imports it, for this one verb. The hubs' own client
libraries do the transfers (hub_clients.py); what is accepted and where it is placed is decided here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from sensevoiced import config, models
from sensevoiced.hub_clients import (
    MODELSCOPE,
    FetchError,
    Hub,
    HuggingFace,
    ModelScope,
    RemoteFile,
)
from sensevoiced.hub_pins import PINS, Pin

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from pathlib import Path

WANTED = (
    *("model.pt", "config.yaml", "configuration.json", "am.mvn", "*.bpe.model", "tokenizer.model"),
    *("README.md", "LICENSE*", "MODEL_LICENSE*"),
)
"""Files of a repository's top folder that are fetched; examples and other formats of the weights are not."""

MANIFEST = "fetched.json"
"""Written beside the files: where they came from, and the size and SHA-256 of each as it was received."""

Manifest = dict[str, dict[str, str | int]]
"""By file name: `bytes` and `sha256` as received."""

HASH_BLOCK_BYTES = 1 << 20
FREE_SPACE_MARGIN_BYTES = 64 << 20
"""Left free beyond what is fetched: a state partition filled to the last byte breaks other programs."""


def run(args: argparse.Namespace) -> int:
    """Fetch what `args` names and return the exit status; says what it does on stderr, for a person."""
    to = args.to if args.to is not None else config.default_models_dir(os.environ)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # a progress bar in a log file is noise
    try:
        for name, kind in ((args.model, "model"), (args.vad, "vad")):
            if name != "none":
                fetch(models.canonical(name), kind=kind, hub_name=args.hub, revision=args.revision, to=to)
    except FetchError as error:
        _say(str(error))
        return error.status
    except config.ConfigError as error:
        _say(str(error))
        return os.EX_DATAERR
    except OSError as error:
        _say(f"{error.filename or to} cannot be written: {error.strerror or error}.")
        return os.EX_CANTCREAT
    except KeyboardInterrupt:
        _say("Stopped; the same command goes on from here.")
        return 130
    return os.EX_OK


def fetch(name: str, *, kind: str, hub_name: str, revision: str | None, to: Path) -> Path:
    """Fetch one model (`kind`: model or vad) into `to`/`name` and return that folder.

    The folder appears with one rename, when everything in it is verified. Raises FetchError, ModelDamaged
    or OSError.
    """
    if not models.is_hub_id(name):
        raise FetchError(f"{name} is not the name of a model on a hub (owner/name).", os.EX_USAGE)
    place = to / name
    if _is_whole(place):
        _say(f"{name} is already in {to}, and every file is as it was fetched.")
        return place
    partial = to / ".partial" / name.replace("/", "--")
    with _only_one(partial, name):
        source = _source(name, hub_name, revision, partial)
        wanted = _select(source)
        _say(f"fetching {name} from {hub_name} ({source.repo} at {source.revision[:12]}) into {to}")
        ready = partial / "ready"
        ready.mkdir(exist_ok=True)
        _describe(ready, source, _bring(source, wanted, partial, ready))
        _check_kind(ready, kind)
        _place(ready, place, partial)
    _say(f"{name} is in {place}")
    return place


@dataclass(frozen=True, slots=True)
class _Source:
    hub: Hub
    repo: str
    revision: str
    pin: Pin | None

    def accepted(self, name: str) -> frozenset[str] | None:
        """SHA-256 that the file must have, whatever the hub says; None where nothing is known beforehand."""
        return self.pin.sha256.get(name) if self.pin is not None else None


def _source(name: str, hub_name: str, revision: str | None, partial: Path) -> _Source:
    hub: Hub = ModelScope(partial / "state") if hub_name == MODELSCOPE else HuggingFace()
    pin = PINS.get(name)
    if pin is not None:
        repo, pinned = pin.modelscope if hub_name == MODELSCOPE else pin.huggingface
    else:
        repo, pinned = name, "master" if hub_name == MODELSCOPE else "main"
    return _Source(hub, repo, revision or pinned, pin)


def _select(source: _Source) -> list[RemoteFile]:
    """List what is to be fetched, and refuse before the first byte what cannot become a verified model."""
    where = f"{source.repo} at {source.revision[:12]} on {source.hub.name}"
    listed = {file.name: file for file in source.hub.list_files(source.repo, source.revision)}
    wanted = [file for name, file in sorted(listed.items()) if any(fnmatchcase(name, p) for p in WANTED)]
    needed = set(source.pin.sha256) if source.pin is not None else {"model.pt", "config.yaml"}
    missing = sorted(needed - {file.name for file in wanted})
    if missing:
        raise FetchError(f"{where} has no {missing[0]}.", os.EX_DATAERR)
    for file in wanted:
        accepted = source.accepted(file.name)
        if accepted is None and file.digest is None:
            raise FetchError(f"{where} states no checksum for {file.name}.", os.EX_DATAERR)
        kind, _, digest = (file.digest or "").partition(":")
        if accepted is not None and kind == "sha256" and digest not in accepted:
            raise FetchError(f"{where} holds another {file.name} than the one known here.", os.EX_DATAERR)
    return wanted


def _bring(source: _Source, wanted: Sequence[RemoteFile], partial: Path, ready: Path) -> Manifest:
    """Fetch and verify the files one by one into `ready`; what an earlier call verified stays."""
    for stray in {path.name for path in ready.iterdir()} - {file.name for file in wanted}:
        (ready / stray).unlink()
    todo = sum(file.size_bytes for file in wanted if not (ready / file.name).exists())
    free = shutil.disk_usage(partial).free + sum(f.stat().st_size for f in partial.glob("*.incomplete"))
    needed = todo + FREE_SPACE_MARGIN_BYTES
    if needed > free:
        sentence = f"{partial} has {free >> 20} MiB free, and {needed >> 20} MiB are needed."
        raise FetchError(sentence, os.EX_CANTCREAT)
    manifest: Manifest = {}
    for file in wanted:
        target = ready / file.name
        accepted = source.accepted(file.name)
        if not target.exists() or _mismatch(target, file, accepted):
            received = source.hub.download(source.repo, source.revision, file, partial)
            wrong = _mismatch(received, file, accepted)
            if wrong:
                received.unlink()
                raise FetchError(f"{file.name} arrived damaged and was thrown away: {wrong}.", os.EX_DATAERR)
            received.chmod(0o644)
            received.replace(target)
        manifest[file.name] = {"bytes": target.stat().st_size, "sha256": _sha256(target)}
    return manifest


def _mismatch(path: Path, file: RemoteFile, accepted: frozenset[str] | None) -> str | None:
    """Say in what `path` differs from what it should be; pinned hashes outrank what the hub states."""
    size = path.stat().st_size
    if size != file.size_bytes:
        return f"it has {size} bytes instead of {file.size_bytes}"
    kind, _, digest = (file.digest or "").partition(":")
    if accepted is not None:
        actual = _sha256(path)
        return None if actual in accepted else f"its SHA-256 is {actual}, not {min(accepted)}"
    if kind == "sha256":
        actual = _sha256(path)
        return None if actual == digest else f"its SHA-256 is {actual}, not {digest}"
    content = path.read_bytes()  # git blobs are small: large files are in LFS and have a SHA-256
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return None if blob == digest else f"its git blob id is {blob}, not {digest}"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while block := opened.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _describe(ready: Path, source: _Source, manifest: Manifest) -> None:
    origin = {"hub": source.hub.name, "repo": source.repo, "revision": source.revision}
    text = json.dumps({**origin, "files": manifest}, indent=1)
    (ready / MANIFEST).write_text(text + "\n", encoding="utf-8")
    (ready / MANIFEST).chmod(0o644)


def _is_whole(place: Path) -> bool:
    """Say whether a folder was fetched by this program and still holds, byte for byte, what was fetched."""
    try:
        files = json.loads((place / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all(_sha256(place / name) == entry["sha256"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _check_kind(ready: Path, kind: str) -> None:
    """Read the folder as the daemon will, so that a model it could not load is never placed."""
    if kind == "model":
        models.read_asr(ready.parent.name, ready)
    else:
        models.read_vad(ready.parent.name, ready)


def _place(ready: Path, place: Path, partial: Path) -> None:
    """Move the finished folder to its name; a running daemon keeps what it has open of an older one."""
    _make_readable(place.parent)
    if place.exists():
        place.replace(partial / "replaced")
    ready.chmod(0o755)
    ready.replace(place)


def _make_readable(folder: Path) -> None:
    """Create a folder and those above it open to all, for the daemon has a user of its own."""
    if not folder.is_dir():
        _make_readable(folder.parent)
        folder.mkdir()
        folder.chmod(0o755)


@contextmanager
def _only_one(partial: Path, name: str) -> Iterator[None]:
    """Hold the partial folder against a second fetch of the same model; remove it after a success."""
    _make_readable(partial.parent)
    partial.mkdir(exist_ok=True)
    lock = partial.with_name(partial.name + ".lock")
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FetchError(f"{name} is being fetched by another process.", os.EX_TEMPFAIL) from error
        yield
        shutil.rmtree(partial)
        lock.unlink()


def _say(sentence: str) -> None:
    sys.stderr.write(f"sensevoiced fetch: {sentence}\n")
