"""What holds of all settings, and not only of the examples in test_config.py."""

from __future__ import annotations

import dataclasses
import math
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from sensevoiced import settings
from sensevoiced.config import Config, ConfigError

BUSY = hypothesis(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Machines that test are busy: slowness says nothing of the property."""
SECTIONS = settings._SECTIONS
FIELDS = {
    f"{section}.{field.name}" if section else field.name: field
    for section, kind in {"": Config, **SECTIONS}.items()
    for field in dataclasses.fields(kind)
    if section or field.name not in SECTIONS
}
FITTING = {"frontend.children": (1, 16), "frontend.max_children": (16, 1_024)}
"""So that neither is above the other, nor above its default: test_config.py has what happens otherwise."""
MAX_INT = 2**63 - 1
"""What TOML promises."""

printable = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), min_size=1, max_size=20)
plain = printable.filter(lambda text: not text.startswith("~"))


def _number(name, kind):
    low, high = FITTING.get(name) or settings._RANGES.get(name, settings._ANY_S)
    return st.integers(int(low), int(high)) if kind == "int" else st.floats(low, high)


def _valid(name):
    """Values that a setting takes, as TOML holds them."""
    kind = str(FIELDS[name].type)
    if kind in ("int", "float"):
        return _number(name, kind)
    if kind == "bool":
        return st.booleans()
    if name in settings._CHOICES:
        return st.sampled_from(settings._CHOICES[name])
    if name == "device":
        return st.sampled_from(["auto", "cpu", "cuda", "cuda:0", "cuda:15"])
    return plain


valid = st.fixed_dictionaries({}, optional={name: _valid(name) for name in FIELDS})
"""Any settings, by their full names."""


def toml_text(value):
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "nan" if math.isnan(value) else repr(value)
    if isinstance(value, str):
        kept = set(string.printable) - set('\\"\t\n\r\x0b\x0c')
        return '"' + "".join(c if c in kept or c > "\x9f" else f"\\U{ord(c):08x}" for c in value) + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml_text, value))}]"
    if isinstance(value, dict):
        pairs = (f"{toml_text(key)} = {toml_text(inner)}" for key, inner in value.items())
        return f"{{{', '.join(pairs)}}}"
    return str(value)


def toml_file(values):
    """A file of settings by their full names."""
    lines = []
    for section in ("", *SECTIONS):
        names = [name for name in values if name.rpartition(".")[0] == section]
        lines += [f"[{section}]"] if section and names else []
        lines += [f"{name.rpartition('.')[2]} = {toml_text(values[name])}" for name in names]
    return "\n".join(lines) + "\n"


def flat(config):
    """All settings of a configuration by their full names, as a file would hold them."""
    found = {}
    for name in FIELDS:
        section, _, key = name.rpartition(".")
        value = getattr(getattr(config, section) if section else config, key)
        found[name] = str(value) if isinstance(value, Path) else value
    return found


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Load from the texts of the two files, an environment and flags; a file is bytes or None."""
    folder = tmp_path_factory.mktemp("settings")
    system, user = folder / "system.toml", folder / settings.USER_FILE
    user.parent.mkdir()

    def run(*, on_system=None, on_user=None, environ=(), flags=()):
        for file, content in ((system, on_system), (user, on_user)):
            file.unlink(missing_ok=True)
            if content is not None:
                file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return settings.load(dict(flags), {"XDG_CONFIG_HOME": str(folder), **dict(environ)})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "SYSTEM_FILE", system)
        yield run


def as_text(values):
    """What of these settings can be given as flags and in the environment, as text."""
    return {name: str(value) for name, value in values.items() if name in settings._FLAGS}


@hypothesis(BUSY, max_examples=150)
@given(on_system=valid, on_user=valid, environ=valid, flags=valid)
def test_settings_are_what_the_last_source_says(load, on_system, on_user, environ, flags):
    """Any settings in any source: each is as written, by the source that goes over the others."""
    environ, flags = as_text(environ), as_text(flags)
    expected = {**on_system, **on_user}
    expected |= {
        name: int(text) if name == "threads" else text for name, text in {**environ, **flags}.items()
    }
    config = load(
        on_system=toml_file(on_system),
        on_user=toml_file(on_user),
        environ={settings.ENVIRONMENT[name]: text for name, text in environ.items()},
        flags=flags,
    )
    found = flat(config)
    for name, value in expected.items():
        path = str(FIELDS[name].type) == "Path"
        assert found[name] == (str(Path(value)) if path else value), name
    untouched = flat(load())
    assert {name: found[name] for name in FIELDS if name not in expected} == {
        name: untouched[name] for name in FIELDS if name not in expected
    }


@hypothesis(BUSY, max_examples=150)
@given(values=valid)
def test_a_configuration_written_down_is_read_back_the_same(load, values):
    """What is in force, written as a file, is in force again."""
    config = load(on_user=toml_file(values))
    again = load(on_system='model = "other"', on_user=toml_file(flat(config)))
    assert again == config
    assert settings.differences(config, again) == []


def is_one_sentence(error):
    """Whether a person gets one line that cannot steer the terminal."""
    text = str(error)
    return text.isprintable() and text.endswith((".", "?")) and len(text) < 1_000


numbers = st.integers(-MAX_INT, MAX_INT) | st.integers(-(10**400), 10**400) | st.floats()
anything = st.recursive(
    numbers | st.booleans() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from([*FIELDS, *SECTIONS]) | st.text(max_size=12)


@hypothesis(BUSY, max_examples=400)
@given(values=st.dictionaries(names, anything, max_size=3))
@example(values={"a\nb": 1})
@example(values={"\x1b[31mred": 1})
@example(values={"serving.idle_timeout_s": 10**400})
@example(values={"threads": 10**400})
@example(values={"socket_mode": -(10**400)})
@example(values={"model": "~a\0b"})
@example(values={"model": "a\0b"})
@example(values={"x" * 2_000: 1})
@example(values={"serving": {"x\r": 1, "a.b": 1}})
@example(values={"0.": 1})
def test_anything_in_a_file_is_used_or_gets_one_sentence(load, values):
    """Any value for any setting, or for none: a configuration of the right types, or a ConfigError."""
    # each by itself: names that repeat a section are another mistake
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        section = section if section in SECTIONS else ""
        head = f"[{section}]\n" if section else ""
        line = f"{toml_text(key if section else name)} = {toml_text(value)}"
        refused_or_right(load, on_user=f"{head}{line}\n")


def refused_or_right(load, **sources):
    """Load; where that works, every setting has its type, and can be written down and read back."""
    try:
        config = load(**sources)
    except ConfigError as error:
        assert is_one_sentence(error), str(error)  # noqa: PT017 - both outcomes are right
        return
    for name, value in flat(config).items():
        wanted = str(FIELDS[name].type)
        assert type(value).__name__ == ("str" if wanted == "Path" else wanted), name
    assert load(on_user=toml_file(flat(config))) == config


@hypothesis(BUSY, max_examples=300)
@given(content=st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
@example(content=b"a = " + b"[" * 20_000)
@example(content=b"model = 0x" + b"f" * 5_000)
@example(content=b"model = [0x" + b"f" * 5_000 + b"]")
@example(content=b"threads = " + b"9" * 5_000)
@example(content=b'"a\nb" = 1')
@example(content=b"\xff")
@example(content=b"a = 1\n\x00")
def test_any_bytes_as_a_file_are_used_or_get_one_sentence(load, content):
    """A file that is no TOML, or that makes its reader stumble, is told from one that is."""
    refused_or_right(load, on_user=content)


given_texts = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20
) | st.binary(max_size=8).map(lambda name: name.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
"""What an environment or an argument can hold: no zero byte, and what is no UTF-8 as Python has it."""


@hypothesis(BUSY, max_examples=300)
@given(name=st.sampled_from(settings._FLAGS), text=given_texts, by_flag=st.booleans())
@example(name="threads", text="9" * 5_000, by_flag=True)
@example(name="threads", text="²", by_flag=True)
@example(name="threads", text="٣", by_flag=False)
@example(name="device", text="cuda:٣", by_flag=True)
@example(name="device", text="cpu\n", by_flag=True)
@example(name="vad", text="~\nx", by_flag=False)
def test_any_text_as_a_flag_or_in_the_environment_is_used_or_gets_one_sentence(load, name, text, by_flag):
    """The same rules as in a file: the text itself, or a sentence."""
    source = {"flags": {name: text}} if by_flag else {"environ": {settings.ENVIRONMENT[name]: text}}
    try:
        config = load(**source)
    except ConfigError as error:
        assert is_one_sentence(error), str(error)  # noqa: PT017 - both outcomes are right
        return
    found = flat(config)[name]
    if text:
        assert str(found) == (str(Path(text).expanduser()) if FIELDS[name].type == "Path" else text) or (
            name == "threads" and found == int(text)
        )
    if name == "device" and text:
        assert text.isascii()
        assert text.isprintable()
