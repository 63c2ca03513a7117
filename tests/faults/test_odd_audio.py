"""Section E of the abuse table, odd audio and odd clocks (F38)."""

from __future__ import annotations

import ast
import itertools
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from harness.abuse import only_error
from harness.asking import ask, essence
from harness.daemon import Canary, script, wait_until
from harness.demo import RATE_HZ, DemoCanary, DemoDaemon, sample, song, wav
from harness.figures import note, within
from harness.wire_client import memfd, texts

import sensevoiced
import svctl
from sensevoiced.config import FrontendConfig
from sensevoiced.engine.sensevoice import TorchEngine
from sensevoiced.frontend.audio import Recording
from sensevoiced.frontend.pipeline import Frontend, Pass
from sensevoiced.jobs import Options, Utterance
from sensevoiced.models import DEMO_DIR, find_asr, find_vad

JUMPING = Path(__file__).parents[1] / "harness" / "jumping_daemon.py"
SECONDS = 2


def tone(rate):
    """Two seconds of 440 Hz at full scale."""
    return np.sin(2 * np.pi * 440 * np.arange(SECONDS * rate) / rate).astype(np.float32)


def alternating(value, rate):
    """The value and its opposite in turn."""
    samples = np.full(SECONDS * rate, value, np.float32)
    samples[::2] *= -1
    return samples


ODD = {
    "nan": lambda rate: np.full(SECONDS * rate, np.nan, np.float32),
    "inf": lambda rate: np.full(SECONDS * rate, np.inf, np.float32),
    "minus-inf": lambda rate: np.full(SECONDS * rate, -np.inf, np.float32),
    "nan-inf-huge": lambda rate: np.resize(
        np.array([np.nan, np.inf, 3e38, -np.inf, -3e38, 0], np.float32), SECONDS * rate
    ),
    "huge": lambda rate: alternating(3e38, rate),
    "dc": lambda rate: np.full(SECONDS * rate, 0.5, np.float32),
    "dc-full-scale": lambda rate: np.full(SECONDS * rate, -1.0, np.float32),
    "zero": lambda rate: np.zeros(SECONDS * rate, np.float32),
    "denormal": lambda rate: alternating(1e-40, rate),
    "clipped-tone": lambda rate: (1_000 * tone(rate)).clip(-1, 1),
    "beyond-full-scale": lambda rate: 1_000 * tone(rate),
    "one-sample": lambda _: np.full(1, 0.5, np.float32),
    "10-ms": lambda rate: tone(rate)[: rate // 100],
}
"""Two seconds each of what nobody says anything in, but the last two."""


def odd_wav(kind, rate=RATE_HZ, channels=1):
    """The bytes of a float32 WAV."""
    samples = ODD[kind](rate)
    return wav(np.repeat(samples[:, None], channels, 1), rate, subtype="FLOAT")


@pytest.fixture(scope="module")
def frontend():
    """The real front end, as a child loads it."""
    asr = find_asr("demo", DEMO_DIR)
    vad = find_vad("auto", DEMO_DIR, beside=asr)
    return Frontend.load(
        FrontendConfig(),
        asr.frontend,
        vad_spec=vad.frontend,
        vad_weights=vad.weights,
        vad_config=vad.config,
    )


@pytest.mark.parametrize(("rate", "channels"), [(RATE_HZ, 1), (44_100, 2)])
@pytest.mark.parametrize("kind", ODD)
def test_f38_features_are_finite(frontend, record_property, kind, rate, channels):
    """Whatever the samples are, each feature is a number of a size that models know, with VAD and without."""
    fd = memfd(odd_wav(kind, rate, channels))
    largest = 0.0
    for vad in (True, False):
        run = Pass(frontend, Recording(fd, FrontendConfig()), vad=vad)
        for stretches in run.stretches():
            for stretch in stretches:
                assert np.isfinite(stretch.features).all()
                largest = max(largest, float(np.abs(stretch.features).max()))
            assert all(np.isfinite(track._mel).all() for track in run._tracks)
        assert run.decoded_s == pytest.approx(len(ODD[kind](rate)) / rate, abs=0.001)
    os.close(fd)
    assert largest < 100
    note(record_property, f"largest feature {largest:.1f}")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A daemon with the real front end and the demo model."""
    # One batch holds whatever a test queues, on any number of cores.
    settings = "[batch]\ncpu_frames_per_thread = 4096"
    daemon = DemoDaemon(tmp_path_factory.mktemp("demo"), held=True, settings=settings)
    yield daemon
    assert daemon.stop() == 0
    daemon.kill()


@pytest.mark.parametrize("vad", [True, False])
@pytest.mark.parametrize("kind", ODD)
def test_f38_nothing_is_heard_where_nothing_is_said(demo, kind, vad):
    """No error, and not a word."""
    fd = memfd(odd_wav(kind))
    with demo.client() as client:
        events = client.ask(1, fd, vad=vad)
    os.close(fd)
    assert events[-1]["type"] == "done", events[-1]
    assert "".join(texts(events)) == ""
    assert all(np.isfinite([event["language_score"] for event in events[:-1]]))


def test_f38_batch_mates_are_unchanged(demo, record_property):
    """In one batch with all of them, speech is recognised as it is alone."""
    canary = DemoCanary(demo)
    speech = [wav(sample(name)) for name in ("en", "ja")]
    odd = [odd_wav(kind) for kind in ODD]
    with demo.client() as client:
        alone = [essence(in_turn(client, content)) for content in speech]
        demo.hold()
        ask(client, 100, song())
        wait_until(lambda: demo.engine_log().endswith("at hold\n"), "the engine waits")
        for number, content in enumerate((speech[0], *odd, speech[1])):
            ask(client, number, content, vad=number in (0, len(odd) + 1))

        def all_queued():
            status = client.status()
            children = status["memory"]["children"]
            return status["queue"]["utterances"] >= 2 and not any(child["busy"] for child in children)

        # Those too short for a feature have no utterance, and end meanwhile.
        short = sum(len(ODD[kind](RATE_HZ)) < RATE_HZ // 40 for kind in ODD)
        wait_until(lambda: client.status()["queue"]["jobs_active"] == len(odd) + 3 - short, "the short ones")
        wait_until(all_queued, "the others")
        queued = client.status()["queue"]["utterances"]
        demo.release()
        together = [essence(client.events(number)) for number in (0, len(odd) + 1)]
        for number in range(1, len(odd) + 1):
            assert "".join(texts(client.events(number))) == ""
        client.events(100)
    assert demo.batches()[-1] == queued
    assert queued >= len(odd) - short + 2
    moved = 0.0
    pairs = zip(itertools.chain(*alone), itertools.chain(*together), strict=True)
    for mine, theirs in pairs:
        scores = [name for name in mine if name.endswith("_score")]
        moved = max([moved, *(abs(mine.pop(name) - theirs.pop(name)) for name in scores)])
        assert mine == theirs
    within(record_property, "scores moved by company", moved, 1e-3, "")
    canary.check()


def in_turn(client, content):
    """One recording on its own."""
    ask(client, 99, content)
    return client.events(99)


def test_f38_clipped_speech_is_no_error(demo, record_property):
    """Speech a hundred times too loud, and with holes that are no numbers, is transcribed as what is left."""
    loud = sample("en") * 100
    holes = sample("en").copy()
    holes[:: RATE_HZ // 100] = np.nan
    found = []
    with demo.client() as client:
        for samples in (loud, loud.clip(-1, 1), holes):
            ask(client, 1, wav(samples, subtype="FLOAT"))
            events = client.events(1)
            assert events[-1]["type"] == "done"
            found.append(" ".join(texts(events)))
    # Clipping by us and by whoever recorded it is the same.
    assert found[0] == found[1]
    assert found[2]
    note(record_property, f"clipped: {found[0]!r}")


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_f38_features_that_are_no_numbers_stay_among_themselves(precision):
    """A child that was taken over may send anything: its text may be nonsense, its batch-mate's is not."""
    engine = TorchEngine.load(find_asr("demo", DEMO_DIR), device="cpu", precision=precision, threads=1)
    dim = engine.info.feature_dim
    rows = torch.randn(80, dim, generator=torch.Generator().manual_seed(38)).numpy()

    def work(features):
        return Utterance(0, 0.0, 4.8, features.astype(np.float32).tobytes(), 80, dim), Options()

    good = work(rows)
    alone = engine.run([good])[0]
    for value in (np.nan, np.inf, -np.inf, 3e38):
        with np.errstate(over="ignore"):
            bad, worse = work(np.full_like(rows, value)), work(rows * value)
        before, mate, after = engine.run([bad, good, worse])
        assert mate == alone
        assert isinstance(before.text, str)
        assert isinstance(after.text, str)


CLOCKS = {"time": {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime"}, "datetime": None}
"""What looks at the wall clock."""
MAY_ASK_THE_DATE = {
    "sensevoiced/engine/cache.py": "compares it with a file's date, which is of the same clock",
}


def wall_clocks(source):
    """Names by which a module looks at the wall clock."""
    tree = ast.parse(source)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = CLOCKS.get(node.value.id, set())
            if names is None or node.attr in names:
                found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module in CLOCKS:
            names = CLOCKS[node.module]
            found |= {f"{node.module}.{one.name}" for one in node.names if names is None or one.name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name == "datetime"}
    return found


def test_f38_no_deadline_knows_the_date(record_property):
    """Nowhere in either package is the wall clock asked, but where a date is what is wanted."""
    assert wall_clocks("import time\nuntil = time.time() + 5") == {"time.time"}
    assert wall_clocks("from datetime import datetime") == {"datetime.datetime"}
    assert wall_clocks("import time\nuntil = time.monotonic() + 5") == set()
    found, files = {}, 0
    for package in (sensevoiced, svctl):
        root = Path(package.__file__).parent
        for file in root.rglob("*.py"):
            files += 1
            clocks = wall_clocks(file.read_text(encoding="utf-8"))
            if clocks:
                found[str(file.relative_to(root.parent))] = clocks
    assert found == {name: {"time.time"} for name in MAY_ASK_THE_DATE}
    note(record_property, f"{len(found)} of {files} modules asks for the date")


HELLO_S, IDLE_S = 0.5, 120.0


def test_f38_a_wall_clock_that_jumps_fires_no_deadline_and_stalls_none(start, tmp_path, record_property):
    """With a clock that is a day fast, then a day slow, at each look: work goes on, and deadlines hold.

    The clock is that of the daemon's Python, which is all that keeps deadlines; the machine's own cannot be
    moved in a test.
    """
    daemon = start(
        command=[sys.executable, str(JUMPING), str(tmp_path / "d0" / "control")],
        settings=f"[serving]\nhello_timeout_s = {HELLO_S}\nidle_timeout_s = {IDLE_S}",
    )
    canary = Canary(daemon)
    with daemon.client() as waiting, daemon.client() as idle, daemon.client(hello=False) as silent:
        began_s = time.monotonic()
        ask(waiting, 1, script({"say": "held", "engine_gate": "gate"}))
        waiting.transcribe(2, source="stream")
        waiting.send({"type": "audio", "id": 2, "data": script("half")})
        daemon.wait_engine_at("gate")
        assert only_error(silent.until_closed()) == "timeout"
        took_s = time.monotonic() - began_s
        within(record_property, "hello deadline fired after", took_s, HELLO_S, "s", slack=20)
        for number in range(10):
            ask(idle, number, script(f"request {number}"))
        daemon.open_gate("gate")
        assert texts(waiting.events(1)) == ["held"]
        waiting.send({"type": "end", "id": 2})
        assert texts(waiting.events(2)) == ["half"]
        assert [texts(idle.events(number)) for number in range(10)] == [[f"request {n}"] for n in range(10)]
        closed = daemon.status()["connections_closed"]
        assert closed == {"timeout": 1}
    canary.check()
