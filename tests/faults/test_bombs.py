"""Row F24: recordings that would become more than anybody has room or time for."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from harness import bombs
from harness.abuse import Growth
from harness.bombs import MIB
from harness.decoding import (
    CHILDREN,
    ChildMemory,
    DecodingCanary,
    DecodingDaemon,
    ask,
    children_of,
    one_for_all,
    outcome,
    refusal,
    timed,
    upload,
)
from harness.demo import sample, wav
from harness.figures import note, within

MAX_DURATION_S, CHILD_CPU_S, CHILD_MEMORY_MIB, MAX_SPOOL_MIB = 300, 20, 1024, 8
SETTINGS = f"""
[frontend]
children = {CHILDREN}
max_children = {CHILDREN}
max_duration_s = {MAX_DURATION_S}
child_cpu_s = {CHILD_CPU_S}
child_memory_bytes = {CHILD_MEMORY_MIB * MIB}
max_spool_bytes = {MAX_SPOOL_MIB * MIB}
"""
DAEMON_MIB = 32
"""What any of it may cost the daemon itself."""
ART_MIB = 100
STREAMS = 100_000
RIFF_LIES = {
    "riff of 0 bytes": {"riff_bytes": 0},
    "riff of 4 GiB": {"riff_bytes": 0xFFFFFFFF},
    "data of 0 bytes": {"data_bytes": 0},
    "data of 2 GiB": {"data_bytes": 0x7FFFFFFE},
    "data of 4 GiB": {"data_bytes": 0xFFFFFFFF},
    "data of an odd size": {"data_bytes": 31_999},
    "fmt of 4 GiB": {"fmt_bytes": 0xFFFFFFFF},
    "fmt of 2 GiB": {"fmt_bytes": 0x7FFFFFF0},
    "fmt of 2 bytes": {"fmt_bytes": 2},
    "a list of 4 GiB": {"before": b"LIST\xf0\xff\xff\xff"},
    "a list of 2 GiB": {"before": b"LIST\xf0\xff\xff\x7fINFO"},
    "blocks of 0 bytes": {"align": 0},
    "blocks of 64 KiB": {"align": 65_535},
    "samples of 0 bits": {"bits": 0},
    "samples of 64 Ki bits": {"bits": 65_535},
    "ADPCM in blocks of 64 KiB": {"tag": 2, "bits": 4, "align": 65_535},
    "IMA ADPCM of 16 channels": {"tag": 17, "bits": 4, "channels": 16, "align": 65_535},
    "GSM in blocks of 1 byte": {"tag": 49, "bits": 0, "align": 1},
    "an extensible of nothing": {"tag": 0xFFFE},
}
ABSURD = {
    "1 Hz": {"rate": 1},
    "3,999 Hz": {"rate": 3_999},
    "4 GHz": {"rate": 4_000_000_000},
    "2 GHz": {"rate": 2_000_000_000},
    "0 Hz": {"rate": 0},
    "1,024 channels": {"channels": 1_024},
    "65,535 channels": {"channels": 65_535},
    "17 channels": {"channels": 17},
    "0 channels": {"channels": 0},
    "1,024 channels at 1 Hz": {"channels": 1_024, "rate": 1},
}


# With budgets that a test can reach.
shared, daemon = one_for_all(SETTINGS)


class Cost:
    """In a `with` block: what daemon and children need, put into the table and held to the budgets."""

    def __init__(self, daemon, record, what):
        self._daemon, self._record, self.what = daemon, record, what
        self._growth, self._memory = Growth(daemon), ChildMemory(daemon)

    def __enter__(self):
        self._growth.__enter__()
        self._memory.__enter__()
        return self

    def __exit__(self, kind, *_):
        self._memory.__exit__()
        if kind is None:
            grown = f"{self.what}; daemon +{self._growth.mib:.1f} MiB; a child at most"
            within(self._record, grown, self._memory.peak_mib, CHILD_MEMORY_MIB, "MiB", slack=1)
            assert self._growth.mib < DAEMON_MIB


def test_f24_children_have_their_budget(daemon, record_property):
    """The kernel holds each child to the memory of the settings, whatever a file makes it ask for."""
    for pid in children_of(daemon.pid):
        limits = (Path("/proc") / str(pid) / "limits").read_text()
        (allowed,) = re.findall(r"^Max address space +(\d+)", limits, re.MULTILINE)
        assert int(allowed) == CHILD_MEMORY_MIB * MIB
    note(
        record_property,
        f"RLIMIT_AS of a child: {int(allowed) // MIB} MiB of {CHILD_MEMORY_MIB} in the settings",
    )


@pytest.mark.parametrize("claims", [True, False], ids=["told by the header", "not told"])
@pytest.mark.parametrize("by", ["file", "stream"])
def test_f24_a_flac_of_days(daemon, claims, by, record_property):
    """1 MiB that becomes 85 h is `too_long`: at once where the header tells, else at the limit."""
    content = bombs.constant_flac(MIB)
    samples = bombs.flac_samples(content)
    if claims:
        content = bombs.constant_flac(MIB, claimed=samples)
    with daemon.client() as client, Cost(daemon, record_property, "") as cost:
        send = (ask, content) if by == "file" else (upload, [content])
        events, took_s = timed(send[0], client, 1, send[1])
        hours = samples / 16_000 / 3600
        cost.what = (
            f"{hours:.0f} h in 1 MiB of FLAC by {by}, limit {MAX_DURATION_S} s: told after {took_s:.2f} s"
        )
        assert refusal(events) == "too_long"
    assert hours > 75


def test_f24_a_flac_that_takes_days_of_work(start_decoding, record_property):
    """8 channels at 192 kHz, for which the time is longer than the work may be: ended at its CPU limit."""
    settings = f"[frontend]\nchildren = {CHILDREN}\nmax_children = {CHILDREN}\nchild_cpu_s = 1\n"
    daemon = start_decoding(settings=settings)
    canary = DecodingCanary(daemon)
    content = bombs.constant_flac(MIB, rate=192_000, channels=8)
    with daemon.client() as client, Cost(daemon, record_property, "") as cost:
        events, took_s = timed(ask, client, 1, content)
        cost.what = f"8 x 192 kHz, CPU limit 1 s (kept in whole seconds): told after {took_s:.1f} s"
        assert refusal(events) == "bad_input"
        assert "1 s of CPU" in events[0]["message"]
    assert daemon.counters() == (1, 0)
    canary.check()


@pytest.fixture
def start_decoding(tmp_path):
    """Start a daemon of the test's own."""
    started = []

    def start(**options):
        started.append(DecodingDaemon(tmp_path / str(len(started)), **options))
        return started[-1]

    yield start
    for daemon in started:
        daemon.kill()


def test_f24_a_wav_of_absurd_rates_and_channels(daemon, record_property):
    """From 1 Hz to 4 GHz and up to 65,535 channels: `bad_input`, before anything is made of them."""
    with daemon.client() as client, Cost(daemon, record_property, "") as cost:
        slowest_s = 0.0
        for n, (name, claims) in enumerate(ABSURD.items()):
            for as_stream in (False, True):
                content = bombs.wav(**claims)
                send = (upload, [content]) if as_stream else (ask, content)
                events, took_s = timed(send[0], client, 2 * n + as_stream, send[1])
                assert (name, refusal(events)) == (name, "bad_input")
                slowest_s = max(slowest_s, took_s)
        cost.what = f"{len(ABSURD)} absurd headers: slowest {slowest_s * 1000:.0f} ms"
    assert daemon.counters() == (0, 0)


def test_f24_sizes_that_lie(daemon, record_property):
    """Chunks of any claimed size: what is there is heard, or it is `bad_input`."""
    found, slowest_s = {}, 0.0
    with daemon.client() as client, Cost(daemon, record_property, "") as cost:
        for n, (name, claims) in enumerate(RIFF_LIES.items()):
            for as_stream in (False, True):
                content = bombs.wav(**claims)
                send = (upload, [content]) if as_stream else (ask, content)
                events, took_s = timed(send[0], client, 2 * n + as_stream, send[1])
                last = events[-1]
                found[name, as_stream] = outcome(events)
                assert last["type"] == "done" or last["code"] in ("bad_input", "too_long"), (name, last)
                # Four bits a sample are twice the seconds; no lie makes more of it.
                assert last.get("duration", 0) <= 20, (name, last)
                slowest_s = max(slowest_s, took_s)
        heard = sum(said not in ("bad_input", "too_long") for said in found.values())
        cost.what = f"{len(found)} lies about sizes: {heard} heard, slowest {slowest_s * 1000:.0f} ms"
    for name in ("riff of 0 bytes", "riff of 4 GiB", "data of 4 GiB"):
        assert found[name, False].startswith("1.0 s"), (name, found)
    assert daemon.counters() == (0, 0)


@pytest.mark.parametrize("by", ["file", "stream"])
@pytest.mark.parametrize("kind", ["picture", "comment"])
def test_f24_an_mp3_behind_a_large_tag(daemon, tmp_path, by, kind, record_property):
    """100 MiB of attached picture, or of text, are skipped, and the sound behind them is heard."""
    music, size = wav(sample("en"), form="MP3", subtype="MPEG_LAYER_III"), ART_MIB * MIB
    if kind == "picture":
        head = bombs.id3(b"APIC", b"\0image/png\0\3\0\x89PNG\r\n\x1a\n", size)
    else:
        head = bombs.id3(b"TXXX", b"\0" + b"a" * (2 * MIB), size)
    path = tmp_path / "tagged.mp3"
    with path.open("wb") as file:
        file.write(head)
        file.truncate(20 + size)
        file.seek(0, os.SEEK_END)
        file.write(music)
    with daemon.client() as client, path.open("rb") as file:
        expected = outcome(ask(client, 1, music))
        with Cost(daemon, record_property, "") as cost:
            if by == "file":
                events, took_s = timed(client.ask, 2, file.fileno())
            else:
                events, took_s = timed(upload, client, 2, iter(lambda: file.read(MIB), b""))
            cost.what = f"{ART_MIB} MiB of {kind} before an MP3 by {by}: answered in {took_s:.2f} s"
            said = events[-1]
            assert said["type"] == "done", said
            # Its end cannot be trimmed in a stream: a few hundredths of a second of padding.
            assert abs(said["duration"] - float(expected.split()[0])) < 0.15
    assert daemon.counters() == (0, 0)


@pytest.mark.parametrize("in_turn", [False, True], ids=["at once", "in turn"])
@pytest.mark.parametrize("by", ["file", "stream"])
def test_f24_an_ogg_of_100000_streams(daemon, in_turn, by, record_property):
    """None of them has a sound: `bad_input` within the CPU budget."""
    content = bombs.ogg_of_streams(STREAMS, in_turn=in_turn)
    with daemon.client() as client, Cost(daemon, record_property, "") as cost:
        send = (ask, content) if by == "file" else (upload, [content])
        events, took_s = timed(send[0], client, 1, send[1])
        how = "one after the other" if in_turn else "at once"
        cost.what = f"{STREAMS} Ogg streams {how} by {by}: told after {took_s:.2f} s"
        assert refusal(events) == "bad_input"
    assert daemon.counters() == (0, 0)


def test_f24_an_mp4_without_end(daemon, record_property):
    """A stream that has to be kept is kept up to the limit, then it is `too_long`."""
    head = b"\0\0\0\x18ftypM4A \0\0\0\0isommp42"
    with daemon.client() as client, Cost(daemon, record_property, "") as cost:
        events, took_s = timed(upload, client, 1, [head, *[bytes(MIB)] * (4 * MAX_SPOOL_MIB)])
        cost.what = (
            f"{4 * MAX_SPOOL_MIB} MiB of streamed MP4, {MAX_SPOOL_MIB} MiB kept: told after {took_s:.2f} s"
        )
        assert refusal(events) == "too_long"
    assert daemon.counters() == (0, 0)
