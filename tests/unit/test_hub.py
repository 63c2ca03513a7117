"""`sensevoiced fetch` against a loopback stub of both hubs' HTTP interfaces, by their own clients."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from sensevoiced import hub, hub_flags, models
from sensevoiced.hub_pins import PINS, Pin

pytest.importorskip("modelscope_hub", reason="the [hub] extra is not installed")
pytest.importorskip("huggingface_hub", reason="the [hub] extra is not installed")

HUBS = ("modelscope", "huggingface")
REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class StubHub:
    """What the stub serves, how it misbehaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    stated: dict[str, str] = field(default_factory=dict)
    """SHA-256 to state instead of the true one."""
    break_after: dict[str, int] = field(default_factory=dict)
    """Bytes after which the next transfer of that file is cut; once."""
    refuse: set[str] = field(default_factory=set)
    """Files answered with 403."""
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    """(file, revision, first byte asked for)."""

    def sha256(self, name: str) -> str:
        return self.stated.get(name) or hashlib.sha256(self.files[name]).hexdigest()

    def downloads(self, name: str) -> list[int]:
        return [start for file, _, start in self.asked if file == name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StubHub

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def as_json(self, content):
        self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        path = unquote(url.path)
        if re.fullmatch(r"/api/v1/models/[^/]+/[^/]+/repo/files", path):
            self.as_json({"Code": 200, "Success": True, "Data": {"Files": self.modelscope_listing()}})
        elif re.fullmatch(r"/api/v1/models/[^/]+/[^/]+/repo", path):
            self.send_file(query["FilePath"], query["Revision"])
        elif found := re.fullmatch(r"/api/models/[^/]+/[^/]+/tree/([^/]+)/?", path):
            self.as_json(self.huggingface_listing())
        elif found := re.fullmatch(r"/[^/]+/[^/]+/resolve/([^/]+)/(.+)", path):
            # The real one sends large files to another host.
            self.answer(302, Location=f"/cdn/{found[1]}/{found[2]}")
        elif found := re.fullmatch(r"/cdn/([^/]+)/(.+)", path):
            self.send_file(found[2], found[1])
        else:
            self.answer(404)

    def modelscope_listing(self):
        entries = [
            {"Path": n, "Name": n, "Size": len(c), "Sha256": self.hub.sha256(n), "Type": "blob"}
            for n, c in self.hub.files.items()
        ]
        return [*entries, {"Path": "example", "Name": "example", "Size": 0, "Type": "tree"}]

    def huggingface_listing(self):
        entries = []
        for name, content in self.hub.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"type": "file", "path": name, "size": len(content), "oid": blob}
            if name == "model.pt":
                entry["lfs"] = {"oid": self.hub.sha256(name), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return [*entries, {"type": "directory", "path": "example", "size": 0, "oid": "0" * 40}]

    def send_file(self, name, revision):
        content = self.hub.files.get(name)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        if self.command == "GET":
            self.hub.asked.append((name, revision, start))
        if content is None or name in self.hub.refuse:
            self.answer(404 if content is None else 403)
            return
        body = content[start:]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.break_after.pop(name, None)
        self.wfile.write(body[:cut])
        if cut is not None:
            self.hub.refuse.add(name)  # the library's own second try fails too, so that the whole call does
            self.close_connection = True
            self.connection.shutdown(2)


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """A hub on a loopback port, which both client libraries are pointed at."""
    state = StubHub()
    handler = type("BoundHandler", (Handler,), {"hub": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        for name in ("MODELSCOPE_ENDPOINT", "HF_ENDPOINT"):
            monkeypatch.setenv(name, endpoint)
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("TQDM_DISABLE", "1")
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture
def tiny_asr(stub, tmp_path, write_asr_folder):
    """Fill the stub with a recognition model, and with files that nobody needs."""
    folder = write_asr_folder(tmp_path / "upstream", **{"model.pt": os.urandom(300_000)})
    stub.files = {file.name: file.read_bytes() for file in folder.iterdir()}
    stub.files |= {"README.md": b"# tiny\n", "model.onnx": b"other format", "fig.png": b"picture"}
    return stub


def _run(to, hub_name, *extra):
    parser = argparse.ArgumentParser()
    hub_flags.add_arguments(parser)
    words = ["--hub", hub_name, "--model", "someone/tiny", "--vad", "none", "--to", str(to), *extra]
    return hub.run(parser.parse_args(words))


@pytest.mark.parametrize("hub_name", HUBS)
def test_a_fetched_model_is_found_offline(tiny_asr, tmp_path, hub_name):
    """What was fetched is found by its name afterwards, holds what the daemon needs, and nothing else."""
    to = tmp_path / "models"
    assert _run(to, hub_name) == 0
    found = models.find_asr("someone/tiny", to)
    assert found.weights.read_bytes() == tiny_asr.files["model.pt"]
    wanted = {"model.pt", "config.yaml", "configuration.json", "am.mvn", "tiny.bpe.model", "README.md"}
    assert {file.name for file in found.path.iterdir()} == wanted | {hub.MANIFEST}
    assert not (tmp_path / "home").exists(), "the client libraries keep nothing below the home directory"


@pytest.mark.parametrize("hub_name", HUBS)
def test_the_manifest_says_what_was_fetched(tiny_asr, tmp_path, hub_name):
    """Hub, repository, revision, and size and SHA-256 of each file are recorded beside the files."""
    assert _run(tmp_path, hub_name, "--revision", REVISION) == 0
    manifest = json.loads((tmp_path / "someone" / "tiny" / hub.MANIFEST).read_text())
    assert (manifest["hub"], manifest["repo"], manifest["revision"]) == (hub_name, "someone/tiny", REVISION)
    weights = tiny_asr.files["model.pt"]
    expected = {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    assert manifest["files"]["model.pt"] == expected
    assert {revision for _, revision, _ in tiny_asr.asked} == {REVISION}


@pytest.mark.parametrize("hub_name", HUBS)
def test_the_daemons_user_can_read_what_root_fetched(tiny_asr, tmp_path, hub_name):
    """Files are readable for all and folders open to all, whatever the umask of the one who fetched."""
    before = os.umask(0o077)
    try:
        assert _run(tmp_path, hub_name) == 0
    finally:
        os.umask(before)
    place = tmp_path / "someone" / "tiny"
    assert {oct(file.stat().st_mode & 0o777) for file in place.iterdir()} == {"0o644"}
    assert [oct(folder.stat().st_mode & 0o777) for folder in (place, place.parent)] == ["0o755", "0o755"]


@pytest.mark.parametrize("hub_name", HUBS)
def test_a_broken_transfer_is_continued(tiny_asr, tmp_path, hub_name, capsys, monkeypatch):
    """A second call asks for the rest of the broken file only, and for no file that had arrived."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 16_384)  # smaller than the file
    tiny_asr.break_after["model.pt"] = 100_000
    assert _run(tmp_path, hub_name) == os.EX_UNAVAILABLE
    assert f"could not be fetched from {hub_name}" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "someone").exists(), "an unfinished model is not where models are looked for"
    tiny_asr.refuse.clear()
    tiny_asr.asked.clear()
    assert _run(tmp_path, hub_name) == 0
    (start,) = tiny_asr.downloads("model.pt")
    assert 0 < start <= 100_000
    assert tiny_asr.downloads("am.mvn") == []
    fetched = (tmp_path / "someone" / "tiny" / "model.pt").read_bytes()
    assert fetched == tiny_asr.files["model.pt"]
    assert not list((tmp_path / ".partial").iterdir())


@pytest.mark.parametrize("hub_name", HUBS)
def test_damaged_bytes_are_refused(tiny_asr, tmp_path, hub_name, capsys, monkeypatch):
    """A file whose SHA-256 is not the stated one is thrown away with one sentence, and no model appears."""
    tiny_asr.stated["model.pt"] = "ab" * 32
    assert _run(tmp_path, hub_name) == os.EX_DATAERR
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("sensevoiced fetch: model.pt arrived damaged and was thrown away: its SHA-256 is ")
    assert last.endswith(f"not {'ab' * 32}.")
    assert not (tmp_path / "someone").exists()
    assert not list((tmp_path / ".partial").rglob("model.pt*"))


def test_small_files_of_hugging_face_are_verified_too(tiny_asr, tmp_path, capsys, monkeypatch):
    """Where only git's blob id is stated, a file of the right size with other bytes is refused."""
    listing = Handler.huggingface_listing

    def other_am_mvn(self):
        entries = listing(self)
        next(entry for entry in entries if entry["path"] == "am.mvn")["oid"] = "cd" * 20
        return entries

    monkeypatch.setattr(Handler, "huggingface_listing", other_am_mvn)
    assert _run(tmp_path, "huggingface") == os.EX_DATAERR
    assert "am.mvn arrived damaged and was thrown away: its git blob id is" in capsys.readouterr().err


@pytest.fixture
def pinned(tiny_asr, monkeypatch):
    """Pin the stub's model under a name, with a repository and a revision for each hub."""
    known = {
        name: frozenset({hashlib.sha256(content).hexdigest()})
        for name, content in tiny_asr.files.items()
        if name in ("model.pt", "config.yaml", "am.mvn")
    }
    pin = Pin(modelscope=("ms/tiny", "v1"), huggingface=("hf/tiny", REVISION), sha256=known)
    monkeypatch.setitem(PINS, "someone/tiny", pin)
    return tiny_asr


@pytest.mark.parametrize(("hub_name", "revision"), [("modelscope", "v1"), ("huggingface", REVISION)])
def test_known_models_come_from_their_pinned_revision(pinned, tmp_path, hub_name, revision):
    """Each hub has its own repository and revision of the same model, and both end up under one name."""
    assert _run(tmp_path, hub_name) == 0
    assert {asked for _, asked, _ in pinned.asked} == {revision}
    assert models.find_asr("someone/tiny", tmp_path).name == "someone/tiny"


@pytest.mark.parametrize("hub_name", HUBS)
def test_other_bytes_than_the_pinned_ones_are_refused_before_the_transfer(pinned, tmp_path, hub_name, capsys):
    """A hub that states another checksum for the weights than the pinned one is not even asked for them."""
    pinned.files["model.pt"] = os.urandom(1000)
    assert _run(tmp_path, hub_name) == os.EX_DATAERR
    assert "holds another model.pt than the one known here." in capsys.readouterr().err
    assert pinned.asked == []


@pytest.mark.parametrize("hub_name", HUBS)
def test_the_pin_outranks_what_the_hub_states(pinned, tmp_path, hub_name, capsys):
    """A hub that states the pinned checksum and sends other bytes of the same size is found out."""
    pinned.stated["model.pt"] = hashlib.sha256(pinned.files["model.pt"]).hexdigest()
    pinned.files["model.pt"] = os.urandom(len(pinned.files["model.pt"]))
    assert _run(tmp_path, hub_name) == os.EX_DATAERR
    assert "model.pt arrived damaged and was thrown away" in capsys.readouterr().err


def test_what_is_there_is_not_fetched_again(tiny_asr, tmp_path, capsys):
    """A whole model is recognised by its manifest without a request; a damaged one is replaced."""
    assert _run(tmp_path, "modelscope") == 0
    tiny_asr.asked.clear()
    assert _run(tmp_path, "modelscope") == 0
    assert tiny_asr.asked == []
    assert "is already in" in capsys.readouterr().err
    weights = tmp_path / "someone" / "tiny" / "model.pt"
    weights.write_bytes(b"damaged")
    assert _run(tmp_path, "modelscope") == 0
    assert weights.read_bytes() == tiny_asr.files["model.pt"]


@pytest.mark.parametrize("hub_name", HUBS)
def test_a_model_of_another_kind_is_never_placed(stub, tmp_path, write_vad_folder, hub_name, capsys):
    """A repository that holds no SenseVoice model is refused as --model, with the reason."""
    folder = write_vad_folder(tmp_path / "upstream")
    stub.files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert _run(tmp_path / "models", hub_name) == os.EX_DATAERR
    assert "is not a recognition model" in capsys.readouterr().err
    assert not (tmp_path / "models" / "someone").exists()


@pytest.mark.parametrize("hub_name", HUBS)
def test_a_repository_without_weights_is_refused(tiny_asr, tmp_path, hub_name, capsys):
    """What cannot become a model is said before anything is transferred."""
    del tiny_asr.files["model.pt"]
    assert _run(tmp_path, hub_name) == os.EX_DATAERR
    assert "has no model.pt." in capsys.readouterr().err
    assert tiny_asr.asked == []


@pytest.mark.parametrize("hub_name", HUBS)
def test_an_unreachable_hub_is_one_sentence(tmp_path, hub_name, monkeypatch, capsys):
    """No connection gives one line without a traceback, and the exit status for unavailable."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", endpoint)
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        assert _run(tmp_path, hub_name) == os.EX_UNAVAILABLE
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sensevoiced fetch:")]
    assert len(lines) == 1
    assert f"could not be fetched from {hub_name}" in lines[0]


def test_a_name_without_owner_is_a_usage_error(tmp_path, capsys):
    """Only owner/name can be fetched."""
    assert _run(tmp_path, "modelscope", "--model", "../etc") == os.EX_USAGE
    assert "is not the name of a model on a hub" in capsys.readouterr().err


def test_two_fetches_of_one_model_do_not_mix(tiny_asr, tmp_path, capsys):
    """While one process fetches a model, another is told so."""
    with hub._only_one(tmp_path / ".partial" / "someone--tiny", "someone/tiny"):
        assert _run(tmp_path, "modelscope") == os.EX_TEMPFAIL
        assert "is being fetched by another process" in capsys.readouterr().err


def test_a_full_disk_is_said_beforehand(tiny_asr, tmp_path, monkeypatch, capsys):
    """Nothing is transferred when the folder's file system has too little room."""
    usage = type("usage", (), {"free": 1 << 20})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert _run(tmp_path, "modelscope") == os.EX_CANTCREAT
    assert "has 1 MiB free" in capsys.readouterr().err
    assert tiny_asr.asked == []


def test_the_pins_are_the_real_models(shared_data):
    """The pinned hashes of the side files and of FSMN-VAD are those of the real files."""
    for name, folder in ((models.DEFAULT_ASR, "sensevoice_small"), (models.DEFAULT_VAD, "fsmn_vad")):
        for file, accepted in PINS[name].sha256.items():
            path = shared_data / folder / file
            if path.exists():
                assert hashlib.sha256(path.read_bytes()).hexdigest() in accepted, file


def test_the_missing_models_command_is_one_that_fetch_takes(tmp_path):
    """The command in the sentence about a missing model parses as `sensevoiced fetch` arguments."""
    with pytest.raises(models.ModelMissing) as caught:
        models.find_asr("iic/SenseVoiceSmall", tmp_path)
    command = str(caught.value).split("'")[1].split()
    parser = argparse.ArgumentParser()
    hub_flags.add_arguments(parser)
    args = parser.parse_args(command[2:])
    assert (command[:2], args.model, args.to) == (["sensevoiced", "fetch"], models.DEFAULT_ASR, tmp_path)


def test_clients_are_imported_only_to_fetch():
    """Importing models, as the daemon does, brings no hub client and no hub code along."""
    code = (
        "import sys, sensevoiced.models\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('modelscope_hub', 'huggingface_hub')"
        " or m.startswith('sensevoiced.hub')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
