"""Settings from files, environment and flags."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path

import pytest

from sensevoiced import settings
from sensevoiced.__main__ import main
from sensevoiced.config import BatchLimits, Config, ConfigError, FrontendConfig, ServingConfig


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home and a system folder of our own; gives a function that loads with flags and environment."""
    monkeypatch.setattr(settings, "SYSTEM_FILE", tmp_path / "etc" / "sensevoiced.toml")
    (tmp_path / "etc").mkdir()
    (tmp_path / "home" / ".config" / "sensevoice").mkdir(parents=True)

    def load(*, system=None, user=None, environ=(), **flags):
        if system is not None:
            settings.SYSTEM_FILE.write_text(system)
        if user is not None:
            (tmp_path / "home" / ".config" / "sensevoice" / "sensevoiced.toml").write_text(user)
        return settings.load(flags, {"HOME": str(tmp_path / "home"), **dict(environ)})

    return load


def test_without_any_setting_the_defaults_hold(home):
    """Nothing has to be configured."""
    config = home()
    assert (config.model, config.device, config.engine) == ("iic/SenseVoiceSmall", "auto", "torch")
    assert config.serving == ServingConfig()


def test_flags_go_over_environment_over_user_over_system(home):
    """Each source wins over the one below it, setting by setting."""
    everything = {"system": 'model = "a"\nvad = "a"\ndevice = "cpu"\nthreads = 1\nengine = "funasr"'}
    everything["user"] = 'model = "b"\nvad = "b"\ndevice = "cuda"\nthreads = 2'
    everything["environ"] = {"SENSEVOICED_MODEL": "c", "SENSEVOICED_VAD": "c", "SENSEVOICED_THREADS": "3"}
    config = home(**everything, model="d")
    found = (config.model, config.vad, config.threads, config.device, config.engine)
    assert found == ("d", "c", 3, "cuda", "funasr")


def test_sections_of_two_files_are_joined(home):
    """A user's limit does not undo the system's others."""
    config = home(system="[serving]\nmax_jobs = 7\nbacklog = 9", user="[serving]\nmax_jobs = 8")
    assert (config.serving.max_jobs, config.serving.backlog) == (8, 9)


def test_a_named_file_replaces_both(home, tmp_path):
    """--config reads that file and no other."""
    (tmp_path / "own.toml").write_text('device = "cpu"')
    config = home(system='model = "a"', user='model = "b"', config=str(tmp_path / "own.toml"))
    assert (config.model, config.device) == ("iic/SenseVoiceSmall", "cpu")


def test_the_socket_is_the_clients_too(home):
    """SENSEVOICE_SOCKET names it for both sides; a flag wins; otherwise it is in the runtime folder."""
    environ = {"SENSEVOICE_SOCKET": "/run/x/a.sock"}
    assert home(environ=environ).socket == Path("/run/x/a.sock")
    assert home(environ=environ, socket="/run/x/b.sock").socket == Path("/run/x/b.sock")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"STATE_DIRECTORY": "/var/lib/sensevoice"}, "/var/lib/sensevoice/models"),
        ({"STATE_DIRECTORY": "/a:/b"}, "/a/models"),
        ({"SENSEVOICED_MODELS_DIR": "/m"}, "/m"),
    ],
)
def test_models_are_below_the_state_folder(home, environ, expected):
    """StateDirectory= of the unit decides unless a setting does."""
    assert home(environ=environ).models_dir == Path(expected)


def test_models_of_a_user_are_in_their_own_state_folder(home, monkeypatch):
    """Without root and without systemd."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert home(environ={"XDG_STATE_HOME": "/s"}).models_dir == Path("/s/sensevoice/models")
    assert home(environ={"HOME": "/h"}).models_dir == Path("/h/.local/state/sensevoice/models")
    assert home(environ={"XDG_RUNTIME_DIR": "/run/user/1"}).socket == Path("/run/user/1/sensevoice/api.sock")


def test_the_socket_mode_is_octal_as_text(home):
    """`"0600"` means what chmod means by it."""
    assert home(user='socket_mode = "0600"').socket_mode == 0o600
    assert home(user="socket_mode = 0o666").socket_mode == 0o666


def test_whole_numbers_serve_as_seconds(home):
    """Nobody should have to write 25.0."""
    assert home(user="[serving]\ndrain_timeout_s = 25").serving.drain_timeout_s == 25.0


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ('modle = "demo"', "modle is no setting of sensevoiced; did you mean model"),
        (
            "[serving]\nmax_job = 1",
            r"serving.max_job is no setting of section \[serving\]; did you mean max_jobs",
        ),
        ("[server]\nmax_jobs = 1", "server is no setting of sensevoiced"),
        ("serving = 3", r"serving is a section, \[serving\], not a value"),
        ("model = 5", "model takes text in quotes, not 5"),
        ('model = ""', "model is empty"),
        ("socket = 5", "socket takes a path, not 5"),
        ('socket = "~nosuchuser/s"', "socket: the home folder of '~nosuchuser' is not known"),
        ('model = "~nosuchuser/m"', "model: the home folder of '~nosuchuser' is not known"),
        ('vad = "~nosuchuser/v"', "vad: the home folder of '~nosuchuser' is not known"),
        ('threads = "2"', "threads takes a whole number, not '2'"),
        ("threads = 2.5", "threads takes a whole number, not 2.5"),
        ("threads = true", "threads takes a whole number, not True"),
        ("threads = -1", "threads takes 0 to 1024, not -1"),
        ('device = "gpu"', "device takes auto, cpu, cuda or cuda:N, not 'gpu'"),
        ('device = "cuda:x"', "device takes auto"),
        ('precision = "int4"', "precision takes one of auto, float32"),
        ('engine = "onnx"', "engine takes one of torch, funasr"),
        ('log_level = "loud"', "log_level takes one of debug"),
        ('socket_mode = "0777"', "socket_mode takes 0600 to 0666, not 0777"),
        ("[serving]\nhello_timeout_s = 0", "serving.hello_timeout_s takes 0.001 to"),
        ("[serving]\nhello_timeout_s = nan", "serving.hello_timeout_s takes 0.001 to"),
        ("[serving]\nmax_jobs = 0", "serving.max_jobs takes 1 to"),
        (
            "[frontend]\nchildren = 9\nmax_children = 3",
            r"frontend.children \(9\) is above frontend.max_children \(3\)",
        ),
        ("model = demo", "is not valid TOML"),
        ("model = 'a'\nmodel = 'b'", "is not valid TOML"),
    ],
)
def test_what_cannot_be_used_gets_one_sentence(home, toml, sentence):
    """Where, which setting, and what it takes."""
    with pytest.raises(ConfigError, match=sentence) as caught:
        home(user=toml)
    text = str(caught.value)
    assert "\n" not in text
    if "above" not in sentence:
        assert text.startswith(str(Path(settings.USER_FILE).name)) or "sensevoiced.toml: " in text


def test_environment_and_flags_are_named_in_their_errors(home):
    """The sentence says where the wrong value came from."""
    with pytest.raises(ConfigError, match=r"^Environment: SENSEVOICED_DEVICE takes auto"):
        home(environ={"SENSEVOICED_DEVICE": "tpu"})
    with pytest.raises(ConfigError, match=r"^--threads takes a whole number, not 'two'"):
        home(threads="two")
    with pytest.raises(ConfigError, match="there is no such file"):
        home(config="/nowhere.toml")


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "socket", "giant"])
def test_what_is_no_file_of_settings_is_refused_at_once(home, tmp_path, kind):
    """One sentence that names it: nobody waits for a FIFO's writer, and nothing endless is read."""
    path = tmp_path / "own.toml"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        with path.open("wb") as file:
            file.truncate(2**40)  # and takes no room
    wanted = r"own\.toml: (is no regular file|cannot be read|holds more than 1 MiB)"
    with pytest.raises(ConfigError, match=wanted):
        home(config=str(path))


def test_the_null_device_stands_for_no_settings(home, tmp_path):
    """Named, and as a link in the place of a file."""
    (tmp_path / "own.toml").symlink_to("/dev/null")
    assert home(config="/dev/null") == home(config=str(tmp_path / "own.toml")) == home()


def test_every_number_has_a_range_that_its_default_fits():
    """A new limit is either in seconds or has its range in the table, and the table names no other."""
    known = set()
    for section, kind in {
        "": Config,
        "frontend": FrontendConfig,
        "batch": BatchLimits,
        "serving": ServingConfig,
    }.items():
        for field in dataclasses.fields(kind):
            name = f"{section}.{field.name}" if section else field.name
            if field.type not in ("int", "float"):
                continue
            known.add(name)
            default = field.default_factory() if field.default is dataclasses.MISSING else field.default
            low, high = settings._RANGES.get(name, settings._ANY_S)
            assert low <= default <= high, name
            assert name in settings._RANGES or name.endswith("_s"), name
    assert set(settings._RANGES) <= known


def test_differences_are_named(home):
    """A reload can say what changed."""
    old, new = home(), home(user='model = "demo"\n[serving]\nmax_jobs = 3')
    assert settings.differences(old, new) == ["model", "serving.max_jobs"]
    assert settings.differences(old, old) == []


def test_check_config_says_what_is_wrong_and_exits_78(tmp_path, capsys, monkeypatch):
    """One sentence on stderr, sysexits' EX_CONFIG; 0 for a good one."""
    file = tmp_path / "c.toml"
    file.write_text("threads = -1")
    assert main(["check-config", "--config", str(file)]) == 78
    assert capsys.readouterr().err == f"sensevoiced: {file}: threads takes 0 to 1024, not -1.\n"
    file.write_text(f'models_dir = "{tmp_path}"')
    assert main(["check-config", "--config", str(file)]) == 78
    assert "sensevoiced fetch" in capsys.readouterr().err
    file.write_text('model = "demo"')
    assert main(["check-config", "--config", str(file)]) == 0


def test_a_missing_model_is_one_sentence_and_78(tmp_path, capsys):
    """What is missing, and the command that fetches it."""
    status = main(["--model", "iic/SenseVoiceSmall", "--models-dir", str(tmp_path), "--config", "/dev/null"])
    error = capsys.readouterr().err
    assert status == 78
    assert "sensevoiced fetch" in error
    assert error.count("\n") == 1
