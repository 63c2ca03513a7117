"""What svctl prints and returns, run as a program against a scripted daemon."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import svctl as package
from svctl import wire

BOTH = "first.wav", "second.wav"
STREAM = "stream it through standard input: svctl transcribe - < FILE."


def test_text_has_a_line_per_segment_and_a_heading_per_file(svctl, server, files):
    """One file is lines alone; several stand under headings."""
    assert svctl("transcribe", "first.wav")[1] == "[EN][NEUTRAL] hello\n[EN][NEUTRAL] world\n"
    assert svctl("transcribe", "--tags", "none", "-t", *BOTH)[1] == (
        "==> first.wav <==\n[0.00-1.50] hello\n[2.00-3.50] world\n\n==> second.wav <==\n[0.00-1.50] 你好\n"
    )


def test_every_format_reaches_the_output(svctl, server, files):
    """Each format prints a recording in its own way."""
    mark = "<|en|><|NEUTRAL|><|Speech|><|withitn|>"
    assert svctl("transcribe", "-f", "raw", *BOTH)[1] == f"{mark}hello\n{mark}world\n{mark}你好\n"
    assert svctl("transcribe", "-f", "plain", "first.wav")[1] == "hello world\n"
    assert (
        svctl("transcribe", "--format=tsv", "first.wav")[1]
        == "start\tend\ttext\n0\t1500\thello\n2000\t3500\tworld\n"
    )
    assert (
        svctl("transcribe", "-f", "vtt", "second.wav")[1]
        == "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\n你好\n\n"
    )
    assert svctl("transcribe", "--tags", "emoji", "first.wav")[1] == "helloworld\n"


def test_json_is_an_object_for_one_file_and_an_array_for_several(svctl, server, files):
    """The shape of -f json follows the command line, that of -f jsonl never changes."""
    one = json.loads(svctl("transcribe", "-f", "json", "first.wav")[1])
    several = json.loads(svctl("transcribe", "-f", "json", *BOTH)[1])
    lines = [json.loads(line) for line in svctl("transcribe", "-f", "jsonl", *BOTH)[1].splitlines()]
    assert one == several[0] == lines[0]
    assert [entry["file"] for entry in several] == [entry["file"] for entry in lines] == list(BOTH)
    assert json.loads(svctl("transcribe", "-f", "json", "-0", data=b"")[1]) == []


def test_the_same_answer_gives_the_same_bytes(svctl, server, files):
    """Two runs over the same answer print identical JSON."""
    assert svctl("transcribe", "-f", "json", *BOTH) == svctl("transcribe", "-f", "json", *BOTH)


def test_options_reach_the_daemon(svctl, server, files):
    """Language, ITN and VAD of the command line are those of the request; the label is the name as typed."""
    assert svctl("transcribe", "-l", "yue", "--no-itn", "--no-vad", "first.wav")[0] == 0
    (request,) = server.wait_for("transcribe")
    chosen = {name: request[name] for name in ("source", "label", "language", "itn", "vad")}
    assert chosen == {"source": "fd", "label": "first.wav", "language": "yue", "itn": False, "vad": False}


@pytest.mark.parametrize(
    ("name", "code", "sentence"),
    [
        ("absent.wav", "not_found", "absent.wav cannot be opened: No such file or directory."),
        ("", "not_found", "'' cannot be opened: No such file or directory."),
        ("folder", "not_a_file", "folder is a folder and not a regular file; -r takes the recordings in it."),
        ("fifo", "not_a_file", f"fifo is a pipe and not a regular file; {STREAM}"),
        ("socket", "not_a_file", "socket is a socket and not a regular file."),
        ("/dev/null", "not_a_file", f"/dev/null is a device and not a regular file; {STREAM}"),
        ("a" * 300, "not_found", f"{'a' * 300} cannot be opened: File name too long."),
    ],
)
def test_what_is_no_readable_file_is_told_without_the_daemon(  # noqa: PLR0917 - a table of three
    svctl, server, files, name, code, sentence
):
    """F18, F20: svctl itself says what is wrong with a name, and goes on to the next file."""
    (files / "folder").mkdir()
    os.mkfifo(files / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(files / "socket"))
    status, out, err = svctl("transcribe", "-f", "jsonl", name, "second.wav")
    assert (status, err) == ({"not_found": 66, "not_a_file": 72}[code], f"svctl: {sentence}\n")
    failed, transcribed = map(json.loads, out.splitlines())
    assert failed == {"file": name, "error": {"code": code, "message": sentence}}
    assert transcribed["text"] == "你好"
    assert len(server.requests) == 1


def test_an_unreadable_file_is_told_without_the_daemon(svctl, server, files, obey_modes):
    """F20: the client's own EACCES is reported by svctl, with an exit status that no missing file has."""
    (files / "first.wav").chmod(0)
    refused = (77, "", "svctl: first.wav cannot be opened: Permission denied.\n")
    assert svctl("transcribe", "first.wav", **obey_modes) == refused


@pytest.mark.parametrize("code", sorted(wire.ERRORS))
def test_every_error_code_has_its_exit_status(svctl, serve, files, code):
    """A request that ends with an error exits with the status of the table, and its sentence is printed."""

    def refuse(peer, message):
        peer.send({"type": "error", "id": message["id"], "code": code, "message": "So it is."})

    serve(refuse)
    assert svctl("transcribe", "--no-wait", "first.wav") == (
        wire.ERRORS[code][1],
        "",
        "svctl: first.wav: So it is.\n",
    )


def test_the_first_failure_decides_the_exit_status(svctl, serve, files):
    """All files are tried; the exit status is that of the first that failed."""

    def script(peer, message):
        if message["label"] == "first.wav":
            peer.send(
                {"type": "error", "id": message["id"], "code": "bad_input", "message": "It is no audio."}
            )
        else:
            peer.answer(message)

    serve(script)
    status, out, err = svctl("transcribe", *BOTH, "absent.wav")
    assert (status, out) == (65, "==> second.wav <==\n[EN][NEUTRAL] 你好\n")
    assert err.splitlines()[0] == "svctl: first.wav: It is no audio."
    assert err.splitlines()[1].startswith("svctl: absent.wav cannot be opened")


@pytest.mark.parametrize(
    "words",
    [
        ["transcribe"],
        ["transcribe", "-0", "x.wav"],
        ["transcribe", "-l", "zn", "x.wav"],
        ["transcribe", "-f", "doc", "x.wav"],
        ["transcribe", "--wait", "-3", "x.wav"],
        ["transcribe", "--wait", "nan", "x.wav"],
        ["transcribe", "--wait=1e400", "x.wav"],
        ["status", "--wait", "99999999999999999999999"],
        ["transcribe", "-t", "-f", "json", "x.wav"],
        ["transcribe", "-t", "--tags", "emoji", "x.wav"],
        ["transcribe", "--tags", "emoji", "-f", "json", "x.wav"],
        ["transcribe", "-f", "srt", "x.wav", "y.wav"],
        ["transcribe", "-f", "vtt", "x.wav", "y.wav"],
        ["transcribe", "-f", "tsv", "x.wav", "y.wav"],
        ["transcribe", "--nonsense", "x.wav"],
        ["transcribe", "-i.wav"],
        ["status", "x"],
        ["dance"],
    ],
)
def test_a_mistake_in_the_words_is_one_sentence_and_exit_64(svctl, server, words):
    """What cannot be understood is refused before the daemon is asked."""
    status, out, err = svctl(*words)
    assert (status, out, err.count("\n")) == (64, "", 1)
    assert err.startswith("svctl: ")
    assert server.requests == []


def test_an_unknown_language_is_named_with_the_known_ones(svctl, server):
    """Nobody gets `auto` who asked for `zn`."""
    _, _, err = svctl("transcribe", "-l", "zn", "x.wav")
    assert "'zn' is not one of 'auto', 'zh', 'en', 'yue', 'ja', 'ko'" in err


def test_help_and_version_need_no_daemon(svctl):
    """Help lists the verbs and every option; the version is the package's."""
    assert svctl("--version")[:2] == (0, "svctl, version 0.1.0\n")
    for word in ("transcribe", "status", "ping", "reload"):
        assert word in svctl("--help")[1]
    assert "--no-itn" in svctl("transcribe", "--help")[1]


def test_help_that_cannot_be_written_is_one_sentence(start, svctl):
    """Help into a full disk is status 74, into a reader that has gone 141, as every other output."""
    with Path("/dev/full").open("wb") as full:
        for words in (["--help"], ["transcribe", "--help"], ["--version"], []):
            assert svctl(*words, stdout=full) == (
                74,
                "",
                "svctl: Standard output cannot be written: No space left on device.\n",
            )
    reader, writer = os.pipe()
    os.close(reader)
    assert svctl("--help", stdout=writer) == (141, "", "")
    os.close(writer)


def test_an_interrupt_while_modules_load_is_quiet(environment, tmp_path):
    """Ctrl-C before svctl has read its words is status 130, not a traceback."""
    code = (
        "import sys\n"
        "import svctl.__main__ as main\n"
        "class Impatient:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'svctl.options': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Impatient())\n"
        "sys.exit(main.main())\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, "ping"], cwd=tmp_path, env=environment, capture_output=True, timeout=60
    )
    assert (process.returncode, process.stderr) == (130, b"")


def test_ctrl_c_while_modules_load_ends_svctl_at_once(start, tmp_path):
    """SIGINT before svctl has anything to undo is its end by that signal, without a word."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Impatient:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == os.environ['AT']: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Impatient())\n"
    )
    path = os.pathsep.join([str(hooks), str(Path(package.__file__).parents[1])])
    for module in ("svctl.options", "svctl.connection"):
        process = start("ping", env={"PYTHONPATH": path, "AT": module})
        assert process.communicate(timeout=60) == (b"", b"")
        assert process.returncode == -signal.SIGINT


def test_an_ignored_interrupt_stays_ignored(start, serve, files):
    """Behind nohup or a script's & svctl is not ended by the terminal's Ctrl-C."""
    server = serve(lambda peer, message: None)
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    process = start("transcribe", "first.wav", **ignore)
    (request,) = server.wait_for("transcribe")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    assert [message["type"] for message in server.requests] == [request["type"]]
