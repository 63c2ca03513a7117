"""Finds model folders on this machine, offline, and says what is in them, in FunASR's file layout.

Must never touch the network (that is hub.py) nor import torch or numpy: daemon and front end both read this.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from sensevoiced.config import DEFAULT_ASR, DEFAULT_VAD, ConfigError
from sensevoiced.features import FrontendSpec
from sensevoiced.jobs import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from collections.abc import Mapping

ALIASES: Mapping[str, str] = {
    "SenseVoiceSmall": DEFAULT_ASR,
    "FunAudioLLM/SenseVoiceSmall": DEFAULT_ASR,
    "fsmn-vad": DEFAULT_VAD,
    "funasr/fsmn-vad": DEFAULT_VAD,
}
"""Other names of the same model (Hugging Face's, FunASR's short ones): one folder, whatever its hub."""

DEMO = "demo"
DEMO_DIR = Path(__file__).resolve().parent / "demo"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LFS_POINTER = b"version https://git-lfs"
"""How a file begins that git left as a pointer: a common way to end up with a model of 134 bytes."""


class ModelMissing(ConfigError):
    """There is no such model on this machine; the sentence names the command that fetches it."""


class ModelDamaged(ConfigError):
    """A folder that does not hold a whole model of the right kind; the sentence says what is wrong."""


@dataclass(frozen=True, slots=True)
class AsrModel:
    """A SenseVoice model on this machine; `config` is the whole of config.yaml, as FunASR would read it."""

    name: str
    path: Path
    weights: Path
    tokenizer: Path
    frontend: FrontendSpec
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class VadModel:
    """An FSMN-VAD model on this machine; `config` is the whole of config.yaml, as FunASR would read it."""

    name: str
    path: Path
    weights: Path
    frontend: FrontendSpec
    config: Mapping[str, Any]


def canonical(name: str) -> str:
    """Give the one name a model is stored under: `FunAudioLLM/SenseVoiceSmall` is `iic/SenseVoiceSmall`."""
    return ALIASES.get(name, name)


def is_hub_id(name: str) -> bool:
    """Say whether `name` has the form owner/name, and so may become a folder below the models directory."""
    return _HUB_ID.fullmatch(name) is not None


def find_asr(name: str, models_dir: Path) -> AsrModel:
    """Find the recognition model `name`: `demo`, a folder, or a hub id below `models_dir`.

    Raises ModelMissing when there is none, ModelDamaged when the folder is not a whole SenseVoiceSmall.
    """
    path = _locate(name, models_dir, option="--model", demo=DEMO_DIR)
    return read_asr(_display_name(name, path), path)


def find_vad(name: str, models_dir: Path, *, beside: AsrModel) -> VadModel:
    """Find the VAD model `name`: `auto`, `demo`, a folder, or a hub id below `models_dir`.

    `auto` is the folder `vad` inside the recognition model's own folder where there is one (the demo model
    brings its VAD along), otherwise FunASR's FSMN-VAD below `models_dir`. Raises as find_asr does.
    """
    if name == "auto":
        own = beside.path / "vad"
        if _is_folder(own):
            return read_vad(f"{beside.name}/vad", own)
        name = DEFAULT_VAD
    path = _locate(name, models_dir, option="--vad", demo=DEMO_DIR / "vad")
    return read_vad(_display_name(name, path), path)


def present(models_dir: Path) -> tuple[str, ...]:
    """Name the recognition models that can be chosen by name: the demo, and those below `models_dir`.

    Looks at their config.yaml alone; a folder that cannot be read is left out.
    """
    found = [DEMO] if _says_asr(DEMO_DIR) else []
    try:
        folders = sorted(models_dir.glob("*/*"))
    except OSError:
        folders = []
    names = (f"{folder.parent.name}/{folder.name}" for folder in folders if _says_asr(folder))
    return (*found, *(name for name in names if is_hub_id(name)))


def _says_asr(folder: Path) -> bool:
    try:
        text = (folder / "config.yaml").read_text("utf-8", "replace")
    except OSError:
        return False
    return re.search(r"^model:\s*['\"]?SenseVoiceSmall\b", text, re.MULTILINE) is not None


def read_asr(name: str, path: Path) -> AsrModel:
    """Describe the recognition model in the folder `path`, or raise ModelDamaged."""
    config, files = _read_folder(path, kind="SenseVoiceSmall", what="recognition model")
    return AsrModel(
        name=name,
        path=path,
        weights=_present(path, files.get("init_param", "model.pt")),
        tokenizer=_present(path, _tokenizer_name(path, files)),
        frontend=_frontend_spec(path, config, files),
        config=config,
    )


def read_vad(name: str, path: Path) -> VadModel:
    """Describe the VAD model in the folder `path`, or raise ModelDamaged."""
    config, files = _read_folder(path, kind="FsmnVADStreaming", what="voice activity model")
    for section in ("model_conf", "encoder_conf"):
        if not isinstance(config.get(section), dict):
            raise ModelDamaged(f"{path / 'config.yaml'} is damaged: {section} is missing.")
    return VadModel(
        name=name,
        path=path,
        weights=_present(path, files.get("init_param", "model.pt")),
        frontend=_frontend_spec(path, config, files),
        config=config,
    )


def _display_name(name: str, path: Path) -> str:
    known = canonical(name)
    return known if known == DEMO or is_hub_id(known) else path.name


def _locate(name: str, models_dir: Path, *, option: str, demo: Path) -> Path:
    """Turn a name into a folder that exists; a plain path is never sought below `models_dir`."""
    if not name:
        raise ModelMissing(f"{option} is empty: name a model, a folder, or {DEMO}.")
    if name == DEMO:
        if not (demo / "config.yaml").is_file():
            raise ModelMissing(f"This installation lacks the demo model ({demo}): reinstall sensevoiced.")
        return demo
    known = canonical(name)
    if is_hub_id(known):
        stored = models_dir / known
        if _is_folder(stored):
            return stored
        # A relative path such as models/mine looks like a hub id; the models directory has the first word, so
        # that what a service loads does not depend on the folder it happens to be started in.
        if (Path(name) / "config.yaml").is_file():
            return Path(name).resolve()
        raise ModelMissing(_fetch_sentence(known, models_dir, option=option))
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise ModelMissing(f"{option} {name:.200} names the home of a user that does not exist.") from error
    if _is_folder(path):
        return path.resolve()
    if path.exists():
        raise ModelMissing(f"{option} {name} is a file: name the folder that holds model.pt and config.yaml.")
    raise ModelMissing(
        f"There is no model folder {name}: give {option} a folder, {DEMO}, or a name such as {DEFAULT_ASR}."
    )


def _is_folder(path: Path) -> bool:
    """Say whether there is such a folder; ModelMissing where the system will not say."""
    try:
        return path.is_dir()
    except OSError as error:  # a folder above it is closed to us, or the name is too long
        raise ModelMissing(f"{path!s:.200} cannot be looked at: {error.strerror}.") from error


def _fetch_sentence(known: str, models_dir: Path, *, option: str) -> str:
    # Asked for a VAD alone, fetch must not bring a gigabyte of recognition model along.
    wanted = f"--model {known}" if option == "--model" else f"--model none --vad {known}"
    command = f"sensevoiced fetch {wanted} --to {shlex.quote(str(models_dir))}"
    return f"The model {known} is not in {models_dir}: fetch it once with '{command}'."


def _read_folder(path: Path, *, kind: str, what: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Read config.yaml and configuration.json of a folder: the settings, and the file names by FunASR's key.

    The keys are `init_param`, `bpemodel` and `cmvn_file`; a folder without configuration.json is read by
    FunASR's usual names.
    """
    config_file = path / "config.yaml"
    try:
        config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelDamaged(f"{path} is not a model folder: it has no config.yaml.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ModelDamaged(_unreadable(config_file, error)) from error
    if not isinstance(config, dict):
        raise ModelDamaged(f"{config_file} is damaged: it holds no settings.")
    if config.get("model") != kind:
        raise ModelDamaged(
            f"{path} is not a {what}: its config.yaml says model: {config.get('model')!s:.60}, not {kind}."
        )
    return config, _file_names(path / "configuration.json")


def _file_names(file: Path) -> dict[str, str]:
    try:
        metas = json.loads(file.read_text(encoding="utf-8"))["file_path_metas"]
        found = {
            "init_param": metas.get("init_param"),
            "bpemodel": metas.get("tokenizer_conf", {}).get("bpemodel"),
            "cmvn_file": metas.get("frontend_conf", {}).get("cmvn_file"),
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelDamaged(_unreadable(file, error)) from error
    names = {key: name for key, name in found.items() if name is not None}
    for name in names.values():
        # A downloaded folder must not be able to name files outside itself.
        if (
            not isinstance(name, str)
            or PurePosixPath(name).is_absolute()
            or ".." in PurePosixPath(name).parts
        ):
            raise ModelDamaged(f"{file} is damaged: {name!r:.80} is not the name of a file in its folder.")
    return names


def _unreadable(file: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{file} cannot be read: {error.strerror or error}."
    return f"{file} is damaged: fetch the model again, or restore the file."


def _tokenizer_name(path: Path, files: Mapping[str, str]) -> str:
    named = files.get("bpemodel")
    if named is not None:
        return named
    candidates = sorted(file.name for file in (*path.glob("*.bpe.model"), *path.glob("tokenizer.model")))
    if len(candidates) == 1:
        return candidates[0]
    raise ModelDamaged(
        f"{path} names no tokenizer in configuration.json, and has {len(candidates)} files *.bpe.model."
    )


def _present(path: Path, name: str) -> Path:
    """Check that a file of the folder is there, is not empty, and is not a git-lfs pointer."""
    file = path / name
    try:
        with file.open("rb") as opened:
            head = opened.read(len(_LFS_POINTER))
    except FileNotFoundError:
        raise ModelDamaged(f"{path} is incomplete: {name} is missing.") from None
    except OSError as error:
        raise ModelDamaged(_unreadable(file, error)) from error
    if not head:
        raise ModelDamaged(f"{path} is incomplete: {name} is empty.")
    if head == _LFS_POINTER:
        raise ModelDamaged(
            f"{path} is incomplete: {name} is a git-lfs pointer, not the file (run 'git lfs pull' there)."
        )
    return file


def _frontend_spec(path: Path, config: Mapping[str, Any], files: Mapping[str, str]) -> FrontendSpec:
    """Read `frontend_conf`; what it leaves out has the value FunASR's WavFrontend gives it."""
    conf = config.get("frontend_conf")
    if not isinstance(conf, dict):
        raise ModelDamaged(f"{path / 'config.yaml'} is damaged: frontend_conf is missing.")
    try:
        spec = FrontendSpec(
            sample_rate_hz=int(conf.get("fs", SAMPLE_RATE_HZ)),
            window=str(conf.get("window", "hamming")),
            n_mels=int(conf.get("n_mels", 80)),
            frame_length_ms=float(conf.get("frame_length", 25)),
            frame_shift_ms=float(conf.get("frame_shift", 10)),
            lfr_m=int(conf.get("lfr_m", 1)),
            lfr_n=int(conf.get("lfr_n", 1)),
            cmvn=_present(path, files.get("cmvn_file", "am.mvn")),
        )
    except (TypeError, ValueError) as error:
        raise ModelDamaged(
            f"{path / 'config.yaml'} is damaged: a value of frontend_conf is not a number."
        ) from error
    if min(spec.n_mels, spec.frame_length_ms, spec.frame_shift_ms, spec.lfr_m, spec.lfr_n) <= 0:
        raise ModelDamaged(f"{path / 'config.yaml'} is damaged: a value of frontend_conf is not above zero.")
    if spec.sample_rate_hz != SAMPLE_RATE_HZ:
        raise ModelDamaged(
            f"{path} is a model for {spec.sample_rate_hz} Hz, and only {SAMPLE_RATE_HZ} Hz is served."
        )
    return spec
