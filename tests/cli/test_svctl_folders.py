"""Folders in and folders out: -r with its patterns, several formats, runs that are repeated or broke off."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

import pytest
from harness.fake_server import Peer

TREE = (
    *("calls/b.wav", "calls/a.mp3", "calls/a.wav", "calls/old/c.FLAC", "calls/old/deep/d.opus"),
    *("calls/notes.txt", "calls/.hidden/e.wav", "calls/.f.wav", "calls/skip/g.wav", "top.wav"),
)
NO_FOLDER = "-o is given no FOLDER (an unset variable?); without -o transcripts go to standard output."


@pytest.fixture
def tree(tmp_path):
    """A folder of recordings, each of which holds its own name, and of files that are none."""
    for name in TREE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def listed(folder):
    """All files below a folder, sorted."""
    return sorted(
        os.path.relpath(os.path.join(at, name), folder)  # noqa: PTH118 - os.walk's own strings
        for at, _, names in os.walk(folder)
        for name in names
    )


def texts(out):
    """The recordings' own texts, in the order in which they came."""
    return [line.rpartition(" ")[2] for line in out.splitlines() if line.startswith("[EN]")]


def test_r_takes_the_recordings_below_in_order(svctl, server, tree):
    """Known endings whatever their case, sorted by name, nothing hidden; files beside are still files."""
    status, out, err = svctl("transcribe", "-r", "calls", "top.wav")
    assert status == 0
    wanted = ["a.mp3", "a.wav", "b.wav", "old/c.FLAC", "old/deep/d.opus", "skip/g.wav"]
    assert texts(out) == [*(f"calls/{name}" for name in wanted), "top.wav"]
    assert out.startswith("==> calls/a.mp3 <==\n")
    assert err.startswith("svctl: 7 transcribed, 0 failed; ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--glob", "*.txt"], ["calls/notes.txt"]),
        (
            ["--glob", "*", "--exclude", "old", "--exclude", "skip"],
            ["calls/a.mp3", "calls/a.wav", "calls/b.wav"],
        ),
        (["--glob", "n*", "--glob", "b*"], ["calls/b.wav"]),
        (["--glob", "n*.TXT", "--glob", "notes.*t", "--glob", "*tes.txt"], ["calls/notes.txt"]),
        (["--glob=*.mp3", "--glob=old/*"], ["calls/a.mp3", "calls/old/c.FLAC", "calls/old/deep/d.opus"]),
        (
            ["--exclude", "skip", "--exclude", "old/deep", "--exclude=a.*"],
            ["calls/b.wav", "calls/old/c.FLAC"],
        ),
        (
            ["--exclude=old/", "--exclude=skip/", "--exclude=b.wav/", "--glob=?.wav"],
            ["calls/a.wav", "calls/b.wav"],
        ),
    ],
)
def test_patterns_choose_by_name_or_by_path(svctl, server, tree, words, found):
    """--glob takes the place of the endings, --exclude takes away, whole folders too."""
    status, out, _ = svctl("transcribe", "-r", *words, "calls")
    assert (status, texts(out)) == (0, found)


def test_links_to_folders_are_not_followed(svctl, server, tree):
    """A tree that links to itself ends; a link to a file is a file."""
    (tree / "calls/loop").symlink_to(tree / "calls")
    (tree / "calls/old/link.wav").symlink_to(tree / "top.wav")
    _, out, _ = svctl("transcribe", "-r", "calls/old")
    assert texts(out) == ["calls/old/c.FLAC", "calls/old/deep/d.opus", "top.wav"]


def test_no_tree_ends_a_run_early(svctl, server, tree):
    """A link to itself is one recording that cannot be opened, and depth is no matter."""
    (tree / "calls/old/itself").symlink_to("itself")
    (tree / "calls/old/itself.wav").symlink_to("itself.wav")
    deep = tree / "calls/old/deep"
    with contextlib.chdir(deep):
        for _ in range(1_200):
            os.mkdir("d")  # noqa: PTH102 - its path is longer than any that mkdir takes
            os.chdir("d")
        with open("e.wav", "w") as file:  # noqa: PTH123
            file.write("bottom")
    status, out, err = svctl("transcribe", "-r", "calls/old")
    subprocess.run(["rm", "-rf", deep / "d"], check=True)  # deeper than shutil goes
    assert (status, texts(out)) == (66, ["calls/old/c.FLAC", "bottom", "calls/old/deep/d.opus"])
    assert err.startswith("svctl: calls/old/itself.wav cannot be opened: Too many levels of symbolic links.")


def test_a_folder_that_gives_nothing_is_a_mistake_of_its_own(svctl, server, tree, obey_modes):
    """Without a recording 66, not readable 77; the other names are still transcribed."""
    (tree / "empty").mkdir()
    status, out, err = svctl("transcribe", "-q", "-r", "empty", "top.wav")
    assert (status, texts(out)) == (66, ["top.wav"])
    assert err == "svctl: empty holds no recording; --glob takes files of other endings.\n"
    (tree / "closed").mkdir(mode=0)
    status, _, err = svctl("transcribe", "-q", "-r", "closed", "top.wav", **obey_modes)
    assert (status, err) == (77, "svctl: closed cannot be opened: Permission denied.\n")


def test_o_keeps_the_tree_and_every_name(svctl, server, tree):
    """Each format is a file of its own in the same tree; recordings that differ by ending only keep it."""
    status, out, err = svctl("transcribe", "-r", "-f", "srt,json", "-o", "out", "calls")
    assert (status, out) == (0, "")
    assert err.startswith("svctl: 6 transcribed, 0 failed; ")
    stems = ["a.mp3", "a.wav", "b", "old/c", "old/deep/d", "skip/g"]
    assert listed(tree / "out") == sorted(f"{stem}.{form}" for stem in stems for form in ("json", "srt"))
    assert "calls/old/deep/d.opus" in (tree / "out/old/deep/d.srt").read_text()


def test_no_name_of_a_tree_takes_the_place_of_another(svctl, server, tree):
    """A second ending is kept where what is left of the name is a recording, too."""
    (tree / "calls/a.wav.flac").write_text("twice")
    assert svctl("transcribe", "-r", "-o", "out", "calls")[0] == 0
    assert [name for name in listed(tree / "out") if name[0] == "a"] == [
        *("a.mp3.txt", "a.wav.flac.txt", "a.wav.txt"),
    ]


def test_what_is_there_is_kept_unless_told(svctl, server, tree):
    """A transcript that is there is a mistake; --force replaces it, --skip-existing asks nobody."""
    (tree / "out").mkdir()
    (tree / "out/b.txt").write_text("mine")
    run = ("transcribe", "-o", "out", "-r", "calls")
    status, _, err = svctl(*run)
    assert status == 73
    assert (
        err.splitlines()[0]
        == "svctl: calls/b.wav: out/b.txt exists; --force replaces it, --skip-existing leaves it."
    )
    assert err.splitlines()[-1].startswith("svctl: 5 transcribed, 1 failed; ")
    asked = len(server.requests)
    status, _, err = svctl(*run, "--skip-existing")
    assert status == 0
    assert err.startswith("svctl: 0 transcribed, 0 failed, 6 were there already; ")
    assert [request["type"] for request in server.requests[asked:]].count("transcribe") == 0
    assert (tree / "out/b.txt").read_text() == "mine"
    assert svctl(*run, "--force")[0] == 0
    assert "calls/b.wav" in (tree / "out/b.txt").read_text()


def test_a_run_that_broke_off_goes_on(svctl, server, tree):
    """A recording of which one format is missing is transcribed again, and what is there stays."""
    run = ("transcribe", "-f", "json,srt", "-o", "out", "-r", "calls", "--skip-existing")
    assert svctl(*run)[0] == 0
    (tree / "out/b.srt").unlink()
    (tree / "out/b.json").write_text("kept")
    (tree / "out/old/c.json").unlink()
    assert svctl(*run)[2].startswith("svctl: 2 transcribed, 0 failed, 4 were there already; ")
    assert (tree / "out/b.json").read_text() == "kept"
    assert (tree / "out/b.srt").is_file()
    assert (tree / "out/old/c.json").is_file()


def test_a_list_of_names_may_be_a_file_with_lines(svctl, server, tree):
    """--files-from takes lines, from a file or standard input, and NULs with -0; folders count with -r."""
    (tree / "list").write_text("top.wav\ncalls/b.wav\n")
    assert texts(svctl("transcribe", "--files-from", "list")[1]) == ["top.wav", "calls/b.wav"]
    assert texts(svctl("transcribe", "--files-from=-", data=b"calls/b.wav")[1]) == ["calls/b.wav"]
    (tree / "list0").write_bytes(b"calls/old\0top.wav\0")
    assert texts(svctl("transcribe", "-r", "-0", "--files-from", "list0")[1]) == [
        *("calls/old/c.FLAC", "calls/old/deep/d.opus", "top.wav"),
    ]
    assert svctl("transcribe", "--files-from", "absent") == (
        66,
        "",
        "svctl: absent cannot be opened: No such file or directory.\n",
    )


def test_a_list_may_have_the_line_ends_of_windows(svctl, server, tree):
    """With -0 a carriage return is part of the name, and the last line needs no end."""
    (tree / "odd.wav\r").write_text("odd")
    lines = b"top.wav\r\n\r\ncalls/b.wav\r\ncalls/a.wav"
    assert texts(svctl("transcribe", "--files-from=-", data=lines)[1]) == [
        *("top.wav", "calls/b.wav", "calls/a.wav"),
    ]
    status, out, err = svctl("transcribe", "-f", "srt", "--files-from=-", data=b"top.wav\r\n\r\n")
    assert (status, out.splitlines()[2], err) == (0, "top.wav", "")
    assert texts(svctl("transcribe", "-0", data=b"odd.wav\r\0top.wav")[1]) == ["odd", "top.wav"]


@pytest.mark.parametrize("words", [["--files-from", "odd"], ["--files-from", "-"]])
def test_what_is_no_list_is_one_mistake(svctl, server, tree, words):
    """A recording, and names as find -print0 writes them: not a hundred files that are not there."""
    (tree / "odd").write_bytes(b"top.wav\0calls/b.wav\nfLaC\0\0\n" * 9)
    sentence = "The list of names holds NUL bytes: names that end so need -0, a recording is no list."
    with (tree / "odd").open("rb") as odd:
        assert svctl("transcribe", *words, stdin=odd) == (64, "", f"svctl: {sentence}\n")
    assert server.requests == []


def test_a_list_of_names_may_be_a_pipe(start, server, tree):
    """What bash makes of <(find ...), or a FIFO whose writer comes late; a folder is no list."""
    os.mkfifo(tree / "names")
    process = start("transcribe", "-f", "plain", "--files-from", "names")
    with open(tree / "names", "w") as names:  # noqa: PTH123 - waits until svctl has opened it
        names.write("top.wav\n")
    assert process.communicate(timeout=60) == (b"==> top.wav <==\ntop.wav\n", b"")
    process = start("transcribe", "--files-from", "calls")
    sentence = b"svctl: calls is neither a file nor a pipe, and so no list of names.\n"
    assert (process.communicate(timeout=60), process.returncode) == ((b"", sentence), 72)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-f", "srt,json", "top.wav"], "-f srt,json are several files; they need -o FOLDER."),
        (["-o", "", "-f", "srt,json", "top.wav"], NO_FOLDER),
        (["--output=", "-r", "calls"], NO_FOLDER),
        (
            ["-f", "text,plain", "-o", "out", "top.wav"],
            "-f text,plain: text and plain are files .txt both; take one of them.",
        ),
        (
            ["--start=1:90", "top.wav"],
            (
                "Invalid value for '--start': '1:90' is no time; "
                "write seconds, 1:30 or 0:01:30.5, up to 240 hours."
            ),
        ),
        (["--wait=1:30", "top.wav"], "Invalid value for '--wait': '1:30' is not a valid number of seconds."),
        (["-j", "99", "top.wav"], "Invalid value for '-j' / '--jobs': 99 is not from 1 to 32."),
        (["--force", "top.wav"], "--force is about transcripts in a folder; it needs -o FOLDER."),
        (
            ["--force", "--skip-existing", "-o", "out", "top.wav"],
            "--force replaces transcripts and --skip-existing leaves them; take one of them.",
        ),
        (
            ["--glob", "*.txt", "calls"],
            "--glob and --exclude choose among the files below folders; they need -r.",
        ),
        (
            ["-r", "-f", "srt", "calls"],
            "-f srt holds one recording; several need -o FOLDER, which gets a file for each.",
        ),
        (
            ["--files-from", "list", "top.wav"],
            "--files-from takes the names from a list; name no FILE beside it.",
        ),
        (
            ["-f", "srt,doc", "top.wav"],
            (
                "Invalid value for '-f' / '--format': 'doc' is not one of 'text', 'json', 'jsonl', "
                "'verbose_json', 'raw', 'plain', 'srt', 'vtt', 'tsv'."
            ),
        ),
    ],
)
def test_words_that_do_not_fit_are_told_before_anything_is_asked(svctl, server, tree, words, sentence):
    """One sentence, exit status 64, no request."""
    assert svctl("transcribe", *words) == (64, "", f"svctl: {sentence}\n")
    assert server.requests == []


@pytest.mark.parametrize("word", ["-dash.wav", "-f.wav", "-o.wav", "--glob.wav"])
def test_a_file_named_as_an_option_is_told_how_to_be_written(svctl, server, tree, word):
    """Whatever mistake the word is as an option; where no such file is, help is all there is to point at."""
    status, out, mistake = svctl("transcribe", word)
    assert (status, out) == (64, "")
    mistake = mistake.replace("; see svctl transcribe --help.", ".")
    (tree / word).write_text("found")
    assert svctl("transcribe", word) == (
        64,
        "",
        f"{mistake[:-1]} If the file {word} is meant, write ./{word}\n",
    )
    assert svctl("transcribe", "-f", "plain", f"./{word}") == (0, "found\n", "")
    assert svctl("transcribe", "--waht", "--", word)[2] == svctl("transcribe", "--waht", "top.wav")[2]


def test_two_calls_of_one_name_have_a_remedy(svctl, server, tree):
    """What the sentence says is so: another -o, or -r on a folder that holds both."""
    (tree / "calls/old/b.wav").write_text("older")
    status, _, err = svctl("transcribe", "-q", "-o", "out", "calls/b.wav", "calls/old/b.wav")
    sentence = "out/b.txt holds the transcript of another recording of this run"
    remedy = "take another -o for it, or -r on a folder that holds both."
    assert (status, err) == (73, f"svctl: calls/old/b.wav: {sentence}; {remedy}\n")
    assert svctl("transcribe", "-o", "older", "calls/old/b.wav")[0] == 0
    assert svctl("transcribe", "-r", "-o", "all", "calls")[0] == 0
    assert {"b.txt", "old/b.txt"} <= {*listed(tree / "all")}


def test_a_recording_that_is_named_twice_is_done_once(svctl, server, tree):
    """By whatever name or link; the summary counts it, and with --skip-existing it is one that was there."""
    (tree / "linked").mkdir()
    (tree / "linked/b.wav").symlink_to(tree / "calls/b.wav")
    names = ["calls/b.wav", "./calls/b.wav", "linked/b.wav", "top.wav"]
    status, out, err = svctl("transcribe", "-o", "out", *names)
    assert (status, out) == (0, "")
    assert err.startswith("svctl: 2 transcribed, 0 failed, 2 named twice; ")
    assert [request["label"] for request in server.requests] == ["calls/b.wav", "top.wav"]
    assert "calls/b.wav" in (tree / "out/b.txt").read_text()
    assert svctl("transcribe", "-q", "-o", "out", "--skip-existing", *names) == (0, "", "")


NUMBERED = tuple(f"{number}.wav" for number in range(5))


@pytest.fixture
def numbered(tmp_path):
    """Five recordings."""
    for name in NUMBERED:
        (tmp_path / name).write_text("hello")
    return tmp_path


def _until_the_third(ending):
    """Answer for the recordings before 2.wav, call `ending` for that one, and keep silent on what follows."""

    def script(peer, message):
        if message["type"] == "transcribe" and message["label"] >= "2.wav":
            os.close(message["descriptor"])
            if message["label"] == "2.wav":
                ending(peer)
        else:
            peer.answer(message)

    return script


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "2 of 5 transcribed, 0 failed; --skip-existing goes on."),
        (["--force"], "2 of 5 transcribed, 0 failed."),
        (["-q"], None),
    ],
)
def test_a_run_without_its_daemon_says_how_far_it_came(svctl, serve, numbered, words, told):
    """And by which flag it goes on; not beside --force, which would be another run, and -q is errors only."""
    serve(_until_the_third(lambda peer: peer.hang_up()))
    status, out, err = svctl("transcribe", *words, "-o", "out", *NUMBERED)
    assert (status, out) == (69, "")
    *summary, lost = err.splitlines()
    assert summary == ([f"svctl: {told}"] if told else [])
    assert lost.startswith("svctl: The connection to the daemon at ")
    assert listed(numbered / "out") == ["0.txt", "1.txt"]


def test_ctrl_c_says_how_far_the_run_came_and_that_is_so(start, svctl, serve, numbered):
    """The flag that it names does the rest."""
    server = serve(_until_the_third(lambda _peer: None))
    process = start("transcribe", "-j", "2", "-o", "out", *NUMBERED)
    server.wait_for("transcribe", 4)  # the fourth takes the place of the second, which has been written
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == (
        b"",
        b"svctl: 2 of 5 transcribed, 0 failed; --skip-existing goes on.\n",
    )
    assert process.returncode == 130
    server.script = Peer.answer
    status, _, err = svctl("transcribe", "-o", "out", "--skip-existing", *NUMBERED)
    assert status == 0
    assert err.startswith("svctl: 3 transcribed, 0 failed, 2 were there already; ")


def test_a_run_that_breaks_off_at_once_has_nothing_to_say(svctl, serve, numbered):
    """Nor one onto standard output, which shows how far it came."""
    serve(lambda peer, _message: peer.hang_up())
    assert svctl("transcribe", "-o", "out", *NUMBERED)[2].count("\n") == 1


def test_a_run_onto_standard_output_shows_how_far_it_came(svctl, serve, numbered):
    """A daemon that goes is one sentence there."""
    serve(_until_the_third(lambda peer: peer.hang_up()))
    status, out, err = svctl("transcribe", *NUMBERED)
    assert (status, out.count("hello"), err.count("\n")) == (69, 2, 1)
