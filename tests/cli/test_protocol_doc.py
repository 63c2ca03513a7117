"""PROTOCOL.md against the code: dumps, tables and limits are generated here, and the example is run."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import svctl
from sensevoiced.config import FrontendConfig, ServingConfig
from sensevoiced.descriptors import MAX_CLOSING, MAX_CLOSING_PER_USER
from sensevoiced.jobs import Timings
from sensevoiced.serving.session import FAREWELL_S
from sensevoiced.serving.source import MAX_HANGING, MAX_HANGING_PER_USER
from svctl import framing, wire

DOCUMENT = Path(svctl.__file__).with_name("PROTOCOL.md")


def from_json(values):
    """JSON as the document writes messages: bytes are {"$hex": ...}."""
    if set(values) == {"$hex"}:
        return bytes.fromhex(values["$hex"])
    return values


def dump(data):
    """Bytes as hexdump -C shows them."""
    lines = []
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        octets = (
            " ".join(f"{byte:02x}" for byte in row[:8]) + "  " + " ".join(f"{byte:02x}" for byte in row[8:])
        )
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:08x}  {octets:<48}  |{shown}|")
    return "\n".join(lines)


def kind(types):
    """Types as the field tables name them; -- for nil."""
    names = {
        int: "int",
        float: "float",
        str: "str",
        bytes: "bin",
        bool: "bool",
        list: "array",
        dict: "map",
        type(None): "nil",
    }
    return " or ".join(names[t] for t in types)


def bound(limit):
    """A field's limit in words."""
    if limit is None:
        return ""
    if isinstance(limit, int):
        return f"at most {limit}"
    return (
        " ".join(f"`{value}`" for value in limit)
        if isinstance(limit[0], str)
        else f"{limit[0]} to {limit[1]}"
    )


def fields(table, message):
    """The rows of one message's table."""
    rows = ["| field | type | default | limit |", "|---|---|---|---|"]
    for name, (types, default, limit) in table[message].items():
        shown = "required" if default is wire._REQUIRED else f"`{json.dumps(default)}`"
        rows.append(f"| `{name}` | {kind(types)} | {shown} | {bound(limit)} |")
    return "\n".join(rows)


def errors():
    """The rows of the error table."""
    rows = ["| code | try again | exit status | meaning |", "|---|---|---|---|"]
    rows += [f"| `{c}` | {'yes' if r else 'no'} | {s} | {m} |" for c, (r, s, m) in wire.ERRORS.items()]
    return "\n".join(rows)


CONSTANTS = (
    "MAX_HELLO_BYTES",
    "MAX_FRAME_BYTES",
    "MAX_AUDIO_BYTES",
    "MAX_ARRAY",
    "MAX_MAP",
    "MAX_STR_BYTES",
    "MAX_LABEL_CHARS",
    "MAX_JOBS",
    "MAX_JOB_LABEL_CHARS",
    "MAX_ID",
    "MAX_VERSION",
    "MAX_CLIENT_CHARS",
)
SETTINGS = (
    *(
        "hello_timeout_s",
        "frame_timeout_s",
        "idle_timeout_s",
        "open_timeout_s",
        "write_timeout_s",
        "max_write_buffer_bytes",
    ),
    *("max_connections", "max_connections_per_uid"),
    *("max_jobs", "max_jobs_per_uid", "max_jobs_per_connection", "max_upload_buffer_bytes"),
    *("max_queued_audio_s", "max_queued_audio_per_uid_s", "max_job_charge_s", "assumed_bytes_per_s"),
    "drain_timeout_s",
)
FRONTEND_SETTINGS = (
    *("decode_timeout_s", "max_duration_s", "max_whole_s", "max_spool_bytes"),
    *("child_cpu_s", "child_memory_bytes", "min_sample_rate_hz", "max_sample_rate_hz", "max_channels"),
)


def document():
    """The text as it is in the repository and in the wheel."""
    return DOCUMENT.read_text("utf-8")


def test_hex_dumps_are_what_the_codec_makes():
    """Every frame of the document is the encoding of the message above it."""
    blocks = re.findall(r"```frame\n(\{.*?\})\n(0{8} .*?)\n```", document(), re.DOTALL)
    assert len(blocks) >= 12
    for text, shown in blocks:
        message = json.loads(text, object_hook=from_json)
        assert dump(framing.encode(message)) == shown
        table = (
            wire.REQUESTS if message["type"] in wire.REQUESTS and message["type"] != "status" else wire.EVENTS
        )
        if message["type"] != "status" or "status" in message:
            wire.check(message, table)


def test_every_message_has_its_table():
    """Requests and events stand in the document with all their fields, defaults and limits."""
    for table in (wire.REQUESTS, wire.EVENTS):
        for message in table:
            assert fields(table, message) in document(), f"{message} should read:\n{fields(table, message)}"


def test_errors_and_limits_are_those_of_the_code():
    """The error table, the version and every limit are the code's."""
    assert errors() in document(), errors()
    assert f"version {wire.VERSION_MAJOR}.{wire.VERSION_MINOR}" in document()
    for name in CONSTANTS:
        assert f"| `{name}` | {getattr(wire, name)} |" in document(), name
    for limits, names in ((ServingConfig(), SETTINGS), (FrontendConfig(), FRONTEND_SETTINGS)):
        for name in names:
            assert f"| `{name}` | {getattr(limits, name):.0f} |" in document(), name
    assert FAREWELL_S == 1.0
    assert "has one second to take that in" in document()
    assert f"while {MAX_HANGING_PER_USER} files of one user ({MAX_HANGING} of all)" in document()
    assert f"While {MAX_CLOSING_PER_USER} descriptors of one user ({MAX_CLOSING} of all)" in document()


def test_every_stage_is_explained():
    """The table of `timings` has the daemon's names, in its order, and no others."""
    (table,) = re.findall(r"\| name \| seconds \|\n\|---\|---\|\n((?:\|.*\n)+)", document())
    names = [row.split("`")[1] for row in table.splitlines()]
    assert names == [field.name for field in dataclasses.fields(Timings)]


def test_the_example_client_works(server, tmp_path):
    """The example of the document, saved and run as it stands, prints a transcript."""
    (code,) = re.findall(r"```python\n(.*?)```", document(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 15
    (tmp_path / "example.py").write_text(code)
    (tmp_path / "call.wav").write_text("hello\nworld")
    command = [sys.executable, "example.py", str(server.path), "call.wav"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (process.stderr, process.stdout) == ("", "0.0 en hello\n2.0 en world\n")


@pytest.mark.parametrize("word", ["TODO", "FIXME", "XXX"])
def test_the_document_is_finished(word):
    """No placeholder is left."""
    assert word not in document()
