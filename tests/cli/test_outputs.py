"""Where transcripts go: readers that leave or pause, full disks, the folder of -o, odd names."""

from __future__ import annotations

import fcntl
import json
import os
import select
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness.fake_server import Peer, done, segment
from harness.listing import listed

from svctl import folder as writing

DAMAGED = "the recording is damaged or broke off; this is what could be read of it."
BOTH = "first.wav", "second.wav"


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
    sentence = "texts/first.txt holds the transcript of another recording of this run"
    remedy = "take another -o for it, or -r on a folder that holds both."
    assert (status, err) == (73, f"svctl: other/first.mp3: {sentence}; {remedy}\n")
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


def test_two_runs_into_one_folder_lose_nothing(svctl, serve, files):
    """What another run has written meanwhile is kept, and told where nobody asked for that."""
    theirs = files / "out" / "first.txt"

    def script(peer, message):
        theirs.write_text("theirs")
        Peer.answer(peer, message)

    serve(script)
    status, _, err = svctl("transcribe", "-o", "out", "first.wav")
    sentence = "first.wav: out/first.txt has appeared since this run began, and is kept."
    assert (status, err, theirs.read_text()) == (73, f"svctl: {sentence}\n", "theirs")
    theirs.unlink()
    assert svctl("transcribe", "--skip-existing", "-o", "out", "first.wav") == (0, "", "")
    assert theirs.read_text() == "theirs"
    assert svctl("transcribe", "--force", "-o", "out", "first.wav") == (0, "", "")
    assert theirs.read_text() == "[EN][NEUTRAL] hello\n[EN][NEUTRAL] world\n"


def test_what_a_killed_run_was_writing_is_removed_by_the_next(svctl, server, files):
    """In the folders that it writes to; what another run is writing stays, and so does everything else."""
    out = files / "out"
    (out / "untouched").mkdir(parents=True)
    for name in (".svctl-0.part", ".svctl-1.part", "untouched/.svctl-0.part", ".other.part", ".svctl-notes"):
        (out / name).write_text("half a")
    (out / ".svctl-2.part").symlink_to(files / "first.wav")
    with (out / ".svctl-1.part").open("rb") as live:
        fcntl.flock(live, fcntl.LOCK_EX)
        assert svctl("transcribe", "-q", "-o", "out", *BOTH)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == [
        *(".other.part", ".svctl-1.part", ".svctl-2.part", ".svctl-notes"),
        *("first.txt", "second.txt", "untouched"),
    ]
    assert (out / "untouched" / ".svctl-0.part").is_file()
    assert (files / "first.wav").read_text() == "hello\nworld"
    assert svctl("transcribe", "-q", "--force", "-o", "out", "first.wav")[0] == 0
    assert not (out / ".svctl-1.part").exists()


def test_a_part_that_another_run_tidies_away_is_written_again(tmp_path, monkeypatch):
    """Between its making and its lock a part has no owner to see; what is lost then is made anew."""
    lock, taken = fcntl.flock, []

    def late(file, how):
        if not taken:
            taken.extend(tmp_path.glob(".svctl-*.part"))
            for part in taken:
                writing._remove_ownerless(str(part))
        lock(file, how)

    monkeypatch.setattr(writing, "fcntl", SimpleNamespace(**{**vars(fcntl), "flock": late}))
    place = writing.Folder(str(tmp_path), ("text",), [], force=False, skip_existing=False)
    assert place.write("call", "text", "hello\n") == ""
    assert len(taken) == 1
    assert listed(tmp_path) == ["call.txt"]
    assert (tmp_path / "call.txt").read_text() == "hello\n"


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
    """F26: any name the file system holds works; where UTF-8 is needed a stray byte is written in hex."""
    name = os.fsdecode(b"caf\xe9 \xe4\xbd\xa0.wav")
    shown = r"caf\xe9 你.wav"
    (files / name).write_text("ok")
    status, out, _ = svctl("transcribe", "-f", "jsonl", name)
    assert (status, json.loads(out)["file"]) == (0, shown)
    assert svctl("transcribe", "-f", "plain", name, "first.wav")[1].startswith(f"==> {shown} <==\nok\n")
    assert svctl("transcribe", "-o", "out", name)[0] == 0
    assert [os.fsencode(path.name) for path in (files / "out").iterdir()] == [b"caf\xe9 \xe4\xbd\xa0.txt"]


def test_a_name_that_is_not_utf8_looks_the_same_in_every_sentence(svctl, serve, files):
    """As the name of a recording, of its transcript and of a folder, and in what the daemon is told."""
    name, shown = os.fsdecode(b"bad\xff\xfe"), r"bad\xff\xfe"
    server = serve(lambda peer, message: peer.send(_refusal(message)))
    assert svctl("transcribe", f"{name}.wav")[2] == (
        f"svctl: {shown}.wav cannot be opened: No such file or directory.\n"
    )
    (files / name).mkdir()
    (files / f"{name}.wav").write_text("ok")
    (files / name / f"{name}.json").write_text("there")
    (files / name / "first.json").write_text("there")
    words = ("-f", "json", "-o", name)
    assert svctl("transcribe", *words, f"{name}.wav")[2] == (
        f"svctl: {shown}.wav: {shown}/{shown}.json exists; --force replaces it, --skip-existing leaves it.\n"
    )
    assert svctl("transcribe", f"{name}.wav")[2] == f"svctl: {shown}.wav: This is no audio.\n"
    assert svctl("transcribe", "-r", name)[2] == (
        f"svctl: {shown} holds no recording; --glob takes files of other endings.\n"
    )
    assert [request["label"] for request in server.requests] == [f"{shown}.wav"]


def _refusal(message):
    os.close(message["descriptor"])
    return {"type": "error", "id": message["id"], "code": "bad_input", "message": "This is no audio."}


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
