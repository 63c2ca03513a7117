"""F06 and F07: messages that are well-formed and wrong, and peers of another version."""

from __future__ import annotations

import os
import socket
import sys
import time

import pytest
from harness.abuse import only_error
from harness.daemon import FAKE, script
from harness.svctl_process import run_svctl
from harness.wire_client import memfd, texts

from svctl.wire import _REQUIRED, MAX_AUDIO_BYTES, REQUESTS, VERSION_MAJOR, VERSION_MINOR

HELLO = {"type": "hello", "major": 1, "minor": 0}

VALID = {
    "transcribe": {"id": 5, "source": "stream", "label": "a.wav", "path": "/a.wav", "language": "auto"}
    | {"itn": True, "vad": True},
    "audio": {"id": 5, "data": b"x"},
    **{kind: {"id": 5} for kind in ("end", "cancel", "status", "ping", "reload")},
    "hello": {"major": 1, "minor": 0, "client": "test"},
}
"""One message of each type with all its fields, each of them allowed."""


def wrong_values(types, limit):
    """Values that a field of these types and this limit does not take, one of each sort."""
    found = [value for value in (None, True, 5, 0.5, "5", b"5") if type(value) not in types]
    if isinstance(limit, int) and str in types:  # too many bytes are no message at all: see FATAL
        found.append("x" * (limit + 1))
    elif isinstance(limit, tuple) and isinstance(limit[0], str):
        found += ["", "other", limit[0].upper()]
    elif isinstance(limit, tuple):
        found += [limit[0] - 1, limit[1] + 1]
    return found


def mistakes(kind):
    """Messages of a type with one field wrong, or missing where it is required; and that field's name."""
    for field, (types, default, limit) in REQUESTS[kind].items():
        message = {"type": kind, **VALID[kind]}
        if default is _REQUIRED:
            yield field, {name: value for name, value in message.items() if name != field}
        for value in wrong_values(types, limit):
            yield field, {**message, field: value}


def test_f06_every_field_of_every_request_is_held_to_its_table(daemon, record_property):
    """Missing, of each wrong type, or outside its limit: `invalid_request` with the request's id.

    The connection goes on. With a wrong id nobody could be told apart: the error has none.
    """
    rows = 0
    with daemon.client() as client:
        for kind in sorted(VALID.keys() - {"hello"}):
            for field, message in mistakes(kind):
                client.send(message)
                error = client.receive()
                assert (error["type"], error["code"]) == ("error", "invalid_request"), message
                assert error["id"] == (None if field == "id" else 5), message
                assert field in error["message"]
                rows += 1
        assert client.ping()["type"] == "pong"
    for field, message in mistakes("hello"):
        with daemon.client(hello=False) as client:
            client.send(message)
            (error,) = client.until_closed()
            assert (error["code"], error["id"]) == ("invalid_request", None), message
            assert field in error["message"]
            rows += 1
    record_property("figure", f"{rows} wrong fields, each `invalid_request`")


def test_f06_extra_keys_are_ignored(daemon):
    """A newer client may say more than this daemon understands."""
    extra = {"wish": "more", "": None, "type2": True, "n": 0.5, "blob": b"x" * 100}
    with daemon.client(hello=False) as client:
        client.send({**HELLO, **extra})
        assert client.receive()["type"] == "welcome"
        client.send({"type": "transcribe", "id": 1, "source": "stream", **extra})
        client.send({"type": "audio", "id": 1, "data": script("heard"), **extra})
        client.send({"type": "end", "id": 1, **extra})
        assert texts(client.events(1)) == ["heard"]
        client.send({"type": "cancel", "id": 1, **extra})
        client.send({"type": "ping", "id": 2, **extra})
        assert client.receive() == {"type": "pong", "id": 2}


SURVIVED = {
    "no such message": ({"type": "sing", "id": 5}, "unsupported", 5),
    "no such message, and no id": ({"type": "sing"}, "unsupported", None),
    "an event": ({"type": "done", "id": 5}, "unsupported", 5),
    "source fd without a descriptor": ({"type": "transcribe", "id": 5, "source": "fd"}, "invalid_request", 5),
    "a relative path": (
        {"type": "transcribe", "id": 5, "source": "path", "path": "a.wav"},
        "invalid_request",
        5,
    ),
    "no path": ({"type": "transcribe", "id": 5, "source": "path"}, "invalid_request", 5),
    "a path that is not there": (
        {"type": "transcribe", "id": 5, "source": "path", "path": "/nowhere/a.wav"},
        "not_found",
        5,
    ),
    "a path with a zero byte": (
        {"type": "transcribe", "id": 5, "source": "path", "path": "/a\0b"},
        "not_found",
        5,
    ),
    "audio before transcribe": ({"type": "audio", "id": 5, "data": b"x"}, "invalid_request", 5),
    "end before transcribe": ({"type": "end", "id": 5}, "invalid_request", 5),
}


@pytest.mark.parametrize(("message", "code", "request_id"), SURVIVED.values(), ids=SURVIVED.keys())
def test_f06_a_wrong_request_costs_itself_only(daemon, message, code, request_id):
    """The documented code with the request's id, and the connection goes on."""
    with daemon.client() as client:
        client.send(message)
        error = client.receive()
        assert (error["type"], error["code"], error["id"]) == ("error", code, request_id)
        assert client.ping()["type"] == "pong"


@pytest.mark.parametrize("wrong", [{"id": -1}, {"language": "zn"}, {"label": 5}], ids=str)
def test_f06_a_wrong_request_gives_its_descriptor_back(daemon, wrong):
    """What came with a request that is refused is closed with it, and is no stray of the next."""
    source = memfd(script("found"))
    with daemon.client() as client:
        client.transcribe(5, source, **wrong)
        assert client.receive()["code"] == "invalid_request"
        assert texts(client.ask(6, source)) == ["found"]
    os.close(source)


FATAL = {
    "two hellos": [HELLO],
    "no type": [{"id": 1}],
    "a type that is a number": [{"type": 5, "id": 1}],
    "more audio than one message takes": [{"type": "audio", "id": 5, "data": bytes(MAX_AUDIO_BYTES + 1)}],
    "an id that is still in use": [
        {"type": "transcribe", "id": 5, "source": "stream"},
        {"type": "transcribe", "id": 5, "source": "stream"},
    ],
}


@pytest.mark.parametrize("messages", FATAL.values(), ids=FATAL.keys())
def test_f06_what_both_sides_cannot_read_alike_ends_the_connection(daemon, messages):
    """One `protocol` error without an id, then the end."""
    with daemon.client() as client:
        for message in messages:
            client.send(message)
        assert only_error(client.until_closed()) == "protocol"


@pytest.mark.parametrize("kind", sorted(VALID.keys() - {"hello"}))
def test_f06_anything_before_hello_ends_the_connection(daemon, kind):
    """Even a ping."""
    with daemon.client(hello=False) as client:
        client.send({"type": kind, **VALID[kind]})
        assert only_error(client.until_closed()) == "protocol"


@pytest.mark.parametrize("extra", [{"type": "end"}, {"type": "audio", "data": b"x"}], ids=str)
@pytest.mark.parametrize("source", ["stream", "fd"])
def test_f06_end_twice_and_audio_after_end_end_the_request(daemon, source, extra):
    """One terminal event, `invalid_request`, where the request is unfinished; the connection lives.

    Just so where the request's audio does not come in messages at all.
    """
    held = script({"say": "x", "decode_gate": "never"})
    with daemon.client() as client:
        if source == "stream":
            client.transcribe(5, source="stream")
            client.send({"type": "audio", "id": 5, "data": held})
            client.send({"type": "end", "id": 5})
        else:
            fd = memfd(held)
            client.transcribe(5, fd)
            os.close(fd)
        client.send({**extra, "id": 5})
        (error,) = client.events(5)
        assert error["code"] == "invalid_request"
        assert client.ping()["type"] == "pong"


def test_f06_the_rest_of_a_failed_upload_is_no_mistake(daemon):
    """Audio and end that cross the error are ignored: exactly one terminal event."""
    with daemon.client() as client:
        client.transcribe(5, source="stream", language="zn")
        for _ in range(10):
            client.send({"type": "audio", "id": 5, "data": b"x" * 1000})
        client.send({"type": "end", "id": 5})
        (error,) = client.events(5)
        assert error["code"] == "invalid_request"
        client.send({"type": "ping", "id": 6})
        assert client.receive() == {"type": "pong", "id": 6}


def test_requests_may_follow_the_hello_at_once(daemon):
    """Hello, a request and its descriptor in one go are answered in one go; behind a bad hello nothing is."""
    source = memfd(script("found"))
    for major, answers in ((1, ["welcome", "segment", "done"]), (2, ["error"])):
        with daemon.client(hello=False) as client:
            client.send({**HELLO, "major": major})
            client.transcribe(1, source)
            client.socket.shutdown(socket.SHUT_WR)
            found = client.until_closed()
            assert [event["type"] for event in found] == answers
            assert found[-1].get("id") == (1 if major == 1 else None)
    os.close(source)


def program_of(major, minor, run):
    """Python that takes itself for another version of the protocol, and then runs this."""
    version = f"wire.VERSION_MAJOR, wire.VERSION_MINOR = {major}, {minor}"
    return ("-c", f"from svctl import wire; {version}; {run}")


RUN_SVCTL = "import sys; from svctl.__main__ import main; sys.exit(main())"
RUN_DAEMON = f"import runpy; runpy.run_path({str(FAKE)!r}, run_name='__main__')"


def test_f07_versions(daemon):
    """Another minor version is served; another major one is refused with both named."""
    with daemon.client(hello=False) as client:
        client.send({"type": "hello", "major": 1, "minor": 99, "new": "wish"})
        welcome = client.receive()
        versions = (welcome["type"], welcome["major"], welcome["minor"])
        assert versions == ("welcome", VERSION_MAJOR, VERSION_MINOR)
    for major in (0, 2):
        with daemon.client(hello=False) as client:
            client.send({"type": "hello", "major": major, "minor": 3})
            (error,) = client.until_closed()
            assert error["code"] == "unsupported"
            assert f"{major}.3" in error["message"]
            assert f"{VERSION_MAJOR}.{VERSION_MINOR}" in error["message"]


def test_f07_an_older_minor_version_is_served(start, tmp_path):
    """A daemon one minor version on answers svctl of today, and says what it speaks itself."""
    control = tmp_path / "d0" / "control"
    daemon = start(command=[sys.executable, *program_of(1, VERSION_MINOR + 1, RUN_DAEMON), str(control)])
    (tmp_path / "a.wav").write_bytes(script("heard"))
    assert run_svctl(daemon.socket, "transcribe", "--tags", "none", "a.wav", cwd=tmp_path) == (
        0,
        "heard\n",
        "",
    )
    with daemon.client(hello=False) as client:
        client.send(HELLO)
        assert client.receive()["minor"] == VERSION_MINOR + 1


@pytest.mark.parametrize(("client", "server"), [("1.0", "2.0"), ("2.0", "1.0")])
def test_f07_svctl_says_in_a_line_that_the_major_version_differs(
    start, tmp_path, client, server, record_property
):
    """Both versions on one line, nothing on standard output, exit status 69; whichever side is newer."""
    command = program_of(*server.split("."), RUN_DAEMON)
    daemon = start(command=[sys.executable, *command, str(tmp_path / "d0" / "control")])
    program = program_of(*client.split("."), RUN_SVCTL)
    (tmp_path / "a.wav").write_bytes(script("never heard"))
    for words in (["ping"], ["transcribe", "a.wav"], ["status"], ["reload"]):
        began_s = time.monotonic()
        status, out, err = run_svctl(daemon.socket, *words, cwd=tmp_path, program=program)
        took_s = time.monotonic() - began_s
        assert (status, out) == (69, "")
        both = f"The client speaks protocol {client}, this daemon {server}"
        assert err == f"svctl: {both}; install the same version of both.\n"
    record_property(
        "figure", f"svctl {client}, daemon {server}: one line, exit status 69 after {took_s * 1000:.0f} ms"
    )
