"""The wheel as users get it, and what `make install` and `make uninstall` do with it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import sensevoiced
import svctl

_ENTRY = "sensevoiced.__main__:main"
_MANUAL = {"man1/svctl.1", "man5/sensevoiced.toml.5", "man8/sensevoiced.8"}


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory):
    """The wheel, built from this checkout without a package index."""
    pytest.importorskip("hatchling", reason="the [dev] extra is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *words, str(repository)], check=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def metadata(wheel):
    """The wheel's METADATA, and the names of its files."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (file,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(file).decode()), names


def test_the_base_install_is_the_client_alone(metadata):
    """Without an extra, only click and msgpack come along."""
    required = metadata[0].get_all("Requires-Dist")
    base = {re.match(r"[\w-]+", line)[0] for line in required if "extra ==" not in line}
    assert base == {"click", "msgpack"}
    assert set(metadata[0].get_all("Provides-Extra")) == {"daemon", "hub", "funasr", "fuzz", "dev"}


def test_both_packages_have_one_version(metadata):
    """Client and daemon ship together and say the same version."""
    assert metadata[0]["Version"] == sensevoiced.__version__ == svctl.__version__


def test_the_wheel_holds_both_packages_and_nothing_else(metadata):
    """Code, type markers, the protocol's description, the demo model, svctl; no tests, tools or units."""
    names = [name for name in metadata[1] if not name.endswith(".data/scripts/svctl")]
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"sensevoiced", "svctl"}
    assert {"sensevoiced/py.typed", "svctl/py.typed"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


def test_svctl_is_a_script_and_no_wrapper(wheel):
    """What is installed as svctl is its own first module, for the interpreter that installs it."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".data/scripts/svctl"))
        first, *rest = archive.read(name).decode().splitlines()
        (points,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        assert archive.read(points).decode().split() == ["[console_scripts]", "sensevoiced", "=", _ENTRY]
        assert archive.getinfo(name).external_attr >> 16 & 0o111 == 0o111
    assert first == "#!python"
    assert rest == Path(svctl.__file__).with_name("__main__.py").read_text("utf-8").splitlines()[1:]


@pytest.mark.parametrize("folder", ["svctl", "sensevoiced"])
def test_every_file_of_the_packages_is_in_the_wheel(repository, metadata, folder):
    """What lies beside the code (PROTOCOL.md, the demo model, its samples) is installed with it."""
    there = {
        str(file.relative_to(repository))
        for file in (repository / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert there - set(metadata[1]) == set()


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="is for x86-64")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_compiled_layers_are_in_the_wheel(wheel, metadata):
    """It is then for this platform, and for any Python; it is built from the source that lies beside."""
    assert re.fullmatch(r"sensevoiced-.*-py3-none-linux_x86_64\.whl", wheel.name)
    assert {"sensevoiced/engine/libsensevoice.so", "sensevoiced/engine/native.c"} <= set(metadata[1])


@pytest.fixture
def build(monkeypatch):
    """What builds the compiled layers."""
    pytest.importorskip("hatchling", reason="the [dev] extra is not installed")
    from tools import build_native

    monkeypatch.setattr(build_native.sys, "platform", "linux")
    monkeypatch.setattr(build_native.platform, "machine", lambda: "x86_64")
    return build_native.build


@pytest.mark.parametrize(
    ("compiler", "sentence"),
    [
        ("no-such-compiler", "there is no C compiler no-such-compiler; install one, or name it in CC."),
        ("false --really", "false failed"),
        ("'cc", "the compiler's name in CC cannot be read"),
    ],
)
def test_without_a_working_compiler_there_is_a_sentence(  # noqa: PLR0917 - fixtures
    build, monkeypatch, tmp_path, repository, compiler, sentence
):
    """No half of a library is left, and one that is there stays: the engine looks what it was built from."""
    library = tmp_path / "libsensevoice.so"
    library.write_bytes(b"of another environment")
    monkeypatch.setenv("CC", compiler)
    assert build(repository / "sensevoiced/engine/native.c", library).startswith(sentence)
    assert list(tmp_path.iterdir()) == [library]


def test_a_compiler_may_say_anything(build, monkeypatch, tmp_path, repository):
    """What is no UTF-8, too; and an empty CC means cc."""
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\nprintf '\\344\\n' >&2; exit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CC", " ")
    lacking = build(repository / "sensevoiced/engine/native.c", tmp_path / "libsensevoice.so")
    assert lacking == "cc failed: \ufffd"


def test_where_nothing_can_be_written_there_is_a_sentence(build, tmp_path, repository):
    """As in a source tree on a read-only disk."""
    lacking = build(repository / "sensevoiced/engine/native.c", tmp_path / "absent" / "libsensevoice.so")
    assert lacking.startswith(f"No such file or directory ({tmp_path / 'absent'}")


def test_for_other_processors_nothing_is_compiled(build, monkeypatch, tmp_path, repository):
    """The package is whole without."""
    monkeypatch.setattr("tools.build_native.platform.machine", lambda: "aarch64")
    monkeypatch.setenv("CC", "no-such-compiler")
    lacking = build(repository / "sensevoiced/engine/native.c", tmp_path / "libsensevoice.so")
    assert lacking == "they are for Linux on x86-64."


def test_the_package_stays_small(wheel):
    """With the demo model the wheel is below 20 MB: the model itself may take 16."""
    assert wheel.stat().st_size < 20e6


@pytest.fixture
def bare(wheel, tmp_path):
    """Run a module of the base install: in an environment with click and msgpack only."""
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False)
    (site,) = bare.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for name in ("click", "msgpack"):
        found = subprocess.run(
            [sys.executable, "-c", f"import {name}; print({name}.__path__[0])"],
            capture_output=True,
            text=True,
            check=True,
        )
        (site / name).symlink_to(found.stdout.strip())
    python = str(bare / "bin" / "python")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def run(*words):
        done = [python, "-m", *words]
        return subprocess.run(done, capture_output=True, text=True, timeout=30, env=environment)

    return run


def test_the_client_starts_without_the_daemons_dependencies(bare, tmp_path):
    """The base install's svctl shows its help and says that no daemon runs."""
    shown = bare("svctl", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "transcribe" in shown.stdout
    missing = bare("svctl", "ping", "--wait", "0", "--socket", str(tmp_path / "none.sock"))
    assert missing.returncode == os.EX_UNAVAILABLE
    assert len(missing.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "extra"), [([], "daemon"), (["serve"], "daemon"), (["fetch"], "hub"), (["fetch", "-h"], "hub")]
)
def test_a_missing_extra_is_named(bare, words, extra):
    """What the base install cannot do, it answers with one sentence that says how to install it."""
    done = bare("sensevoiced", *words)
    assert done.returncode == os.EX_CONFIG
    (line,) = done.stderr.splitlines()
    assert line.startswith("sensevoiced: No module named 'yaml'; ")
    assert line.endswith(f"needs its extra: pip install 'sensevoiced[{extra}]'")


def test_each_extra_brings_what_its_code_imports(metadata):
    """`sensevoiced fetch` reads a model's YAML before it places it, so [hub] alone brings PyYAML."""
    required = metadata[0].get_all("Requires-Dist")
    for extra, name in (("hub", "pyyaml"), ("daemon", "pyyaml"), ("hub", "modelscope-hub")):
        wanted = re.compile(rf"{name}\b.*extra == '{extra}'")
        assert [line for line in required if wanted.match(line)], (extra, name)


@pytest.fixture
def make(repository, wheel, tmp_path):
    """Run make with everything below `tmp_path`: nothing is downloaded, and no systemd is told."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")

    def run(target, home=None, **variables):
        words = {
            "PYTHON": sys.executable,
            "INSTALL_FROM": str(wheel),
            "INSTALL_EXTRAS": "",
            "INSTALL_PIP_ARGS": "--no-deps --no-index",
            "SYSTEMD": "",
            **variables,
        }
        command = ["make", "--no-print-directory", "-C", str(repository), target]
        command += [f"{name}={value}" for name, value in words.items()]
        environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
        if home is not None:
            environment = {k: v for k, v in environment.items() if not k.startswith("XDG_")}
            environment["HOME"] = str(home)
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)

    return run


def _files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_install_and_uninstall_below_a_prefix(make, tmp_path):
    """Commands run, units name them, a changed configuration is kept, and nothing else is left behind."""
    prefix, conf = tmp_path / "prefix", tmp_path / "etc"
    places = {"PREFIX": prefix, "CONFDIR": conf}
    done = make("install", **places)
    assert done.returncode == 0, done.stderr
    version = subprocess.run([prefix / "bin" / "sensevoiced", "--version"], capture_output=True, text=True)
    assert version.stdout.split()[-1] == sensevoiced.__version__
    for folder in ("system", "user"):
        unit = (prefix / "lib" / "systemd" / folder / "sensevoiced.service").read_text()
        assert f"\nExecStart={prefix}/bin/sensevoiced\n" in unit
    expected = {"lib/sysusers.d/sensevoiced.conf", "lib/tmpfiles.d/sensevoiced.conf", "bin/svctl"}
    assert expected <= _files(prefix)
    assert _files(prefix / "share" / "man") == _MANUAL
    settings = conf / "sensevoiced.toml"
    settings.write_text(settings.read_text() + "\n[serving]\nmax_jobs = 8\n")
    mine = settings.read_text()
    assert make("install", **places).returncode == 0
    assert settings.read_text() == mine
    assert (conf / "sensevoiced.toml.new").is_file()
    done = make("uninstall", **places)
    assert done.returncode == 0, done.stderr
    assert _files(prefix) == set()
    assert _files(conf) == {"sensevoiced.toml"}


def test_a_staged_install_names_its_final_place(make, tmp_path):
    """With DESTDIR, everything is below it, and no file that is run or read names the staging folder."""
    stage = tmp_path / "stage"
    done = make("install", DESTDIR=stage, PREFIX="/opt/sensevoice")
    assert done.returncode == 0, done.stderr
    root = stage / "opt" / "sensevoice"
    assert str((root / "bin" / "svctl").readlink()) == "/opt/sensevoice/lib/sensevoiced/bin/svctl"
    first = (root / "lib" / "sensevoiced" / "bin" / "sensevoiced").read_text().splitlines()[0]
    assert first == "#!/opt/sensevoice/lib/sensevoiced/bin/python"
    unit = (root / "lib" / "systemd" / "system" / "sensevoiced.service").read_text()
    assert "ExecStart=/opt/sensevoice/bin/sensevoiced\n" in unit
    assert (stage / "etc" / "sensevoice" / "sensevoiced.toml").is_file()
    assert _files(root / "share" / "man") == _MANUAL
    assert make("uninstall", DESTDIR=stage, PREFIX="/opt/sensevoice").returncode == 0
    assert _files(stage) == set()


def test_install_user_stays_below_the_home_folder(make, tmp_path):
    """Units lie where `systemctl --user` looks and name the command that runs; uninstall-user removes all."""
    home = tmp_path / "home"
    home.mkdir()
    done = make("install-user", home)
    assert done.returncode == 0, done.stderr
    made = re.findall(r"'([^']+)'", "".join(re.findall(r"(?m)^install -d .*$", done.stdout)))
    assert made
    assert [place for place in made if not place.startswith(f"{home}/")] == []
    command = home / ".local" / "bin" / "sensevoiced"
    version = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert version.stdout.split()[-1] == sensevoiced.__version__
    units = home / ".local" / "share" / "systemd" / "user"
    assert f"\nExecStart={command}\n" in (units / "sensevoiced.service").read_text()
    assert (home / ".config" / "sensevoice" / "sensevoiced.toml").is_file()
    assert f"next: {command} fetch;" in done.stdout
    program = home / ".local" / "lib" / "sensevoiced"
    assert {name for name in _ours(home) if not (home / name).is_relative_to(program)} == {
        ".local/bin/sensevoiced",
        ".local/bin/svctl",
        ".local/share/systemd/user/sensevoiced.service",
        ".local/share/systemd/user/sensevoiced.socket",
        ".config/sensevoice/sensevoiced.toml",
        *(f".local/share/man/{page}" for page in _MANUAL),
    }
    _verify_user_units(units, tmp_path)
    done = make("uninstall-user", home)
    assert done.returncode == 0, done.stderr
    assert _ours(home) == set()


def _ours(home):
    """Files where installing may put any; pip's cache and what it asks for its user agent lie elsewhere."""
    return {name for name in _files(home) if name.startswith((".local/", ".config/"))}


def _verify_user_units(units, tmp_path):
    """Where systemd-analyze is installed, it has nothing to say against the units."""
    program = shutil.which("systemd-analyze")
    if program is None:
        return
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    words = [program, "--user", "verify", units / "sensevoiced.socket", units / "sensevoiced.service"]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_install_user_follows_the_xdg_folders(make, tmp_path):
    """Folders that the user has moved are where systemd and the daemon look, and so where things go."""
    home = tmp_path / "home"
    home.mkdir()
    places = {"XDG_CONFIG_HOME": tmp_path / "conf", "XDG_DATA_HOME": tmp_path / "data"}
    done = make("install-user", home, **places)
    assert done.returncode == 0, done.stderr
    assert _files(tmp_path / "conf") == {"sensevoice/sensevoiced.toml"}
    assert _files(tmp_path / "data") == {
        "systemd/user/sensevoiced.service",
        "systemd/user/sensevoiced.socket",
    }
