"""What systemd itself says of the shipped units, and that the settings file shows the true defaults."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness.figures import within

from sensevoiced import settings
from sensevoiced.config import Config
from sensevoiced.daemon import CLOSE_S
from sensevoiced.heartbeat import HEARTBEAT_S
from sensevoiced.serving.server import CUT_OFF_S

KINDS = ("system", "user")
MAX_EXPOSURE = 1.0
"""Of 10; the hardening measured 0.7 with systemd 252, and a lost directive costs 0.1 to 0.4."""
MACHINE_DEPENDENT = {"socket", "models_dir", "cache_dir", "frontend.children"}
"""Settings whose default is derived at start; the file shows one of the values it can have."""


@pytest.fixture(scope="module")
def systemd(repository):
    """The folder of shipped units."""
    return repository / "systemd"


@pytest.fixture
def analyze(tmp_path, monkeypatch):
    """Run systemd-analyze; skipped where systemd is not installed."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))

    def run(*words):
        return subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture(params=KINDS)
def units(request, systemd, tmp_path):
    """Copies of one kind's units that start a program which exists, with the kind."""
    source = systemd if request.param == "system" else systemd / "user"
    folder = tmp_path / "units"
    folder.mkdir()
    for unit in ("sensevoiced.socket", "sensevoiced.service"):
        text = (source / unit).read_text().replace("/usr/local/bin/sensevoiced", sys.executable)
        (folder / unit).write_text(text)
    return request.param, folder


def test_systemd_accepts_the_units(units, analyze):
    """`systemd-analyze verify` has nothing to say: no unknown directive, no missing program."""
    kind, folder = units
    done = analyze(f"--{kind}", "verify", folder / "sensevoiced.socket", folder / "sensevoiced.service")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_service_is_sandboxed(systemd, analyze, tmp_path, record_property):
    """`systemd-analyze security` finds next to nothing that the system service could still reach.

    It parses every line on the way, and warns of none.
    """
    shutil.copy(systemd / "sensevoiced.service", tmp_path)
    done = analyze("security", "--offline=yes", tmp_path / "sensevoiced.service")
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze has no --offline (before systemd 250)")
    (score,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    within(record_property, "systemd-analyze security", float(score), MAX_EXPOSURE, "of 10", slack=1)
    assert "Unknown" not in done.stderr, "a directive or a system call that systemd does not know"


@pytest.mark.parametrize("folder", ["", "user"])
def test_every_line_of_a_service_has_its_reason(systemd, folder):
    """Right above each directive stands a comment; only the command itself speaks for itself."""
    lines = (systemd / folder / "sensevoiced.service").read_text().partition("[Service]\n")[2].splitlines()
    lines = lines[: lines.index("[Install]")]
    bare = [
        line
        for above, line in itertools.pairwise(["", *lines])
        if "=" in line and not line.startswith("#") and not above.startswith("# ")
    ]
    assert bare == ["ExecStart=/usr/local/bin/sensevoiced"]


@pytest.mark.parametrize("folder", ["", "user"])
def test_what_hangs_is_aborted_with_its_stacks(systemd, folder):
    """Watchdog, start and stop end in SIGABRT, which prints the stacks, and only then in SIGKILL."""
    directives = dict(_directives(systemd / folder / "sensevoiced.service"))
    assert {"WatchdogSignal", "KillMode", "SendSIGKILL"} & set(directives) == set(), "SIGABRT is the default"
    assert directives["TimeoutStartFailureMode"] == directives["TimeoutStopFailureMode"] == "abort"
    config = settings.load({}, {"HOME": "/nonexistent"})
    assert float(directives["WatchdogSec"]) > 3 * HEARTBEAT_S
    assert config.batch.stuck_after_s < config.load_timeout_s
    assert directives["LimitCORE"] == "0", "a dump holds recordings"


def _directives(path):
    lines = [line for line in path.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return [tuple(line.split("=", 1)) for line in lines]


@pytest.mark.parametrize("folder", ["", "user"])
def test_stopping_leaves_time_to_drain(systemd, folder):
    """The daemon's own time to finish accepted requests ends before systemd kills it."""
    directives = dict(_directives(systemd / folder / "sensevoiced.service"))
    config = settings.load({}, {"HOME": "/nonexistent"})
    ending_s = config.serving.drain_timeout_s + CLOSE_S + CUT_OFF_S
    assert ending_s < float(directives["TimeoutStopSec"])
    assert directives["Type"] == "notify"
    assert directives["ExecReload"].endswith("kill -HUP $MAINPID")
    assert directives["RestartPreventExitStatus"] == "78", "a bad configuration is not retried"


@pytest.mark.parametrize("folder", ["", "user"])
def test_the_socket_outlives_a_restart(systemd, folder):
    """Nothing of the service removes the folder that the socket unit's socket lies in."""
    assert "RuntimeDirectory" not in dict(_directives(systemd / folder / "sensevoiced.service"))
    socket = dict(_directives(systemd / folder / "sensevoiced.socket"))
    assert socket["FlushPending"] == "no"
    assert socket["Service"] == "sensevoiced.service"
    assert socket["ListenStream"].endswith("/sensevoice/api.sock")


@pytest.mark.parametrize("folder", ["", "user"])
def test_a_daemon_that_fails_at_once_is_tried_for_a_while(systemd, folder):
    """The limit of starts, which ends the socket too, is far beyond what restarts can reach in seconds."""
    service = dict(_directives(systemd / folder / "sensevoiced.service"))
    assert service["RestartSec"] == "250ms"
    assert (service["StartLimitIntervalSec"], service["StartLimitBurst"]) == ("60", "60")
    assert 60 * 0.25 >= 15, "seconds of attempts, even where each failed at once"


def test_the_service_keeps_what_it_computes_where_it_may_write(systemd):
    """The unit's cache folder, private to the daemon's user, is where the settings look for it."""
    service = dict(_directives(systemd / "sensevoiced.service"))
    assert (service["CacheDirectory"], service["CacheDirectoryMode"]) == ("sensevoice", "0700")
    given = {"CACHE_DIRECTORY": f"/var/cache/{service['CacheDirectory']}", "HOME": "/"}
    assert settings.load({}, given).cache_dir == Path("/var/cache/sensevoice")


def test_the_service_cannot_change_what_root_fetches_into(systemd):
    """No directive gives the daemon's user a folder for its state, or a writable path but a private /tmp."""
    names = {name for name, _ in _directives(systemd / "sensevoiced.service")}
    assert names & {"StateDirectory", "ReadWritePaths", "BindPaths"} == set()
    assert ("ProtectSystem", "strict") in _directives(systemd / "sensevoiced.service")
    owners = re.findall(r"(?m)^d (\S+) (\S+) (\S+) (\S+)", _tmpfiles(systemd).read_text())
    assert {(mode, user, group) for _, mode, user, group in owners} == {("0755", "root", "root")}


def _tmpfiles(systemd):
    return systemd / "tmpfiles.d" / "sensevoiced.conf"


def test_sysusers_and_tmpfiles_agree_with_the_units(systemd, tmp_path):
    """The user that the service runs as is created, and the folder where the service looks for models."""
    for program, file in (("systemd-sysusers", "sysusers.d"), ("systemd-tmpfiles", "tmpfiles.d")):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
        assert (systemd / file / "sensevoiced.conf").is_file()
    service = dict(_directives(systemd / "sensevoiced.service"))
    socket = dict(_directives(systemd / "sensevoiced.socket"))
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    words = ["systemd-sysusers", f"--root={root}", str(systemd / "sysusers.d" / "sensevoiced.conf")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"(?m)^{service['User']}:", (root / "etc" / "passwd").read_text())
    assert re.search(rf"(?m)^{socket['SocketGroup']}:", (root / "etc" / "group").read_text())
    words = [
        "systemd-tmpfiles",
        "--create",
        f"--root={root}",
        str(_tmpfiles(systemd)),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    variable, _, value = service["Environment"].partition("=")
    # The service's HOME is that of its user, and does not decide.
    models_dir = settings.load({}, {variable: value, "HOME": "/var/lib/sensevoice"}).models_dir
    assert (root / models_dir.relative_to("/")).is_dir()


def _uncommented(text):
    """The settings file with every default in force."""
    return re.sub(r"(?m)^#(?=\S)", "", text)


def _flat(config):
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            values |= {f"{field.name}.{key}": inner for key, inner in _flat(value).items()}
        else:
            values[field.name] = value
    return values


def test_the_settings_file_changes_nothing_as_shipped(systemd):
    """As it is installed, the file sets nothing at all."""
    shipped = settings.load({"config": str(systemd / "sensevoiced.toml")}, {"HOME": "/nonexistent"})
    assert shipped == settings.load({}, {"HOME": "/nonexistent"})


def test_the_settings_file_shows_every_default(systemd, tmp_path):
    """With every comment sign removed it loads, names every setting, and gives each its default."""
    text = _uncommented((systemd / "sensevoiced.toml").read_text())
    (tmp_path / "all.toml").write_text(text)
    shown = _flat(settings.load({"config": str(tmp_path / "all.toml")}, {"HOME": "/nonexistent"}))
    default = _flat(settings.load({}, {"HOME": "/nonexistent"}))
    assert {k: v for k, v in shown.items() if k not in MACHINE_DEPENDENT} == {
        k: v for k, v in default.items() if k not in MACHINE_DEPENDENT
    }
    named, section = set(), ""
    for line in text.splitlines():
        if opened := re.fullmatch(r"\[(\w+)\]", line):
            section = opened[1] + "."
        elif assigned := re.match(r"(\w+) = ", line):
            named.add(section + assigned[1])
    assert named == set(_flat(Config(socket=".", models_dir=".")))


def test_every_setting_is_explained(systemd):
    """Above each setting, or the group it stands in, there is a sentence."""
    lines = (systemd / "sensevoiced.toml").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"#\w+ = ", line):
            above = number - 1
            while re.match(r"#\w+ = ", lines[above]):
                above -= 1
            assert lines[above].startswith("# "), line
