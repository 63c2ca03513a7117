"""Row F25: recordings that are none, but name other files, or addresses, to be read in their place."""

from __future__ import annotations

import os
import socket
import struct

import av
import numpy as np
import pytest
from harness.decoding import ask, one_for_all, refusal, timed, upload
from harness.demo import RATE_HZ, sample, wav
from harness.figures import within
from harness.opened import Opened
from harness.wire_client import texts

HEADER_BYTES = 44
"""Of a plain WAV: where its samples begin."""
FAR_BYTES = 500_000
"""A place in the secret that lies far behind the end of what refers to it."""
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n"
WAYS = ("file", "stream")
SCRIPTS = {
    "m3u8, relative": HLS.format("secret.wav"),
    "m3u8, absolute": HLS.format("{secret}"),
    "m3u8, file://": HLS.format("file://{secret}"),
    "m3u8, http://": HLS.format("http://{address}/a.wav"),
    "m3u8, tcp://": HLS.format("tcp://{address}"),
    "m3u8, a key": HLS.format('#EXT-X-KEY:METHOD=AES-128,URI="http://{address}/key"\n{secret}'),
    "m3u8, a map": HLS.format('#EXT-X-MAP:URI="{secret}"\n{secret}'),
    "m3u8, a crypto:// of concat:": HLS.format("crypto+concat:{secret}|{secret}"),
    "m3u, a list of names": "#EXTM3U\n{secret}\n",
    "ffconcat": "ffconcat version 1.0\nfile '{secret}'\n",
    "ffconcat, relative": "ffconcat version 1.0\nfile secret.wav\n",
    "ffconcat, http://": "ffconcat version 1.0\nfile 'http://{address}/a.wav'\n",
    "mpd": (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT10S"><Period><AdaptationSet mimeType="audio/wav">'
        '<Representation id="1" bandwidth="1"><BaseURL>{secret}</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>"
    ),
    "mpd, http://": '<?xml version="1.0"?><MPD><BaseURL>http://{address}/</BaseURL><Period/></MPD>',
    "sdp": (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "a=control:rtsp://{address}/\nm=audio {port} RTP/AVP 0\n"
    ),
    "asx": "[Reference]\nRef1=http://{address}/a.wav\nRef2={secret}\n",
    "xspf": "<playlist><trackList><track><location>file://{secret}</location></track></trackList></playlist>",
    "pls": "[playlist]\nFile1={secret}\nFile2=http://{address}/a\n",
    "cue": 'FILE "{secret}" WAVE\n  TRACK 01 AUDIO\n    INDEX 01 00:00:00\n',
    "a bare name": "{secret}",
    "a bare address": "http://{address}/a.wav",
    "a protocol in a protocol": "concat:{secret}|subfile,,start,0,end,0,,:{secret}",
}


shared, daemon = one_for_all()


@pytest.fixture
def secret(tmp_path):
    """A recording that nobody was asked to read."""
    path = tmp_path / "secret.wav"
    path.write_bytes(wav(sample("mixed")))
    return path


@pytest.fixture
def opened(secret):
    """Whether somebody opened the secret."""
    watch = Opened(secret)
    yield watch
    watch.close()


@pytest.fixture
def listener():
    """A port on which nobody should knock."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.fixture
def nobody_went_there(opened, listener):
    """Check that the secret stayed closed and that no connection came."""

    def check():
        assert not opened()
        with pytest.raises(BlockingIOError):
            listener.accept()

    return check


def atom(kind, *parts):
    """A box of a QuickTime file."""
    body = b"".join(part if isinstance(part, bytes) else struct.pack(">I", part) for part in parts)
    return struct.pack(">I", len(body) + 8) + kind + body


def alias(path):
    """A Macintosh alias record that holds an absolute path, as libavformat's mov.c reads one."""
    name = os.fsencode(path)
    name += b"\0" * (len(name) % 2)
    return atom(b"alis", 0, bytes(150), struct.pack(">HH", 2, len(name)), name, b"\xff\xff\0\0")


def url(address):
    """A data reference by URL, without the flag that says "in this file"."""
    return atom(b"url ", 0, address.encode() + b"\0")


def movie(reference, offset):
    """A QuickTime film of 16-bit sound, all of which lies at `offset` of the file that `reference` names."""
    samples = RATE_HZ
    matrix = struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    sound = struct.pack(">6xHHHIHHHHI", 1, 0, 0, 0, 1, 16, 0, 0, RATE_HZ << 16)
    table = atom(
        b"stbl",
        atom(b"stsd", 0, 1, atom(b"sowt", sound)),
        atom(b"stts", 0, 1, samples, 1),
        atom(b"stsc", 0, 1, 1, samples, 1),
        atom(b"stsz", 0, 2, samples),
        atom(b"stco", 0, 1, offset),
    )
    media = atom(
        b"mdia",
        atom(b"mdhd", 0, 0, 0, RATE_HZ, samples, 0),
        atom(b"hdlr", 0, b"mhlrsoun", 0, 0, 0, b"\0"),
        atom(b"minf", atom(b"smhd", 0, 0), atom(b"dinf", atom(b"dref", 0, 1, reference)), table),
    )
    head = atom(b"tkhd", 7, 0, 0, 1, 0, samples, bytes(8), struct.pack(">HHHH", 0, 0, 256, 0), matrix, 0, 0)
    whole = atom(b"mvhd", 0, 0, 0, RATE_HZ, samples, 1 << 16, b"\1\0", bytes(10), matrix, bytes(24), 2)
    return atom(b"ftyp", b"qt  ", 0, b"qt  ") + atom(b"moov", whole, atom(b"trak", head, media))


def movies(secret, address):
    """Films whose sound is elsewhere, by what they call it."""
    return {
        "mov, an alias": movie(alias(secret), FAR_BYTES),
        "mov, a URL of a file": movie(url(f"file://{secret}"), FAR_BYTES),
        "mov, a URL": movie(url(f"http://{address}/a.wav"), FAR_BYTES),
    }


def heard_by_libav(path, **options):
    """Samples that libav gives for a file when it may do as it likes."""
    with av.open(str(path), options=options) as container:
        return sum(frame.samples for frame in container.decode(audio=0))


@pytest.fixture
def baits(secret, listener):
    """Everything that leads to the secret or to the port, by name."""
    host, port = listener.getsockname()
    facts = {"{secret}": str(secret), "{address}": f"{host}:{port}", "{port}": str(port)}
    found = {}
    for name, text in SCRIPTS.items():
        for mark, fact in facts.items():
            text = text.replace(mark, fact)  # noqa: PLW2901 - braces of other kinds stay as they are
        found[name] = text.encode()
    return found | movies(secret, facts["{address}"])


@pytest.mark.parametrize("send", [ask, lambda client, n, content: upload(client, n, [content])], ids=WAYS)
def test_f25_what_refers_to_others_is_refused(daemon, baits, nobody_went_there, send, record_property):
    """Playlists, scripts, descriptions and films whose sound lies elsewhere: `bad_input`.

    The secret is not opened, and nobody connects.
    """
    slowest_s, answered = 0.0, {}
    with daemon.client() as client:
        for n, (name, content) in enumerate(baits.items()):
            events, took_s = timed(send, client, n, content)
            answered[name] = refusal(events)
            slowest_s = max(slowest_s, took_s)
    assert set(answered.values()) == {"bad_input"}, answered
    nobody_went_there()
    assert daemon.counters() == (0, 0)
    what = f"{len(baits)} references by {'file' if send is ask else 'stream'}: secret opened 0 times, "
    within(record_property, f"{what}0 connections; slowest", slowest_s * 1000, 100, "ms")


def test_f25_a_name_beside_a_recording_means_nothing(daemon, secret, opened):
    """A label that looks like a playlist, a pattern or an address does not change what is read."""
    content = wav(sample("en"))
    with daemon.client() as client:
        heard = texts(ask(client, 1, content))
        for n, label in enumerate((str(secret), "list.m3u8", "%03d.wav", "concat:a|b", "-i x"), start=2):
            assert texts(ask(client, n, content, label=label)) == heard != []
    assert not opened()


def test_f25_these_references_do_lead_to_the_secret(secret, opened, tmp_path):
    """A libav without our limits reads the secret by them: so it is the limits that the other tests see."""
    samples = len(np.frombuffer(secret.read_bytes()[HEADER_BYTES:], "<i2"))
    ways = {
        "ffconcat": ("a.ffconcat", {"safe": "0"}, samples),
        "m3u8, absolute": ("a.m3u8", {"allowed_extensions": "ALL", "extension_picky": "0"}, samples),
        "m3u8, relative": ("b.m3u8", {"allowed_extensions": "ALL", "extension_picky": "0"}, samples),
    }
    for name, (file, options, expected) in ways.items():
        path = tmp_path / file
        path.write_text(SCRIPTS[name].replace("{secret}", str(secret)))
        assert heard_by_libav(path, **options) == expected, name
        assert opened()
    path = tmp_path / "a.mov"
    path.write_bytes(movie(alias(secret), FAR_BYTES))
    assert heard_by_libav(path, enable_drefs="1", use_absolute_path="1") == RATE_HZ
    assert opened()
