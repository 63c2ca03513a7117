"""Rows F21 and F23: recordings that change while they are decoded, that break off, or are damaged."""

from __future__ import annotations

import collections
import os
import random
import threading

import numpy as np
import pytest
from harness.asking import gate
from harness.decoding import SETTINGS, ask, one_for_all, outcome, timed
from harness.demo import RATE_HZ, sample, wav
from harness.figures import note, within
from harness.mutations import flip_bits
from harness.wire_client import texts

from sensevoiced.frontend.libav import MISSING_S
from tools.fuzz import samples as forms

REPEATS = 3
"""Times half a minute of speech: far more than fits between a child and an engine that does not take it."""
SPEECH_S = len(sample("mixed")) / RATE_HZ
LONG = {
    "wav": wav,
    "flac": lambda speech: wav(speech, form="FLAC"),
    "mp3": lambda speech: wav(speech, form="MP3", subtype="MPEG_LAYER_III"),
    "m4a": lambda speech: forms.by_libav(np.round(speech * 32767).astype(np.int16), "mp4", "aac", 16_000),
}
INDEX_FIRST = "av-mp4-aac-faststart"
KINDS = {
    "wav": "sf-wav-pcm_16",
    "flac": "sf-flac-pcm_16",
    "mp3": "sf-mp3-mpeg_layer_iii",
    "ogg": "sf-ogg-vorbis",
    "opus": "sf-ogg-opus",
    "m4a": "av-mp4-aac",
    "m4a, index first": INDEX_FIRST,
    "webm": "av-webm-libopus",
    "aac": "av-adts-aac",
    "amr": "av-amr-libopencore_amrnb",
}
"""The kinds of the row, as tools.fuzz.samples calls them."""
SELF_DELIMITING = {"mp3", "aac", "amr"}
"""A row of frames, each on its own: nothing in them says how many there should be."""
CLIP_S = 3.0
PERCENTS = (0, 1, 25, 50, 99)
REFUSALS = {"bad_input", "too_long"}
"""What a damaged recording may be told: a bit of a header can make a second a year."""
ANSWER_LIMIT_S = 10.0
"""For 3 s of audio on a machine that is busy: tells slow from stuck."""


# Each job has no more than one utterance on its way.
shared, daemon = one_for_all(f"{SETTINGS}\n[serving]\nmax_outstanding_utterances = 1\n")


@pytest.fixture(scope="module")
def long_recordings():
    """Two minutes of speech in each of four formats, by name."""
    speech = np.tile(sample("mixed"), REPEATS)
    return {kind: encode(speech) for kind, encode in LONG.items()}


@pytest.fixture(scope="module")
def recordings():
    """Three seconds of speech in every format of the row, by name."""
    found = forms.encoded(forms.clip(CLIP_S))
    found[INDEX_FIRST] = forms.by_libav(forms.clip(CLIP_S), "mp4", "aac", 16_000, {"movflags": "faststart"})
    return {kind: found[name] for kind, name in KINDS.items() if name in found}


def cut(path, content):
    """Keep a tenth of it."""
    os.truncate(path, len(content) // 10)


def empty(path, _content):
    """Keep nothing of it."""
    os.truncate(path, 0)


def grow(path, content):
    """Let it go on as it began, twice."""
    with path.open("ab") as file:
        file.write(content * 2)


def overwrite(path, content):
    """Put noise in the place of every byte."""
    with path.open("r+b") as file:
        file.write(random.Random(21).randbytes(len(content)))


def replace(path, content):
    """Make another recording of it, in another format."""
    with path.open("r+b") as file:
        file.write(wav(sample("en"), form="AIFF"))
        file.truncate()


CHANGES = {change.__name__: change for change in (cut, empty, grow, overwrite, replace)}


@pytest.mark.parametrize("change", CHANGES)
def test_f21_a_file_that_its_owner_changes_while_it_is_decoded(
    daemon, long_recordings, tmp_path, change, record_property
):
    """What was read before counts, and the rest is `truncated` or `bad_input`; no child dies of it.

    A file that grows is read as far as it reached when it was handed over. An MP3 that is cut between two of
    its frames is a whole MP3.
    """
    before, found = daemon.counters(), {}
    for kind, content in long_recordings.items():
        path, stop = tmp_path / kind, gate()
        path.write_bytes(content)
        with daemon.client() as client, path.open("rb") as file:
            with daemon.held(stop):
                client.transcribe(1, file.fileno())
                daemon.wait_engine_at(stop)
                CHANGES[change](path, content)
            found[kind] = events = client.events(1)
            last = events[-1]
            if change == "grow":
                untouched = ask(client, 2, content)
                assert texts(events) == texts(untouched) != []
                assert outcome(events) == outcome(untouched)
            elif last["type"] == "error":
                assert last["code"] == "bad_input"
            elif change in ("cut", "empty") and kind not in SELF_DELIMITING:
                assert last["truncated"]
                assert last["duration"] < 0.9 * REPEATS * SPEECH_S
    shown = ", ".join(f"{kind} {outcome(events)}" for kind, events in found.items())
    note(record_property, f"{REPEATS * SPEECH_S:.0f} s of speech, {change} while decoded: {shown}")
    assert daemon.counters() == before


def test_f21_a_file_that_is_never_twice_the_same(daemon, long_recordings, tmp_path, record_property):
    """Thirty requests for a file that is cut, grown and rewritten without a pause: each is answered."""
    over, path, content = threading.Event(), tmp_path / "restless", long_recordings["flac"]
    path.write_bytes(content)

    def change():
        while not over.is_set():
            for one in CHANGES.values():
                one(path, content)
            path.write_bytes(content)

    before, found = daemon.counters(), collections.Counter()
    thread = threading.Thread(target=change)
    thread.start()
    try:
        with daemon.client() as client, path.open("rb") as file:
            for number in range(30):
                client.transcribe(number, file.fileno())
            for number in range(30):
                last = client.events(number)[-1]
                found[last.get("code", "done")] += 1
    finally:
        over.set()
        thread.join()
    note(record_property, f"30 requests for a file that changes all the time: {dict(found)}")
    assert set(found) <= {"done", *REFUSALS}
    assert daemon.counters() == before


@pytest.mark.parametrize("kind", KINDS)
def test_f23_a_recording_that_breaks_off(daemon, recordings, kind, record_property):
    """What can be read is answered, with `truncated`, or it is `bad_input`.

    Row changed, where a format does not say what is missing: MP3, AAC and AMR are rows of frames, and one
    that breaks off between two of them is whole; in other containers up to 0.25 s may be padding; an M4A
    whose index is at its end has none any more, and nothing of it can be read.
    """
    if kind not in recordings:
        pytest.skip(f"this build of libav cannot write {KINDS[kind]}")
    content, before, found = recordings[kind], daemon.counters(), {}
    with daemon.client() as client:
        for percent in PERCENTS:
            found[percent] = ask(client, percent, content[: len(content) * percent // 100])
        whole = ask(client, 100, content)[-1]
    shown = ", ".join(map(outcome, found.values()))
    note(record_property, f"{kind} cut at {'/'.join(map(str, PERCENTS))} %: {shown}")
    assert not whole["truncated"]
    assert abs(whole["duration"] - CLIP_S) < 0.15
    for percent, events in found.items():
        last = events[-1]
        if last["type"] == "error":
            assert last["code"] == "bad_input"
            assert percent <= 25 or kind == "m4a"
        else:
            assert percent > 0
            assert 0 < last["duration"] <= whole["duration"]
            missing_s = whole["duration"] - last["duration"]
            assert last["truncated"] or kind in SELF_DELIMITING or missing_s <= MISSING_S
    assert daemon.counters() == before


def flipped(daemon, content, count):
    """Send so many recordings with up to 200 flipped bits; gives what became of them and the slowest."""
    found, slowest_s = collections.Counter(), 0.0
    with daemon.client() as client:
        for number in range(count):
            damaged = bytearray(content)
            flip_bits(damaged, None, random.Random(number))
            events, took_s = timed(ask, client, number, bytes(damaged))
            last = events[-1]
            assert last["type"] == "done" or last["code"] in REFUSALS, last
            found["cut" if last.get("truncated") else last.get("code", "done")] += 1
            slowest_s = max(slowest_s, took_s)
    return found, slowest_s


def survives(daemon, recordings, kind, count, record_property):
    """Send damaged recordings, and say what became of them."""
    if kind not in recordings:
        pytest.skip(f"this build of libav cannot write {KINDS[kind]}")
    crashed, timeouts = daemon.counters()
    found, slowest_s = flipped(daemon, recordings[kind], count)
    deaths, hangs = (now - then for now, then in zip(daemon.counters(), (crashed, timeouts), strict=True))
    shown = ", ".join(f"{number} {name}" for name, number in found.most_common())
    what = f"{kind}, {count} times bits flipped: {shown}; {deaths} children died; slowest"
    within(record_property, what, slowest_s, 1.0, "s", slack=ANSWER_LIMIT_S)
    assert hangs == 0


@pytest.mark.parametrize("kind", KINDS)
def test_f23_some_flipped_bits(daemon, recordings, kind, record_property):
    """Ten damaged recordings of each kind get an answer; the slow test sends 200.

    Row changed: damage that a format passes over in silence, such as an Ogg page with a wrong checksum, or
    that is sound like any other (WAV), is not marked.
    """
    survives(daemon, recordings, kind, 10, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_f23_two_hundred_times_flipped_bits(daemon, recordings, kind, record_property):
    """Two hundred damaged recordings of each kind get a result or a refusal; a child's death is counted."""
    survives(daemon, recordings, kind, 200, record_property)
