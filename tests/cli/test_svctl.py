"""What svctl prints and returns, run as a program against a scripted daemon."""

from __future__ import annotations

import grp
import json
import os
import pty
import pwd
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from harness.fake_server import Peer, done, segment

import svctl as package
from svctl import __version__ as svctl_version
from svctl import wire

DAMAGED = "the recording is damaged or broke off; this is what could be read of it."
BOTH = "first.wav", "second.wav"
STREAM = "stream it through standard input: svctl transcribe - < FILE."


def listed(folder):
    """Names in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def files(tmp_path):
    """Two recordings that read as two lines and one line of text."""
    (tmp_path / "first.wav").write_text("hello\nworld")
    (tmp_path / "second.wav").write_text("你好", encoding="utf-8")
    return tmp_path


def test_ping_names_the_daemon_and_its_socket(svctl, server):
    """`ping` says who answers where."""
    assert svctl("ping") == (0, f"fake/1.0 answers at {server.path}\n", "")
    assert svctl("ping", "-q") == (0, "", "")


def test_reload_waits_for_the_answer(svctl, server):
    """`reload` reports success only after the daemon has confirmed it."""
    assert svctl("reload") == (0, "The configuration has been read again.\n", "")
    assert [message["type"] for message in server.requests] == ["reload"]


def test_reload_says_what_came_of_it(svctl, serve):
    """What the daemon reports of a reload is printed, and what it refuses is a failure."""
    answers = [
        {"type": "reloaded", "message": "log_level applied; model needs a restart."},
        {"type": "error", "code": "config", "message": "threads is no number."},
    ]
    serve(lambda peer, message: peer.send(answers.pop(0) | {"id": message["id"]}))
    assert svctl("reload") == (0, "log_level applied; model needs a restart.\n", "")
    assert svctl("reload") == (78, "", "svctl: threads is no number.\n")


JOB = {"job": 7, "uid": 0, "pid": 1, "label": "a b.wav", "state": "running", "age_s": 61.5}


def test_ps_lists_the_unfinished_requests(svctl, server):
    """A line each with names that cannot drive a terminal, or JSON; nothing but a heading when idle."""
    assert svctl("ps") == (0, "JOB  USER  STATE  AGE  READ  DONE  FILE\n", "")
    server.jobs = [{**JOB, "decoded_s": 30.0, "recognised_s": 12.25}, {**JOB, "job": 12, "label": "\x1b[2J"}]
    assert svctl("ps")[1].splitlines() == [
        "JOB  USER  STATE    AGE        READ    DONE    FILE",
        "7    root  running  1 min 1 s  30.0 s  12.2 s  a b.wav",
        r"12   root  running  1 min 1 s  -       -       \x1b[2J",
    ]
    assert json.loads(svctl("ps", "--json")[1]) == server.jobs


def test_cancel_ends_requests_by_their_number(svctl, serve):
    """Each is told of; the first that is not there decides the exit status."""

    def script(peer, message):
        if message["type"] == "drop" and message["job"] == 2:
            fields = {"code": "not_found", "message": "You have no unfinished job 2."}
            peer.send({"type": "error", "id": message["id"], **fields})
        else:
            Peer.answer(peer, message)

    server = serve(script)
    assert svctl("cancel", "1", "2", "3") == (
        66,
        "job 1 is cancelled\njob 3 is cancelled\n",
        "svctl: You have no unfinished job 2.\n",
    )
    assert [request["job"] for request in server.requests] == [1, 2, 3]
    assert svctl("cancel", "-q", "1") == (0, "", "")
    assert svctl("cancel", "call.wav") == (
        64,
        "",
        "svctl: call.wav is no number of a request: `svctl ps` shows them.\n",
    )
    assert svctl("cancel") == (64, "", "svctl: Name at least one JOB.\n")


def test_models_tells_which_is_loaded(svctl, server):
    """The names of the daemon, the loaded one marked, also where it is a folder of no name."""
    server.status |= {"model": "mine", "models": ["demo", "iic/SenseVoiceSmall"]}
    assert svctl("models") == (0, "  demo\n  iic/SenseVoiceSmall\n* mine (loaded)\n", "")
    assert json.loads(svctl("models", "--json")[1])[0] == {"name": "demo", "loaded": False}


def test_bench_measures_this_machine(svctl, server):
    """A row for a ping and for each length of clip; JSON has the same; every clip goes through whole."""
    status, out, _ = svctl("bench", "--seconds", "0.1")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["ping", "1", "5", "15"]
    asked = [request for request in server.requests if request["type"] == "transcribe"]
    assert len(asked) >= 6
    assert not any(request["vad"] for request in asked)
    found = json.loads(svctl("bench", "--seconds=0.1", "--json")[1])
    assert [row["what"] for row in found["rows"]] == ["ping", "1 s clip", "5 s clip", "15 s clip"]
    assert all(0 < row["p50_s"] <= row["p95_s"] for row in found["rows"])


def test_version_is_of_both_sides(svctl, server):
    """Svctl's and the daemon's, with the protocol that each speaks."""
    ours = f"{wire.VERSION_MAJOR}.{wire.VERSION_MINOR}"
    lines = [f"svctl/{svctl_version}, protocol {ours}", f"fake/1.0, protocol {ours}, at {server.path}"]
    assert svctl("version") == (0, "\n".join(lines) + "\n", "")


@pytest.mark.parametrize(("words", "kind"), [(["ps"], "jobs"), (["cancel", "1"], "drop")])
def test_an_older_daemon_is_named_with_what_it_lacks(svctl, serve, words, kind):
    """One sentence and 69; what it knows, it still does."""
    serve(minor=0)
    status, _, err = svctl(*words)
    assert status == 69
    assert f"speaks protocol 1.0, which has no {kind}; upgrade it" in err
    assert err.count("\n") == 1
    assert svctl("ping")[0] == 0


def test_a_watched_status_comes_again_until_ctrl_c(start, server):
    """A table after the other, an object a line as JSON; one request each over the same connection."""
    process = start("status", "--watch", "--json")
    first, second = (json.loads(process.stdout.readline()) for _ in range(2))
    assert first == second == server.status
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert [request["type"] for request in server.requests][:2] == ["status", "status"]


def test_status_is_a_table_or_json(svctl, server):
    """`status` shows every fact to people and hands the daemon's map through as JSON."""
    server.status = {
        "server": "sensevoiced/0.1.0",
        "pid": 7,
        "state": "ready",
        "model": "demo",
        "vad": "demo/vad",
        "engine": "torch",
        "device": "cpu",
        "precision": "int8",
        "backend": "oneDNN, prepacked",
        "parameters": 2_340_000,
        "threads": 2,
        "uptime_s": 93_784.2,
        "ready_after_s": 2.25,
        "memory": {
            "daemon_rss_bytes": 300 * 2**20,
            "children_rss_bytes": 120 * 2**20,
            "children": [{"pid": 8, "rss_bytes": 60 * 2**20, "busy": True}, {"pid": 9, "busy": False}],
            "gpu_allocated_bytes": 2**30,
            "gpu_total_bytes": 8 * 2**30,
        },
        "queue": {"utterances": 3, "audio_s": 61.0, "jobs_active": 2},
        "jobs": {"done": 10, "failed": 1, "cancelled": 2, "rejected": 3},
        "frontend": {"crashed": 1, "timeouts": 0},
        "batches": {
            "count": 5,
            "utterances": 12,
            "mean_size": 2.4,
            "max_frames": 256,
            "max_utterances": 64,
        },
        "audio_s": 3_600.0,
        "engine_busy_s": 36.0,
        "rtf": 0.01,
        "connections": 1,
        "clients_rejected": 0,
    }
    assert svctl("status")[1].splitlines() == [
        "daemon      sensevoiced/0.1.0, pid 7, ready",
        "model       demo (2.3 M parameters)",
        "vad         demo/vad",
        "engine      torch on cpu, int8 (oneDNN, prepacked)",
        "threads     2",
        "uptime      1 d 2 h (ready after 2.2 s)",
        "memory      300 MiB daemon, 120 MiB front end",
        "front end   2 processes, 1 busy, 1 crashed, 0 timed out",
        "gpu memory  1024 MiB of 8192 MiB",
        "queue       2 active jobs, 3 utterances, 1 min 1 s of audio",
        "jobs        10 done, 1 failed, 2 cancelled, 3 rejected",
        "batches     5 of 2.4 utterances; at most 256 frames of 60 ms, 64 utterances",
        "audio       1 h 0 min recognised in 36.0 s (RTF 0.0100)",
        "clients     1 connected, 0 turned away",
    ]
    assert json.loads(svctl("status", "--json")[1]) == server.status


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
    for module in ("svctl.options", "svctl.client"):
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


def test_what_is_no_socket_is_named_so(svctl, tmp_path):
    """A file or a folder in the socket's place is no daemon that needs a start."""
    for place in ("/etc/passwd", tmp_path):
        assert svctl("ping", "--socket", place) == (69, "", f"svctl: {place} is not a socket.\n")


def test_a_socket_for_others_names_the_group_to_join(svctl, tmp_path, obey_modes):
    """EACCES on a socket that a group may use names the command; without a group there is none to name."""
    path = tmp_path / "closed.sock"
    gid = next(entry.gr_gid for entry in grp.getgrall() if entry.gr_gid) if obey_modes else os.getgid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        os.chown(path, -1, gid)
        path.chmod(0o060)
        user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(gid).gr_name
        remedy = f"which takes a new login after: sudo usermod -aG {group} {user}."
        sentence = f"This user may not connect to {path}; its group may, {remedy}"
        assert svctl("ping", "--socket", path, **obey_modes) == (77, "", f"svctl: {sentence}\n")
        path.chmod(0)
        assert svctl("ping", "--socket", path, **obey_modes) == (
            77,
            "",
            f"svctl: This user may not connect to {path}.\n",
        )


def test_a_folder_that_hides_the_socket_is_named(svctl, tmp_path, obey_modes):
    """Where svctl cannot even see whether there is a socket, it says so and promises no group."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0)
    path = tmp_path / "closed" / "api.sock"
    sentence = f"This user may not look into {path.parent}, where the daemon's socket should be."
    assert svctl("ping", "--socket", path, **obey_modes) == (77, "", f"svctl: {sentence}\n")


def test_no_patience_is_enough_for_an_idle_daemon(svctl, server, files):
    """--wait 0 does not wait for a loading or full daemon; one that is ready answers."""
    assert svctl("ping", "--wait", "0")[0] == 0
    assert svctl("status", "--wait=0")[0] == 0
    assert svctl("transcribe", "--wait", "0", "-f", "plain", "first.wav") == (0, "hello world\n", "")


def test_a_reload_waits_for_a_loading_daemon(svctl, serve):
    """A daemon that says when to come back is asked again, unless nobody wants to wait."""
    refusals = [1, 1]

    def script(peer, message):
        if refusals:
            busy = {"type": "error", "code": "busy", "message": "Loading.", "retry_after_ms": refusals.pop()}
            peer.send(busy | {"id": message["id"]})
        else:
            peer.answer(message)

    server = serve(script)
    assert svctl("reload") == (0, "The configuration has been read again.\n", "")
    assert len(server.requests) == 3
    refusals.append(1)
    assert svctl("reload", "--wait", "0") == (75, "", "svctl: Loading.\n")


def test_a_daemon_that_starts_is_waited_for_when_asked(start, serve, tmp_path):
    """--wait S covers a socket that is not there yet; without it svctl fails at once."""
    process = start("transcribe", "--wait", "60", "-f", "plain", "-", stdin=subprocess.PIPE)
    assert start("transcribe", "x.wav").wait(60) == 69
    assert process.poll() is None
    serve()
    assert process.communicate(b"late", timeout=60) == (b"late\n", b"")
    assert start("ping", "--wait", "0.1", "--socket", tmp_path / "never").wait(60) == 69


def test_no_daemon_is_one_sentence_with_the_remedy(svctl, tmp_path):
    """Without a daemon svctl names the socket and the command that starts it, exit status 69."""
    runtime = {"SENSEVOICE_SOCKET": "", "XDG_RUNTIME_DIR": str(tmp_path)}
    sentence = (
        f"svctl: No daemon listens at {tmp_path}/sensevoice/api.sock or /run/sensevoice/api.sock; "
        "start it with: systemctl --user start sensevoiced.socket\n"
    )
    if Path("/run/sensevoice/api.sock").exists():
        pytest.skip("a system daemon listens here")
    assert svctl("ping", env=runtime) == (69, "", sentence)
    status, _, err = svctl("ping", env={"SENSEVOICE_SOCKET": ""})
    assert (status, "systemctl start sensevoiced.socket" in err) == (69, True)
    assert "sensevoiced --socket /nowhere/s" in svctl("ping", "--socket", "/nowhere/s")[2]


def test_a_stale_socket_is_no_daemon(svctl, tmp_path):
    """F31: a socket file that nobody listens on is told like an absent daemon."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "api.sock"))
    status, _, err = svctl("transcribe", "x.wav")
    assert (status, err.startswith("svctl: No daemon listens at ")) == (69, True)


def test_a_newer_daemon_is_one_line_with_both_versions(svctl, serve):
    """F07: another major version is told on one line naming both, exit status 69."""
    server = serve(major=wire.VERSION_MAJOR + 1)
    status, out, err = svctl("ping")
    assert (status, out) == (69, "")
    assert err == (
        f"svctl: The daemon at {server.path} speaks protocol 2.1 and this svctl 1.1; "
        "install the same version of both.\n"
    )


def test_a_newer_minor_version_is_served(svctl, serve, files):
    """F07: a daemon of a newer minor version may send events and keys that this svctl does not know."""

    def script(peer, message):
        peer.send({"type": "mood", "id": message["id"], "mood": "fine"})
        peer.send(segment(message["id"], 0, "hi", colour="blue"))
        peer.send(done(message["id"], 1))

    serve(script, minor=wire.VERSION_MINOR + 1)
    assert svctl("transcribe", "first.wav") == (0, "[EN][NEUTRAL] hi\n", "")


def test_results_come_in_the_order_of_the_files(svctl, serve, files):
    """Several requests are in flight at once, and answers that arrive backwards are printed forwards."""
    names = [f"{number}.wav" for number in range(4)]
    for name in names:
        (files / name).write_text(name)
    waiting = []

    def backwards(peer, message):
        waiting.append(message)
        if len(waiting) == len(names):
            for held in reversed(waiting):
                peer.answer(held)

    serve(backwards)
    assert svctl("transcribe", "-f", "plain", *names)[1] == "\n".join(f"==> {n} <==\n{n}\n" for n in names)


def test_the_first_file_is_printed_while_it_is_transcribed(start, serve, files):
    """Segments of the file whose turn it is appear before its `done`."""
    server = serve(lambda peer, message: peer.send(segment(message["id"], 0, "early")))
    process = start("transcribe", *BOTH)
    assert process.stdout.readline() == b"==> first.wav <==\n"
    assert process.stdout.readline() == b"[EN][NEUTRAL] early\n"
    assert len(server.wait_for("transcribe", 2)) == 2


def test_names_come_null_separated_from_standard_input(svctl, server, files):
    """`find -print0 | svctl transcribe -0` takes any name there is, the last with or without its NUL."""
    (files / "odd\nname.wav").write_text("odd")
    _, out, _ = svctl("transcribe", "-0", "-f", "jsonl", data=b"first.wav\0odd\nname.wav\0second.wav")
    assert [json.loads(line)["file"] for line in out.splitlines()] == [
        "first.wav",
        "odd\nname.wav",
        "second.wav",
    ]


def test_a_result_does_not_wait_for_the_next_name(start, server, files):
    """While the writer of names is slow, what is done is printed."""
    process = start("transcribe", "-0", "-f", "plain", stdin=subprocess.PIPE)
    process.stdin.write(b"first.wav\0")
    process.stdin.flush()
    assert process.stdout.readline() + process.stdout.readline() == b"==> first.wav <==\nhello world\n"


def test_a_pipe_is_streamed_and_a_file_on_standard_input_is_passed(svctl, server, files):
    """`-` streams a pipe's bytes; a regular file travels as a descriptor, but only from its start."""
    line = "x" * 1_000
    assert (
        svctl("transcribe", "--tags", "none", "-", data=f"{line}\n".encode() * 3_000)[1]
        == f"{line}\n" * 3_000
    )
    with (files / "first.wav").open("rb", buffering=0) as file:
        assert svctl("transcribe", "-f", "plain", "-", stdin=file)[1] == "hello world\n"
        file.read(6)
        assert svctl("transcribe", "-f", "plain", "-", stdin=file)[1] == "world\n"
    sources = [message["source"] for message in server.requests if message["type"] == "transcribe"]
    assert sources == ["stream", "fd", "stream"]


def test_standard_input_can_be_read_once(svctl, server):
    """The second `-` is a sentence, not the rest of the first."""
    status, out, err = svctl("transcribe", "-f", "plain", "-", "-", data=b"hello")
    assert (status, out, err) == (64, "==> - <==\nhello\n", "svctl: Standard input can be read only once.\n")


def test_a_terminal_on_standard_input_is_refused(svctl, server):
    """Nobody types audio."""
    leader, follower = pty.openpty()
    try:
        status, _, err = svctl("transcribe", "-", stdin=follower)
    finally:
        os.close(leader)
        os.close(follower)
    assert (status, "terminal" in err) == (72, True)


def test_busy_is_tried_again(svctl, serve, files):
    """A refused request is sent again with its descriptor, and the order of the output stays."""
    refusals = {"first.wav": 2, "second.wav": 1}

    def script(peer, message):
        if refusals[message["label"]]:
            refusals[message["label"]] -= 1
            os.close(message["descriptor"])
            peer.send(
                {
                    "type": "error",
                    "id": message["id"],
                    "code": "busy",
                    "message": "Full.",
                    "retry_after_ms": 1,
                }
            )
        else:
            peer.answer(message)

    serve(script)
    status, out, _ = svctl("transcribe", "-f", "plain", *BOTH)
    assert (status, out) == (0, "==> first.wav <==\nhello world\n\n==> second.wav <==\n你好\n")


def test_a_refused_stream_is_sent_again_from_its_start(svctl, serve):
    """What was read from the pipe before the refusal is not lost."""
    refused = []

    def script(peer, message):
        if message["type"] == "end" and not refused:
            refused.append(message["id"])
            peer.send(
                {
                    "type": "error",
                    "id": message["id"],
                    "code": "busy",
                    "message": "Full.",
                    "retry_after_ms": 1,
                }
            )
        elif message["id"] not in refused:
            peer.answer(message)

    serve(script)
    assert svctl("transcribe", "-f", "plain", "-", data=b"all of it") == (0, "all of it\n", "")


@pytest.mark.parametrize("patience", ["--no-wait", "--wait=0", "--wait=0.2"])
def test_patience_with_a_full_daemon_ends(svctl, serve, files, patience):
    """F17: a daemon that stays full ends the request with status 75 once patience is over."""

    def refuse(peer, message):
        peer.send(
            {"type": "error", "id": message["id"], "code": "busy", "message": "Full.", "retry_after_ms": 1}
        )

    server = serve(refuse)
    assert svctl("transcribe", patience, "first.wav") == (75, "", "svctl: first.wav: Full.\n")
    assert (len(server.requests) > 1) == (patience == "--wait=0.2")


def test_too_many_connections_are_waited_for(svctl, serve):
    """F10: a daemon without a free connection is asked again."""
    refused = []

    def greet(peer, hello):
        if refused:
            peer.send({"type": "welcome", "major": hello["major"], "minor": 0, "server": "late/1"})
        else:
            refused.append(True)
            peer.send(
                {"type": "error", "code": "too_many_connections", "message": "Too many.", "retry_after_ms": 1}
            )
            peer.hang_up()

    serve(greet=greet)
    status, out, _ = svctl("ping")
    assert (status, out.startswith("late/1 answers")) == (0, True)


def test_interrupt_cancels_and_exits_130(start, serve, files):
    """Ctrl-C sends a cancel for every request in flight, prints nothing, and exits with 130."""
    server = serve(lambda peer, message: None)
    process = start("transcribe", *BOTH)
    requests = server.wait_for("transcribe", 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"")
    assert {m["id"] for m in server.wait_for("cancel", 2)} == {m["id"] for m in requests}


def test_a_connection_that_breaks_is_one_sentence(svctl, serve, files):
    """F31: a daemon that dies in the middle is told once, exit status 69, after what it had said before."""

    def script(peer, message):
        if message["label"] == "first.wav":
            peer.answer(message)
        else:
            peer.hang_up()

    server = serve(script)
    assert svctl("transcribe", *BOTH) == (
        69,
        "==> first.wav <==\n[EN][NEUTRAL] hello\n[EN][NEUTRAL] world\n",
        f"svctl: The connection to the daemon at {server.path} broke before it had answered; try again.\n",
    )


def test_nonsense_from_the_daemon_is_a_protocol_error(svctl, serve, files):
    """A peer that does not speak this protocol is told in a sentence, exit status 76."""
    serve(lambda peer, message: peer.send_raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    status, out, err = svctl("transcribe", "first.wav")
    assert (status, out, err.count("\n")) == (76, "", 1)


def test_a_reader_that_leaves_is_no_error_message(start, server, files):
    """`svctl transcribe ... | head -1` ends quietly."""
    (files / "long.wav").write_text("line\n" * 3_000)
    process = start("transcribe", "long.wav")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(20) == 141


def test_a_reader_that_pauses_does_not_stop_the_daemon(start, serve, files):
    """F14: while a pager holds svctl's output back, svctl still takes in everything the daemon sends."""
    sent = []
    text = "x" * 60_000

    def script(peer, message):
        for index in range(100):
            peer.send(segment(message["id"], index, text))
        peer.send(done(message["id"], 100))
        sent.append(True)
        peer.answer({"type": "ping", "id": 0})

    server = serve(script)
    process = start("transcribe", "--tags", "none", "first.wav")
    server.wait_for("transcribe")
    select.select([process.stdout], [], [], 20)
    with server.arrived:
        server.arrived.wait_for(lambda: sent, 20)
    assert sent
    out, _ = process.communicate(timeout=20)
    assert out == (text.encode() + b"\n") * 100


def test_closed_and_full_outputs_are_told(svctl, server, files, environment):
    """Standard output that cannot be written is a sentence and status 74; nothing goes elsewhere."""
    with Path("/dev/full").open("wb") as full:
        assert svctl("transcribe", "first.wav", stdout=full) == (
            74,
            "",
            "svctl: Standard output cannot be written: No space left on device.\n",
        )
    status, _, err = svctl("transcribe", "first.wav", stdout=None, preexec_fn=lambda: os.close(1))
    assert (status, err) == (74, "svctl: Standard output cannot be written: Bad file descriptor.\n")
    assert svctl("ping", stdout=None, preexec_fn=lambda: os.close(1))[0] == 74


def test_a_folder_gets_a_file_per_recording(svctl, server, files):
    """`-o` writes whole files under the recordings' names, and refuses to write two into one."""
    (files / "other").mkdir()
    (files / "other" / "first.mp3").write_text("again")
    assert svctl("transcribe", "-f", "srt", "-o", "subs/deep", *BOTH)[:2] == (0, "")
    assert listed(files / "subs/deep") == ["first.srt", "second.srt"]
    assert (files / "subs/deep/second.srt").read_text("utf-8") == "1\n00:00:00,000 --> 00:00:01,500\n你好\n\n"
    status, _, err = svctl("transcribe", "-q", "-o", "texts", "first.wav", "other/first.mp3", "second.wav")
    assert (status, err) == (
        73,
        "svctl: other/first.mp3: texts/first.txt holds the transcript of another recording of this run.\n",
    )
    assert listed(files / "texts") == ["first.txt", "second.txt"]
    assert (files / "texts/first.txt").read_text("utf-8") == "[EN][NEUTRAL] hello\n[EN][NEUTRAL] world\n"


def test_a_transcript_that_cannot_be_written_is_only_that_one(svctl, server, files):
    """A name without room for its extension and a folder in the way are told; the others are written."""
    longest = "n" * 251  # with .wav the 255 bytes of NAME_MAX; .jsonl does not fit any more
    (files / f"{longest}.wav").write_text("x")
    (files / "out" / "first.jsonl").mkdir(parents=True)
    status, out, err = svctl("transcribe", "-q", "-f", "jsonl", "-o", "out", f"{longest}.wav", *BOTH)
    assert (status, out) == (73, "")
    assert err.splitlines() == [
        f"svctl: {longest}.wav: out/{longest}.jsonl cannot be written: File name too long.",
        "svctl: first.wav: out/first.jsonl cannot be written: Is a directory.",
    ]
    assert listed(files / "out") == ["first.jsonl", "second.jsonl"]
    assert svctl("transcribe", "-o", "out", f"{longest}.wav")[0] == 0
    assert (files / "out" / f"{longest}.txt").is_file()


def test_a_transcript_never_replaces_a_recording(svctl, server, files):
    """Neither its own recording nor another one of the run, by whatever link, by force even."""
    (files / "first.txt").write_text("old")
    (files / "third.txt").write_text("three")
    (files / "third.wav").write_text("other")
    (files / "second.txt").hardlink_to(files / "third.txt")
    kept = "is a recording of this run and is not replaced by a transcript."
    words = ("-q", "--force", "-o", ".")
    status, _, err = svctl("transcribe", *words, "third.txt", "second.wav", "first.wav")
    assert (status, err.splitlines()) == (
        73,
        [f"svctl: third.txt: third.txt {kept}", f"svctl: second.wav: second.txt {kept}"],
    )
    assert (files / "third.txt").read_text() == "three"
    assert (files / "first.txt").read_text() == "[EN][NEUTRAL] hello\n[EN][NEUTRAL] world\n"
    assert svctl("transcribe", "-o", ".", "-0", data=b"third.txt")[0] == 73
    (files / "stdin.txt").write_text("piped")
    with (files / "stdin.txt").open("rb") as file:
        assert svctl("transcribe", "-o", ".", "-", stdin=file)[0] == 73
    assert (files / "stdin.txt").read_text() == "piped"


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("first.wav", "first.wav is not a folder."),
        ("first.wav/sub", "The folder first.wav/sub cannot be made: Not a directory."),
        ("closed", "This user may not write into the folder closed."),
        ("closed/sub", "The folder closed/sub cannot be made: Permission denied."),
    ],
)
def test_a_folder_that_cannot_be_written_is_told_first(svctl, files, obey_modes, folder, sentence):
    """Nothing is transcribed whose transcript has no place: not even the daemon is looked for."""
    (files / "closed").mkdir()
    (files / "closed").chmod(0)
    assert svctl("transcribe", "-o", folder, *BOTH, **obey_modes) == (73, "", f"svctl: {sentence}\n")


def test_formats_of_one_recording_take_one(svctl, server, files):
    """Two subtitle files in one stream are none; a list of names may hold one, a folder takes all."""
    refused = "-f srt holds one recording; several need -o FOLDER, which gets a file for each."
    assert svctl("transcribe", "-f", "srt", *BOTH) == (64, "", f"svctl: {refused}\n")
    assert svctl("transcribe", "-f", "srt", "-0", data=b"first.wav\0second.wav") == (
        64,
        "",
        f"svctl: {refused}\n",
    )
    assert server.requests == []
    one = svctl("transcribe", "-f", "srt", "-0", data=b"second.wav\0")
    assert one == (0, "1\n00:00:00,000 --> 00:00:01,500\n你好\n\n", "")
    assert svctl("transcribe", "-f", "srt", "-o", "subs", "-0", data=b"first.wav\0second.wav")[0] == 0


def test_events_without_speech_leave_no_blank_line(svctl, serve, files):
    """-f text --tags none is the text alone."""

    def script(peer, message):
        for index, text in enumerate(("one", "", "two")):
            peer.send(segment(message["id"], index, text))
        peer.send(done(message["id"], 3))

    serve(script)
    assert svctl("transcribe", "--tags", "none", "first.wav")[1] == "one\ntwo\n"
    assert svctl("transcribe", "--tags", "none", "-t", "first.wav")[1] == "[0.00-1.50] one\n[4.00-5.50] two\n"


def test_odd_names_are_names(svctl, server, files):
    """F26: a name like an option is a file behind `--`; control characters are shown, not obeyed."""
    odd = "\x1b[31mred\nline.wav"
    for name in ("-i.wav", odd, "--help"):
        (files / name).write_text("ok")
    status, out, _ = svctl("transcribe", "--tags", "none", "--", "-i.wav", odd, "--help")
    assert status == 0
    assert out == "==> -i.wav <==\nok\n\n==> \\x1b[31mred\\nline.wav <==\nok\n\n==> --help <==\nok\n"
    assert (
        svctl("transcribe", "\x1b]0;gone\x07")[2]
        == "svctl: \\x1b]0;gone\\x07 cannot be opened: No such file or directory.\n"
    )
    assert server.requests[1]["label"] == odd


def test_names_that_are_not_utf8_are_transcribed(svctl, server, files):
    """F26: any name the file system holds works; where UTF-8 is needed the stray byte becomes U+FFFD."""
    name = b"caf\xe9.wav"
    (files / os.fsdecode(name)).write_text("ok")
    status, out, _ = svctl("transcribe", "-f", "jsonl", os.fsdecode(name))
    assert (status, json.loads(out)["file"]) == (0, "caf\ufffd.wav")
    (files / os.fsdecode(name)).unlink()
    assert svctl("transcribe", os.fsdecode(name))[2].startswith("svctl: caf\\udce9.wav cannot be opened")


def test_damaged_and_silent_recordings_are_noted(svctl, serve, files):
    """A truncated recording and one without speech are noted on standard error; neither is a failure."""

    def script(peer, message):
        peer.send(done(message["id"], 0, truncated=True))

    serve(script)
    assert svctl("transcribe", "first.wav") == (
        0,
        "",
        f"svctl: first.wav: {DAMAGED}\nsvctl: first.wav: no speech was found.\n",
    )
    status, out, err = svctl("transcribe", "-q", "-f", "json", "first.wav")
    answer = json.loads(out)
    assert (status, err) == (0, "")
    assert (answer["truncated"], answer["language"], answer["text"], answer["segments"]) == (
        True,
        "nospeech",
        "",
        [],
    )
