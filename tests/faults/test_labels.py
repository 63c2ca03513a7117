"""F26: names that look like something else, and files that are two things at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from harness.abuse import only_error
from harness.asking import ask, essence
from harness.daemon import Canary, script
from harness.demo import SONG, DemoCanary, DemoDaemon, sample, wav
from harness.figures import note
from harness.svctl_process import run_svctl
from harness.wire_client import memfd, texts

from sensevoiced.logs import MAX_SHOWN_CHARS
from svctl.wire import MAX_HELLO_BYTES, MAX_LABEL_CHARS

NAMES = (
    *("-i.wav", "--help", "--", "-f", "-0", "@names", "~", "*"),
    *("$(touch owned)", "`touch owned`", ";touch owned", "|touch owned", "a&&touch owned"),
    *("%s%n.wav", "{0}.wav", "\\x41.wav", "'\".wav"),
    *("file:secret.wav", "pipe:0", "concat:a|b", "subfile,,start,0,end,9,,:a.wav", "http:"),
    *("two\nlines.wav", "\r.wav", "\x1b[31mred.wav", "\x1b]0;title\x07.wav", "\u202evaw.wav", "\u2028.wav"),
    *(" ", "通话.wav"),
)
"""Options, shell words, formats, libav's protocols, and what terminals obey: names of files like any."""


def recordings(folder):
    """A script under each of these names, which says which one it is; and a folder for it."""
    folder.mkdir()
    for n, name in enumerate(NAMES):
        (folder / name).write_bytes(script(f"number {n}"))
    return folder


@pytest.mark.parametrize("way", ["behind --", "with ./", "by -0"])
def test_f26_svctl_takes_odd_names_for_names(daemon, tmp_path, way, record_property):
    """Each file is transcribed under its own name, and nothing that a name says is done."""
    folder = recordings(tmp_path / "calls")
    words, data = ["transcribe", "-q", "-f", "jsonl"], b""
    if way == "by -0":
        words, data = [*words, "-0"], b"".join(os.fsencode(name) + b"\0" for name in NAMES)
    elif way == "behind --":
        words += ["--", *NAMES]
    else:
        words += [f"./{name}" for name in NAMES]
    status, out, err = run_svctl(daemon.socket, *words, cwd=folder, data=data)
    assert (status, err) == (0, "")
    found = [json.loads(line) for line in out.split("\n")[:-1]]
    assert [answer["file"].removeprefix("./") for answer in found] == [*NAMES]
    assert [answer["text"] for answer in found] == [f"number {n}" for n in range(len(NAMES))]
    assert {path.name for path in folder.iterdir()} == {*NAMES}
    note(record_property, f"svctl, {len(NAMES)} odd names {way}: all transcribed")


@pytest.mark.parametrize("name", ["-i.wav", "--", "-f", "-9.wav", "--verbose.wav"])
def test_f26_svctl_refuses_a_name_in_an_options_place(daemon, tmp_path, name):
    """Without `--` a name that begins like an option is one: a sentence on one line, and exit status 64."""
    status, out, err = run_svctl(daemon.socket, "transcribe", name, cwd=recordings(tmp_path / "calls"))
    assert (status, out) == (64, "")
    assert err.startswith("svctl: ")
    assert err.count("\n") == 1


LABELS = {
    "-i.wav\n<0>forged \x1b[31mred\u202e": "-i.wav\\n<0>forged \\x1b[31mred\\u202e",
    "\r\x00\x07\x7f\x85\x9b31m\u2028\u2029\U000e0041": (
        "\\r\\x00\\x07\\x7f\\x85\\x9b31m\\u2028\\u2029\\U000e0041"
    ),
    "%s %d %(name)s {0} \\n": "%s %d %(name)s {0} \\n",
    "通话.wav": "通话.wav",
    "x" * MAX_LABEL_CHARS: "x" * (MAX_SHOWN_CHARS - 1) + "…",
    "\n" * MAX_LABEL_CHARS: "\\n" * (MAX_SHOWN_CHARS - 1) + "…",
    "\U0001f600" * MAX_LABEL_CHARS: "\U0001f600" * (MAX_SHOWN_CHARS - 1) + "…",
}
"""Labels, and how the log shows them."""


def test_f26_a_label_cannot_write_to_the_log(start, record_property):
    """Line breaks and terminal sequences are shown escaped, and a long label is cut: one line a request."""
    daemon = start(settings='log_level = "debug"')
    canary = Canary(daemon)
    with daemon.client(hello=False) as client:
        client.send({"type": "hello", "major": 1, "minor": 0, "client": "me\n<0>forged too"})
        assert client.receive()["type"] == "welcome"
        for n, label in enumerate(LABELS):
            ask(client, n, script("x"), label=label)
            assert client.events(n)[-1]["type"] == "done"
        for n, field in enumerate(("source", "language"), start=100):
            client.send({"type": "transcribe", "id": n, "source": "stream", field: "\n<0>forged\x1b"})
            assert client.receive()["code"] == "invalid_request"
        client.send({"type": "\n<0>forged\x1b", "id": 102})
        error = client.receive()
        assert error["code"] == "unsupported"
        assert error["message"].isprintable()
    canary.check()
    lines = daemon.log.read_text("utf-8").split("\n")
    assert all(line.isprintable() for line in lines)
    jobs = [line.partition("job ")[2].partition(": ")[2] for line in lines if " job " in line]
    assert jobs[1:-1] == [*LABELS.values()]  # between the canary's two
    assert not any(line.startswith("<0>") for line in lines)
    note(record_property, f"longest line of the log: {max(map(len, lines))} characters")


def test_f26_a_label_has_a_limit(daemon, record_property):
    """Above 4,096 characters it costs its request; at 64 KiB, as any such frame but audio, the connection."""
    source = memfd(script("found"))
    with daemon.client() as client:
        for size in (MAX_LABEL_CHARS + 1, MAX_HELLO_BYTES - 100):
            (error,) = client.ask(1, source, label="x" * size)
            assert error["code"] == "invalid_request"
        assert texts(client.ask(1, source, label="x" * MAX_LABEL_CHARS)) == ["found"]
        client.transcribe(2, source, label="x" * MAX_HELLO_BYTES)
        assert only_error(client.until_closed()) == "frame_too_large"
    os.close(source)
    note(record_property, "a label of 64 KiB: frame_too_large; of 4,097 characters: invalid_request")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A daemon with the real front end and the demo model."""
    folder = tmp_path_factory.mktemp("real")
    daemon = DemoDaemon(folder, settings='log_level = "debug"\n[frontend]\nchildren = 1\nmax_children = 1\n')
    yield daemon
    daemon.kill()


@pytest.fixture
def decoding(real):
    """That daemon, with its canary after the test."""
    canary = DemoCanary(real)
    yield real
    canary.check()


def words_of(pid):
    """What a process was started with, and what it knows of its surroundings."""
    folder = Path(f"/proc/{pid}")
    return (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()


def test_f26_decoders_never_learn_a_name(decoding, tmp_path, record_property):
    """Neither as a label nor as a path does a name change what is decoded, or by which process."""
    spoken = wav(sample(SONG)[:16_000])
    before = {pid: words_of(pid) for pid in decoding.child_pids()}
    with decoding.client() as client:
        ask(client, 0, spoken, label="plain.wav")
        plain = essence(client.events(0))
        assert plain[-1]["type"] == "done"
        for name in NAMES:
            (tmp_path / name).write_bytes(spoken)
            found = client.ask(1, source="path", path=str(tmp_path / name), label=name)
            assert essence(found) == plain, name
            ask(client, 2, spoken, label=name)
            assert essence(client.events(2)) == plain, name
            (error,) = client.ask(3, source="path", path=name)
            assert error["code"] == "invalid_request", name
    assert {pid: words_of(pid) for pid in decoding.child_pids()} == before
    assert {path.name for path in tmp_path.iterdir()} == {*NAMES}
    assert all(line.isprintable() for line in decoding.log.read_text("utf-8").split("\n"))
    note(record_property, f"{len(NAMES)} odd names by path and label: the same answer from the same process")


def chunk(name, content):
    """A part of a RIFF file."""
    content += bytes(len(content) % 2)
    return name + len(content).to_bytes(4, "little") + content


PLAYLIST = "#EXTM3U\n#EXTINF:1,\n{secret}\n"
SHELL = b"#!/bin/sh\ntouch owned\nexit\n"


def polyglots(spoken, secret):
    """Files that are a recording to one program and something else to another, by name."""
    playlist = PLAYLIST.format(secret=secret).encode()
    data_at = spoken.index(b"data")
    noted = chunk(b"LIST", b"INFO" + chunk(b"ICMT", playlist))
    return {
        "a recording named like a playlist.m3u8": spoken,
        "a recording named like a program.py": spoken,
        "a recording with a playlist behind it.m3u8": spoken + playlist,
        "a recording with an archive behind it.zip": spoken + b"PK\x05\x06" + bytes(18),
        "a recording with a playlist in its comment.m3u8": spoken[:data_at] + noted + spoken[data_at:],
        "a script with a recording behind it.sh": SHELL + spoken,
        "a document with a recording behind it.pdf": b"%PDF-1.4\n" + spoken,
        "a page with a recording behind it.html": b"<!DOCTYPE html><script>/*" + spoken,
        "a playlist with a recording behind it.wav": playlist + spoken,
    }


def test_f26_polyglots_are_recordings_or_nothing(decoding, tmp_path, record_property):
    """By its content, never its name, a file is decoded as what it begins as, or it is `bad_input`.

    What it is to other programs is not done, and what it names is not read.
    """
    spoken = wav(sample(SONG)[:16_000])
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav(sample("mixed")))
    answers = {}
    with decoding.client() as client:
        ask(client, 0, spoken, label="plain.wav")
        plain = client.events(0)
        for name, content in polyglots(spoken, secret).items():
            ask(client, 1, content, label=name)
            *segments, last = client.events(1)
            assert last["type"] == "done" or last["code"] == "bad_input", name
            assert texts(segments) in ([], texts(plain)), name
            answers[name] = last.get("code", "done")
            if name.startswith("a recording"):
                assert answers[name] == "done", name
    assert {path.name for path in tmp_path.iterdir()} == {"secret.wav"}
    found = [*answers.values()]
    note(record_property, f"{len(found)} polyglots: {found.count('done')} decoded as what they begin as")
