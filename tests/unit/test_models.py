"""Finding and describing model folders, offline."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from sensevoiced import models
from sensevoiced.config import ConfigError
from sensevoiced.models import ModelDamaged, ModelMissing


def test_a_fetched_model_is_found_by_its_hub_name(tmp_path, write_asr_folder):
    """A hub id names the folder owner/name below the models directory."""
    folder = write_asr_folder(tmp_path / "iic" / "SenseVoiceSmall")
    found = models.find_asr("iic/SenseVoiceSmall", tmp_path)
    assert (found.name, found.path) == ("iic/SenseVoiceSmall", folder)
    assert found.weights == folder / "model.pt"
    assert found.tokenizer == folder / "tiny.bpe.model"
    assert found.frontend.cmvn == folder / "am.mvn"
    assert found.config["model"] == "SenseVoiceSmall"


@pytest.mark.parametrize("alias", ["SenseVoiceSmall", "FunAudioLLM/SenseVoiceSmall"])
def test_both_hubs_names_mean_one_model(tmp_path, write_asr_folder, alias):
    """Hugging Face's name and FunASR's short one find the folder that ModelScope's name has."""
    write_asr_folder(tmp_path / "iic" / "SenseVoiceSmall")
    assert models.find_asr(alias, tmp_path).name == "iic/SenseVoiceSmall"


def test_a_folder_is_taken_as_it_is(tmp_path, write_asr_folder):
    """A path to a folder needs no models directory, and the folder's name is the model's."""
    folder = write_asr_folder(tmp_path / "mine")
    assert models.find_asr(str(folder), tmp_path / "nowhere").name == "mine"


def test_a_relative_folder_may_look_like_a_hub_name(tmp_path, write_asr_folder, monkeypatch):
    """`models/mine` is a folder when no such model was fetched, and the fetched one when there is one."""
    near = write_asr_folder(tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    assert models.find_asr("models/mine", tmp_path / "state").path == near
    fetched = write_asr_folder(tmp_path / "state" / "models" / "mine")
    assert models.find_asr("models/mine", tmp_path / "state").path == fetched


def test_a_missing_model_is_one_sentence_with_the_command(tmp_path):
    """The sentence names what is missing, where, and the command that fetches it to there."""
    with pytest.raises(ModelMissing) as caught:
        models.find_asr("iic/SenseVoiceSmall", tmp_path)
    assert str(caught.value) == (
        f"The model iic/SenseVoiceSmall is not in {tmp_path}: fetch it once with "
        f"'sensevoiced fetch --model iic/SenseVoiceSmall --to {tmp_path}'."
    )
    assert isinstance(caught.value, ConfigError)


def test_a_missing_vad_is_fetched_alone(tmp_path, write_asr_folder):
    """The command for a missing VAD model does not bring the recognition model along."""
    beside = models.find_asr(str(write_asr_folder(tmp_path / "mine")), tmp_path)
    with pytest.raises(ModelMissing, match="--model none --vad iic/speech_fsmn_vad_zh-cn-16k-common-pytorch"):
        models.find_vad("auto", tmp_path, beside=beside)


def test_the_vad_beside_a_model_comes_first(tmp_path, write_asr_folder, write_vad_folder):
    """`auto` takes the model's own vad folder when there is one, and FunASR's otherwise."""
    folder = write_asr_folder(tmp_path / "mine")
    beside = models.find_asr(str(folder), tmp_path)
    fetched = write_vad_folder(tmp_path / "iic" / "speech_fsmn_vad_zh-cn-16k-common-pytorch")
    assert models.find_vad("auto", tmp_path, beside=beside).path == fetched
    own = write_vad_folder(folder / "vad")
    found = models.find_vad("auto", tmp_path, beside=beside)
    assert (found.name, found.path, found.frontend.dim) == ("mine/vad", own, 400)


@pytest.mark.parametrize("name", ["", "../up", "iic/../../etc", "/nonexistent/model", "three/part/name"])
def test_names_that_lead_nowhere_are_refused(tmp_path, name, monkeypatch):
    """No name reaches a folder outside the models directory by accident."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelMissing):
        models.find_asr(name, tmp_path / "models")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("~no-such-user-here/model", "--model ~no-such-user-here/model names the home of a user that does"),
        ("/" + "x" * 5000, "cannot be looked at: File name too long."),
    ],
    ids=["user", "length"],
)
def test_names_that_the_system_does_not_take_are_one_sentence(tmp_path, name, sentence):
    """A path that cannot even be looked up is a wrong setting, never a traceback."""
    with pytest.raises(ModelMissing) as caught:
        models.find_asr(name, tmp_path)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_folder_that_is_closed_to_the_daemon_is_one_sentence(tmp_path, monkeypatch):
    """Where a folder above the model may not be searched, the sentence says so."""

    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(models.Path, "is_dir", closed)
    for name in (str(tmp_path / "mine"), "iic/SenseVoiceSmall"):
        with pytest.raises(ModelMissing, match="cannot be looked at: Permission denied"):
            models.find_asr(name, tmp_path)


def test_a_file_is_not_a_model_folder(tmp_path):
    """Naming model.pt instead of its folder says which of the two is wanted."""
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(ModelMissing, match="is a file: name the folder"):
        models.find_asr(str(tmp_path / "model.pt"), tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("model.pt", None, "is incomplete: model.pt is missing."),
        ("model.pt", b"", "is incomplete: model.pt is empty."),
        ("model.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs pointer"),
        ("am.mvn", None, "is incomplete: am.mvn is missing."),
        ("tiny.bpe.model", None, "is incomplete: tiny.bpe.model is missing."),
        ("config.yaml", None, "is not a model folder: it has no config.yaml."),
        ("config.yaml", b"- a\n- list\n", "is damaged: it holds no settings."),
        ("config.yaml", b"model: [unclosed", "is damaged"),
        ("config.yaml", b"\xff\xfe\x00", "is damaged"),
        ("config.yaml", b"model: Paraformer\n", "says model: Paraformer, not SenseVoiceSmall."),
        ("config.yaml", b"model: SenseVoiceSmall\n", "frontend_conf is missing"),
        ("config.yaml", b"model: SenseVoiceSmall\nfrontend_conf: {n_mels: many}\n", "is not a number"),
        ("config.yaml", b"model: SenseVoiceSmall\nfrontend_conf: {lfr_n: 0}\n", "is not above zero"),
        ("config.yaml", b"model: SenseVoiceSmall\nfrontend_conf: {fs: 8000}\n", "8000 Hz"),
        ("configuration.json", b"{", "configuration.json is damaged"),
        ("configuration.json", b'{"file_path_metas": []}', "configuration.json is damaged"),
        (
            "configuration.json",
            json.dumps({"file_path_metas": {"init_param": "../../etc/passwd"}}).encode(),
            "is not the name of a file in its folder",
        ),
    ],
)
def test_a_damaged_folder_is_one_sentence(tmp_path, write_asr_folder, file, content, sentence):
    """Every way in which a folder can be broken is told in one line that names the folder."""
    folder = write_asr_folder(tmp_path / "mine")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(ModelDamaged) as caught:
        models.find_asr(str(folder), tmp_path)
    message = str(caught.value)
    assert sentence in message
    assert str(folder) in message
    assert "\n" not in message


@pytest.mark.parametrize("section", ["model_conf", "encoder_conf"])
@pytest.mark.parametrize("value", [None, "text"])
def test_a_vad_model_without_its_sections_is_one_sentence(tmp_path, write_vad_folder, section, value):
    """What the front end takes from a VAD's config.yaml is looked for before anything is started with it."""
    folder = write_vad_folder(tmp_path / "vad")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config[section] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ModelDamaged, match=rf"config\.yaml is damaged: {section} is missing\."):
        models.read_vad("mine", folder)


def test_a_vad_model_is_not_a_recognition_model(tmp_path, write_vad_folder, write_asr_folder):
    """The two kinds cannot be swapped."""
    vad = write_vad_folder(tmp_path / "vad")
    asr = models.find_asr(str(write_asr_folder(tmp_path / "asr")), tmp_path)
    with pytest.raises(ModelDamaged, match="is not a recognition model"):
        models.find_asr(str(vad), tmp_path)
    with pytest.raises(ModelDamaged, match="is not a voice activity model"):
        models.find_vad(str(asr.path), tmp_path, beside=asr)


def test_without_configuration_json_the_usual_names_hold(tmp_path, write_asr_folder):
    """A folder without configuration.json is read by the usual names, if it has one tokenizer."""
    folder = write_asr_folder(tmp_path / "mine")
    (folder / "configuration.json").unlink()
    assert models.find_asr(str(folder), tmp_path).tokenizer == folder / "tiny.bpe.model"
    (folder / "other.bpe.model").write_bytes(b"pieces")
    with pytest.raises(ModelDamaged, match=r"has 2 files \*\.bpe\.model"):
        models.find_asr(str(folder), tmp_path)


def test_the_real_side_files_are_understood(tmp_path, shared_data):
    """SenseVoiceSmall's and FSMN-VAD's own configuration give the known feature layouts."""
    folder = tmp_path / "iic" / "SenseVoiceSmall"
    folder.mkdir(parents=True)
    for file in (shared_data / "sensevoice_small").iterdir():
        shutil.copyfile(file, folder / file.name)
    (folder / "model.pt").write_bytes(b"stands for the weights")
    asr = models.find_asr("iic/SenseVoiceSmall", tmp_path)
    assert asr.tokenizer.name == "chn_jpn_yue_eng_ko_spectok.bpe.model"
    assert (asr.frontend.lfr_m, asr.frontend.lfr_n, asr.frontend.dim) == (7, 6, 560)
    assert asr.frontend.window == "hamming"
    vad = models.find_vad(str(shared_data / "fsmn_vad"), tmp_path, beside=asr)
    assert (vad.frontend.lfr_m, vad.frontend.lfr_n, vad.frontend.dim) == (5, 1, 400)
    assert vad.config["model_conf"]["max_end_silence_time"] == 800


def test_the_demo_model_is_packaged():
    """`demo` is a recognition model with a VAD of its own, in FunASR's layout."""
    if not (models.DEMO_DIR / "config.yaml").is_file():
        pytest.skip("the demo model has not been trained in this checkout: tools/train_demo.py")
    demo = models.find_asr("demo", models.DEMO_DIR)
    assert demo.name == "demo"
    assert models.find_vad("auto", models.DEMO_DIR, beside=demo).path == models.DEMO_DIR / "vad"
