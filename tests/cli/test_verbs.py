"""The verbs of one request: what they print and return, against a scripted daemon."""

from __future__ import annotations

import json
import re
import signal

import pytest
from harness.fake_server import Peer

from svctl import __version__ as svctl_version
from svctl import wire

OLDER = (
    "The daemon at {} (fake/1.0) speaks protocol 1.0 and this svctl 1.1; {} came with 1.1: "
    "upgrade the daemon to the version of this svctl."
)
"""With the socket, and what was asked for."""


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


def test_what_waits_for_the_front_end_is_told_with_why(svctl, server):
    """In `ps` with the request, in `status` with the limit; words of a newer daemon are left out."""
    waits = ("", "process", "share", "model", "wings")
    server.jobs = [{**JOB, "job": at, "state": "waiting", "waits_for": word} for at, word in enumerate(waits)]
    shown = [re.split(" {2,}", line)[2] for line in svctl("ps")[1].splitlines()[1:]]
    assert shown == [
        "waiting",
        "waiting, no process free",
        "waiting, user's share in use",
        "waiting, model being loaded",
        "waiting",
    ]
    server.status = {"frontend": {"waiting": 3, "max_per_user": 12, "crashed": 0, "timeouts": 0}}
    sentence = "0 busy, 3 requests wait for one (a user has 12 at most), 0 crashed, 0 timed out"
    assert sentence in svctl("status")[1]
    server.status["frontend"]["waiting"] = 0
    assert "0 busy, 0 crashed" in svctl("status")[1]


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
    assert svctl("cancel", "1" * 5_000)[0] == 64


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
    # of 1.0: it knows neither request, and says so
    refusal = {"type": "error", "code": "unsupported", "message": f"There is no message of type '{kind}'."}

    def script(peer, message):
        if message["type"] == kind:
            peer.send(refusal | {"id": message["id"]})
        else:
            peer.answer(message)

    server = serve(script, minor=0)
    status, out, err = svctl(*words)
    assert (status, out) == (69, "")
    assert err == f"svctl: {OLDER.format(server.path, f'svctl {words[0]}')}\n"
    server.wait_for(kind)
    assert svctl("ping")[0] == 0


def test_an_older_daemon_is_not_asked_for_what_it_would_leave_out(svctl, serve, files):
    """`--channels` and the like are an error with it, and not a transcript of something else."""
    server = serve(minor=0)
    for words in (["--channels", "split"], ["--start", "3"], ["--duration", "2"]):
        sentence = OLDER.format(server.path, words[0].strip("-"))
        assert svctl("transcribe", *words, "first.wav") == (69, "", f"svctl: {sentence}\n")
    assert svctl("transcribe", "first.wav")[0] == 0


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


def test_what_a_loading_daemon_does_not_know_yet_is_not_said(svctl, server):
    """No dash in brackets, and no word of a jail before the first child is in it."""
    loading = {"state": "loading", "model": "demo", "uptime_s": 1.3, "frontend": {"jail": []}}
    server.status = loading
    lines = svctl("status")[1].splitlines()
    assert "model      demo" in lines
    assert "uptime     1.3 s" in lines
    assert not [line for line in lines if line.startswith("closed in")]
    server.status = loading | {"state": "ready"}
    assert "closed in  by nothing but limits" in svctl("status")[1].splitlines()
