"""What every test may ask for: the folder of real recordings and models, and tiny model folders."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import yaml
from harness.notifications import Notifications

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure():
    """Undo an ignored SIGINT: a run in a script's background would hand it down to every process tested."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    """Skip slow tests with a reason unless the command line chooses by marker itself."""
    if config.option.markexpr:
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run it with -m slow"))


@pytest.fixture(scope="session")
def repository():
    """The folder of the checkout, for tests of files that are not installed."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real recordings and side files; tests that need it are skipped where it is absent."""
    named = os.environ.get("SENSEVOICE_TEST_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not (folder / "PROVENANCE.tsv").is_file():
        pytest.skip(f"no test data in {folder}: name the folder in SENSEVOICE_TEST_DATA")
    return folder


def _write_model(folder, *, kind, lfr, files):
    folder.mkdir(parents=True, exist_ok=True)
    frontend = {"fs": 16000, "window": "hamming", "n_mels": 80, "frame_length": 25, "frame_shift": 10}
    config = {"model": kind, "frontend_conf": {**frontend, "lfr_m": lfr[0], "lfr_n": lfr[1]}}
    if kind == "FsmnVADStreaming":
        config |= {"model_conf": {"detect_mode": 1}, "encoder_conf": {"input_dim": 80 * lfr[0]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    metas = {"init_param": "model.pt", "config": "config.yaml", "frontend_conf": {"cmvn_file": "am.mvn"}}
    if kind == "SenseVoiceSmall":
        metas["tokenizer_conf"] = {"bpemodel": "tiny.bpe.model"}
    (folder / "configuration.json").write_text(json.dumps({"file_path_metas": metas}))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def write_asr_folder():
    """Write a folder in FunASR's layout that says it is a SenseVoiceSmall; its weights are only bytes."""

    def write(folder, **files):
        content = {"model.pt": b"weights" * 1000, "tiny.bpe.model": b"pieces", "am.mvn": b"<Nnet>"}
        return _write_model(folder, kind="SenseVoiceSmall", lfr=(7, 6), files={**content, **files})

    return write


@pytest.fixture
def write_vad_folder():
    """Write a folder in FunASR's layout that says it is an FSMN-VAD; its weights are only bytes."""

    def write(folder, **files):
        content = {"model.pt": b"weights" * 100, "am.mvn": b"<Nnet>"}
        return _write_model(folder, kind="FsmnVADStreaming", lfr=(5, 1), files={**content, **files})

    return write


@pytest.fixture
def manager(tmp_path):
    """The service manager's notification socket."""
    notifications = Notifications(tmp_path)
    yield notifications
    notifications.close()
