"""What svctl asks and in which order: names, streams, refusals, and ends that come too early."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
from harness.daemon import wait_until
from harness.fake_server import segment

BOTH = "first.wav", "second.wav"


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


def asleep(pid):
    """Say whether a process waits for something (proc(5), the state in stat)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_interrupt_cancels_and_exits_130(start, serve, files):
    """Ctrl-C sends a cancel for every request in flight, prints nothing, and exits with 130."""
    server = serve(lambda peer, message: None)
    process = start("transcribe", *BOTH)
    requests = server.wait_for("transcribe", 2)
    # The welcome was sent before those were read: once svctl sleeps again, it has its connection. Before that
    # it may end without a word to the daemon, which a connection that ends tells as much.
    wait_until(lambda: asleep(process.pid), "svctl waits for its answers")
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
