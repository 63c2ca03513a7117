"""Reads the settings: TOML files, environment and flags into one validated Config.

The only place that knows their order of precedence.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensevoiced.config import (
    DEVICES,
    ENGINES,
    LOG_LEVELS,
    PRECISIONS,
    BatchLimits,
    Config,
    ConfigError,
    FrontendConfig,
    ServingConfig,
    default_cache_dir,
    default_models_dir,
    runtime_socket,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

SYSTEM_FILE = Path("/etc/sensevoice/sensevoiced.toml")
USER_FILE = Path("sensevoice") / "sensevoiced.toml"
"""Below $XDG_CONFIG_HOME, or ~/.config."""

MAX_FILE_BYTES = 2**20
"""Hundreds of times what all settings with their reasons take; it is read in one go, at a reload on the event
loop."""

_SECTIONS: dict[str, type] = {"frontend": FrontendConfig, "batch": BatchLimits, "serving": ServingConfig}
_CHOICES: dict[str, tuple[str, ...]] = {"precision": PRECISIONS, "engine": ENGINES, "log_level": LOG_LEVELS}
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
_THREADS = re.compile(r"[0-9]{1,9}")
_FLAGS = (
    *("socket", "models_dir", "cache_dir", "model", "vad"),
    *("device", "precision", "engine", "threads", "log_level"),
)
"""Settings that have a flag and an environment variable too; limits are for the file alone."""
ENVIRONMENT = {
    name: "SENSEVOICE_SOCKET" if name == "socket" else f"SENSEVOICED_{name.upper()}" for name in _FLAGS
}
"""Setting to variable."""

_ANY_S = (0.001, 10 * 24 * 3600.0)
_BYTES = (4_096, 2**50)
_RANGES: dict[str, tuple[float, float]] = {
    "socket_mode": (0o600, 0o666),
    "threads": (0, 1_024),
    "load_timeout_s": _ANY_S,
    "frontend.children": (1, 256),
    "frontend.max_children": (1, 1_024),
    "frontend.max_children_per_uid": (1, 1_024),
    "frontend.min_sample_rate_hz": (1, 16_000),
    "frontend.max_sample_rate_hz": (16_000, 10_000_000),
    "frontend.max_channels": (1, 1_024),
    "frontend.max_spool_bytes": _BYTES,
    "frontend.child_memory_bytes": (256 * 2**20, 2**50),
    "frontend.child_cpu_s": (1, 10**7),
    "frontend.max_end_silence_time": (0, 10_000),
    "frontend.max_utterance_s": (1.0, 60.0),
    "frontend.max_whole_s": (1.0, 60.0),
    "frontend.merge_length_s": (0.0, 60.0),
    "frontend.merge_gap_s": (0.0, 60.0),
    "batch.max_batch_frames": (1, 2**20),
    "batch.cpu_frames_per_thread": (1, 2**20),
    "batch.max_batch_attention": (1, 2**40),
    "batch.max_batch_utterances": (1, 4_096),
    "batch.max_failures_in_a_row": (1, 10**6),
    "serving.max_connections": (1, 10**6),
    "serving.max_connections_per_uid": (1, 10**6),
    "serving.max_jobs": (1, 10**6),
    "serving.max_jobs_per_uid": (1, 10**6),
    "serving.max_jobs_per_connection": (1, 10**6),
    "serving.assumed_bytes_per_s": (1, 10**9),
    "serving.max_outstanding_utterances": (1, 4_096),
    "serving.max_write_buffer_bytes": (2 * 2**20, 2**40),
    "serving.max_upload_buffer_bytes": _BYTES,
    "serving.backlog": (1, 65_535),
}
"""What a number may be, both ends included; seconds that are not here may be anything above zero."""
_MAX_INT_BITS = 63
"""TOML promises so much and a sign; Python's reader takes more, which no float holds and nobody prints."""
_SHOWN_CHARS = 60
"""What a sentence shows of a wrong value: enough to know it by."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `serve` and `check-config`. Values are kept as text.

    A wrong one gets the same sentence as in a file.
    """
    add = parser.add_argument
    add("--config", metavar="FILE", help="read this file instead of the system's and the user's")
    add("--socket", metavar="PATH", help="Unix socket to listen at, unless systemd passes one")
    add("--models-dir", metavar="FOLDER", help="where fetched models are")
    add("--cache-dir", metavar="FOLDER", help="where int8 weights are kept")
    add("--model", metavar="NAME", help="demo, a folder, or a fetched model's name")
    add("--vad", metavar="NAME", help="auto, a folder, or a fetched model's name")
    add("--device", metavar="DEVICE", help=DEVICES)
    add("--precision", metavar="PRECISION", help=", ".join(PRECISIONS))
    add("--engine", metavar="ENGINE", help=", ".join(ENGINES))
    add("--threads", metavar="N", help="threads of the engine on CPU; 0: one per core")
    add("--log-level", metavar="LEVEL", help=", ".join(LOG_LEVELS))


def load(flags: Mapping[str, str | None], environ: Mapping[str, str]) -> Config:
    """The configuration in force.

    Flags over environment over the user's file over the system's over defaults.

    `flags` are the values of `add_arguments` by name, None where not given. Raises ConfigError in one
    sentence: where, which setting, what it takes.
    """
    values: dict[str, Any] = {
        "socket": runtime_socket(environ),
        "models_dir": default_models_dir(environ),
        "cache_dir": default_cache_dir(environ),
    }
    for file, required in _files(flags.get("config"), environ):
        table = _read(file, required=required)
        _merge(values, table, str(file))
    for name, variable in ENVIRONMENT.items():
        if environ.get(variable):
            values[name] = _value(name, _from_text(name, environ[variable]), f"Environment: {variable}")
    for name in _FLAGS:
        text = flags.get(name)
        if text is not None:
            values[name] = _value(name, _from_text(name, text), f"--{name.replace('_', '-')}")
    sections = {name: kind(**values.pop(name, {})) for name, kind in _SECTIONS.items()}
    config = Config(**values, **sections)
    _check_together(config)
    return config


def _files(named: str | None, environ: Mapping[str, str]) -> list[tuple[Path, bool]]:
    if named is not None:
        return [(Path(named), True)]
    home = environ.get("XDG_CONFIG_HOME") or (
        Path(environ["HOME"]) / ".config" if environ.get("HOME") else None
    )
    return [(SYSTEM_FILE, False), *([(Path(home) / USER_FILE, False)] if home else [])]


def _read(file: Path, *, required: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(_bytes_of(file).decode())
    except FileNotFoundError:
        if required:
            raise ConfigError(f"{file}: there is no such file.") from None
        return {}
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError; arrays in arrays
        raise ConfigError(f"{file}: is not valid TOML: {error}.") from None


def _bytes_of(file: Path) -> bytes:
    """What a regular file holds; never waits as for a FIFO's writer. Raises OSError, ConfigError."""

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)

    with open(file, "rb", opener=opener) as source:
        found = os.fstat(source.fileno())
        # What stands for no settings at all, to programs and as a link.
        nothing = os.path.samestat(found, Path(os.devnull).stat())
        if not stat.S_ISREG(found.st_mode) and not nothing:
            raise ConfigError(f"{file}: is no regular file: put the settings into one.")
        held = source.read(MAX_FILE_BYTES + 1)
    if len(held) > MAX_FILE_BYTES:
        mib = MAX_FILE_BYTES // 2**20
        raise ConfigError(f"{file}: holds more than {mib} MiB, and settings never do: name another file.")
    return held


def _merge(values: dict[str, Any], table: dict[str, Any], where: str) -> None:
    for name, value in table.items():
        if name in _SECTIONS:
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {name} is a section, [{name}], not a value.")
            section = values.setdefault(name, {})
            for key, inner in value.items():
                section[key] = _value(f"{name}.{key}", inner, f"{where}: {name}.{_name(key)}")
        elif "." in name:
            raise ConfigError(
                f"{where}: {_name(name)} is no setting; one of a section stands below [section]."
            )
        else:
            values[name] = _value(name, value, f"{where}: {_name(name)}")


def _name(key: str) -> str:
    """A key as a sentence can hold it: in quotes it may be anything."""
    return key if key.isprintable() and len(key) <= _SHOWN_CHARS else _shown(key)


def _shown(value: Any) -> str:
    """A value as a sentence can hold it."""
    try:
        return f"{value!r:.{_SHOWN_CHARS}}"
    except ValueError:
        return "a number of thousands of digits"  # Python refuses to write it out


def _from_text(name: str, text: str) -> str | int:
    """Environment and flags are text; a number stays text where it is none, and is refused as such."""
    return int(text) if name == "threads" and _THREADS.fullmatch(text) else text


def _value(name: str, value: Any, where: str) -> Any:
    """One setting, of the type its field has. Raises ConfigError."""
    kind = _kind(name, where)
    if type(value) is int and value.bit_length() > _MAX_INT_BITS:
        raise ConfigError(f"{where} takes no number of more than {_MAX_INT_BITS} bits.")
    if name == "socket_mode" and isinstance(value, str) and re.fullmatch(r"0?[0-7]{3}", value):
        value = int(value, 8)
    if kind == "float" and type(value) is int:
        value = float(value)
    if kind == "Path":
        return _path(value, where)
    if type(value).__name__ != kind:
        wanted = {
            "int": "a whole number",
            "float": "a number",
            "str": "text in quotes",
            "bool": "true or false",
        }[kind]
        raise ConfigError(f"{where} takes {wanted}, not {_shown(value)}.")
    if kind == "str":
        _check_text(name, value, where)
    elif kind in ("int", "float"):
        low, high = _RANGES.get(name, _ANY_S)
        if not low <= value <= high:  # also false for nan
            shown = "{:04o}" if name == "socket_mode" else "{:g}"
            raise ConfigError(
                f"{where} takes {shown.format(low)} to {shown.format(high)}, not {shown.format(value)}."
                + (' Write it in octal, as "0660".' if name == "socket_mode" else "")
            )
    return value


def _kind(name: str, where: str) -> str:
    section, _, key = name.partition(".") if "." in name else ("", "", name)
    fields = {
        field.name: str(field.type) for field in dataclasses.fields(_SECTIONS[section] if section else Config)
    }
    if key not in fields or key in _SECTIONS:
        near = difflib.get_close_matches(key, fields, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ConfigError(
            f"{where} is no setting of {f'section [{section}]' if section else 'sensevoiced'}{hint}"
        )
    return fields[key]


def _path(value: Any, where: str) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigError(f"{where} takes a path, not {_shown(value)}.")
    return _expanded(value, where)


def _expanded(value: str, where: str) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError:
        user = value.partition("/")[0]
        raise ConfigError(f"{where}: the home folder of {_shown(user)} is not known.") from None


def _check_text(name: str, value: str, where: str) -> None:
    choices = _CHOICES.get(name)
    if choices is not None and value not in choices:
        raise ConfigError(f"{where} takes one of {', '.join(choices)}, not {_shown(value)}.")
    if name == "device" and not _DEVICE.fullmatch(value):
        raise ConfigError(f"{where} takes {DEVICES}, not {_shown(value)}.")
    if not value:
        raise ConfigError(f"{where} is empty.")
    if "\0" in value:
        raise ConfigError(f"{where} takes no zero byte.")
    if name in ("model", "vad"):
        _expanded(value, where)


def _check_together(config: Config) -> None:
    """What no setting shows alone."""
    if config.frontend.children > config.frontend.max_children:
        raise ConfigError(
            f"frontend.children ({config.frontend.children}) is above "
            f"frontend.max_children ({config.frontend.max_children})."
        )


def differences(old: Config, new: Config) -> list[str]:
    """Names of the settings that differ, sections spelled out."""
    names = []
    for field in dataclasses.fields(Config):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after and field.name in _SECTIONS:
            inner = dataclasses.fields(before)
            names += [
                f"{field.name}.{f.name}" for f in inner if getattr(before, f.name) != getattr(after, f.name)
            ]
        elif before != after:
            names.append(field.name)
    return names
