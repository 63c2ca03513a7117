"""What the benchmark does to the peers' processes and says to them, tried on programs of three lines."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import yaml

from benchmarks.contender import ContenderError, Machine
from benchmarks.peers import peers
from benchmarks.peers.hub import hub
from benchmarks.peers.process import Group, alive
from benchmarks.peers.upload import Upload

# One write a line: two processes that print at once would mix theirs.
FORK = r"import os, time; os.fork(); os.write(1, b'%d\n' % os.getpid()); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {FORK}"


@pytest.fixture
def machine(tmp_path):
    """A machine with a model and a VAD that are folders of small files."""
    for name in ("model", "vad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("model: Some\n")
        (tmp_path / name / "model.pt").write_bytes(name.encode())
    return Machine(tmp_path / "model", tmp_path / "vad", "cpu", 3, tmp_path / "cache", tmp_path / "work")


@pytest.fixture
def echo():
    """A server that answers an upload with the form as it came, and 500 below /broken."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = json.dumps({"text": body.decode(), "type": self.headers["Content-Type"]}).encode()
            self.send_response(500 if self.path == "/broken" else 200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_all_peers_are_there_and_nothing_starts_until_it_is_asked_for(machine):
    """Their names are the keys of the table, and looking at them costs nothing."""
    found = peers(machine)
    names = (
        "stock stock-tuned service-1 service-tuned service-4 funasr-server sherpa-fp32 sherpa-int8 funasr-cli"
    )
    assert [peer.name for peer in found] == names.split()
    assert [peer.processes() for peer in found] == [[]] * len(found)
    for peer in found:
        peer.stop()
    assert not machine.work.exists()


@pytest.mark.parametrize("program", [FORK, STUBBORN], ids=["willing", "stubborn"])
def test_ending_a_peer_ends_its_children_too(tmp_path, monkeypatch, program):
    """A server that ignores SIGTERM, and a worker process it has started, are gone when end() returns."""
    monkeypatch.setattr("benchmarks.peers.process.TERM_S", 1.0)
    group = Group([sys.executable, "-c", program], tmp_path / "log", talking=True)
    pids = [int(group.stdout.readline()) for _ in range(2)]
    assert sorted(group.pids()) == sorted(pids)
    group.end()
    assert [pid for pid in pids if alive(pid)] == []


def test_a_peer_that_ends_by_itself_is_quoted(tmp_path):
    """The row of a peer that could not start gives its exit status and last words."""
    group = Group([sys.executable, "-c", "import sys; sys.exit('no such model')"], tmp_path / "log")
    assert group.wait() == 1
    assert str(group.failure("it ended")) == "it ended, exit status 1: no such model"
    group.end()


def test_an_upload_is_a_form_with_the_file_last(echo, tmp_path):
    """Fields, then the file under its name, as `curl -F` sends them."""
    clip = tmp_path / "clip.wav"
    clip.write_text("RIFF")
    answer = Upload(echo, "/", {"model": "sensevoice"}).post(clip)
    boundary = answer["type"].removeprefix("multipart/form-data; boundary=")
    assert answer["text"].replace(boundary, "B").splitlines() == [
        "--B",
        'Content-Disposition: form-data; name="model"',
        "",
        "sensevoice",
        "--B",
        'Content-Disposition: form-data; name="file"; filename="clip.wav"',
        "Content-Type: application/octet-stream",
        "",
        "RIFF",
        "--B--",
    ]


def test_an_upload_that_is_refused_is_an_error_of_the_peer(echo, tmp_path):
    """A status other than 200 is no answer, however fast it came."""
    clip = tmp_path / "clip.wav"
    clip.write_text("RIFF")
    with pytest.raises(ContenderError, match="POST /broken: 500"):
        Upload(echo, "/broken").one(clip)


def test_funasr_commands_get_the_models_by_their_names(machine):
    """The models stay where they are, and every file is found under the hub's name."""
    folder = hub(machine)
    assert hub(machine) == folder, "a second command finds it made"
    asr = folder / "iic" / "SenseVoiceSmall"
    vad = folder / "iic" / "speech_fsmn_vad_zh-cn-16k-common-pytorch"
    assert (asr / "model.pt").read_bytes() == b"model"
    assert (vad / "model.pt").read_bytes() == b"vad"
    assert yaml.safe_load((asr / "config.yaml").read_text()) == {"model": "Some"}
