"""Decoding: every container to 16 kHz mono, and a sentence for everything that is none."""

import fcntl
import io
import os
import socket
import tempfile
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from sensevoiced.config import FrontendConfig
from sensevoiced.frontend.audio import NO_AUDIO, UNREADABLE, Recording
from sensevoiced.frontend.part import Part
from sensevoiced.frontend.source import Stopped
from sensevoiced.jobs import JobError

SECONDS = 1.5
TONE_HZ = 440.0
SOUNDFILE_FORMATS = (
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAV", "PCM_U8"),
    ("WAV", "ULAW"),
    ("WAV", "ALAW"),
    ("WAV", "IMA_ADPCM"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("AIFF", "PCM_16"),
    ("CAF", "PCM_16"),
    ("AU", "PCM_16"),
    ("W64", "PCM_16"),
    ("RF64", "PCM_16"),
    ("NIST", "PCM_16"),
)
LIBAV_FORMATS = (
    ("mp4", "aac", 44100),
    ("mov", "aac", 22050),
    ("adts", "aac", 44100),
    ("webm", "libopus", 48000),
    ("matroska", "flac", 16000),
    ("amr", "libopencore_amrnb", 8000),
    ("3gp", "libopencore_amrnb", 8000),
    ("asf", "wmav2", 44100),
    ("mp4", "alac", 44100),
    ("mpegts", "mp2", 48000),
    ("tta", "tta", 44100),
    ("caf", "alac", 16000),
)


def tone(rate, channels=1, seconds=SECONDS):
    """Give a tone at half scale, samples x channels."""
    wave = 0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, 1)


def with_soundfile(samples, rate, form="WAV", subtype="PCM_16"):
    """Encode samples (x channels) with libsndfile."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def with_libav(samples, rate, form, codec, options=None, *, layout="mono"):
    """Encode samples x channels with libav; skips where this build lacks the encoder."""
    if codec not in av.codecs_available:
        pytest.skip(f"libav here has no {codec}")
    # A file and not a buffer: to put its index in front, MP4 is read again.
    with (
        tempfile.NamedTemporaryFile() as file,
        av.open(file.name, "w", format=form, options=options or {}) as container,
    ):
        stream = container.add_stream(codec, rate=rate, layout=layout)
        if codec == "wmav2":
            stream.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray(
            (samples.reshape(1, -1) * 32767).astype(np.int16), format="s16", layout=layout
        )
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
        container.close()
        return Path(file.name).read_bytes()


def decode(data, **limits):
    """Decode bytes from a memfd: (samples, the recording)."""
    fd = os.memfd_create("test")
    try:
        os.write(fd, data)
        return drain(fd, **limits)
    finally:
        os.close(fd)


def drain(fd, **limits):
    """Decode what a descriptor gives: (samples, the recording)."""
    recording = Recording(fd, FrontendConfig(**limits))
    blocks = list(recording.blocks())
    samples = np.concatenate([np.zeros(0, np.float32), *blocks])
    assert recording.samples == len(samples)
    return samples, recording


def stream(data, **limits):
    """Decode bytes from a pipe, written by another thread."""
    reader, writer = os.pipe()

    def write():
        with os.fdopen(writer, "wb") as pipe:
            try:
                pipe.write(data)
            except BrokenPipeError:
                return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        return drain(reader, **limits)
    finally:
        os.close(reader)
        thread.join()


def assert_is_the_tone(samples, *, level=0.5, seconds=SECONDS):
    """Check length, pitch and level."""
    assert samples.dtype == np.float32
    assert len(samples) / 16000 == pytest.approx(seconds, abs=0.1)
    middle = samples[len(samples) // 4 : len(samples) // 4 * 3]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) * 16000 / len(middle) == pytest.approx(TONE_HZ, abs=5)
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(level, rel=0.2)


def assert_one_sentence(error):
    """Check that a refusal is for a person to read."""
    assert error.code in {"bad_input", "too_long"}
    assert error.message.endswith(".")
    assert "\n" not in error.message
    assert 20 < len(error.message) < 200


@pytest.mark.parametrize(("form", "subtype"), SOUNDFILE_FORMATS)
def test_what_libsndfile_knows_is_decoded(form, subtype):
    """Lossless and lossy formats of libsndfile give the tone at its level and length, and are whole."""
    samples, recording = decode(with_soundfile(tone(48000), 48000, form, subtype))
    assert_is_the_tone(samples)
    assert not recording.truncated


@pytest.mark.parametrize(("form", "codec", "rate"), LIBAV_FORMATS)
def test_what_libav_knows_is_decoded(form, codec, rate):
    """Containers beyond libsndfile give the tone at its level and length, and are whole."""
    samples, recording = decode(with_libav(tone(rate), rate, form, codec))
    assert_is_the_tone(samples)
    assert not recording.truncated


@pytest.mark.parametrize("rate", [4000, 8000, 11025, 12345, 22050, 32000, 44100, 96000, 192000])
def test_any_rate_becomes_16_khz(rate):
    """Pitch, level and length survive resampling from odd and common rates."""
    samples, _ = decode(with_soundfile(tone(rate), rate))
    assert_is_the_tone(samples)
    assert len(samples) == pytest.approx(SECONDS * 16000, abs=2)


def test_16_khz_16_bit_mono_is_passed_on_bit_for_bit():
    """What already is what the models want is not touched."""
    values = np.random.default_rng(1).integers(-32768, 32767, 20_000).astype(np.int16)
    samples, _ = decode(with_soundfile(values, 16000))
    np.testing.assert_array_equal(samples, values.astype(np.float32) / 32768)


@pytest.mark.parametrize("channels", [2, 3, 6, 16])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_channels_are_averaged(channels, subtype):
    """A tone in one channel of n comes out at 1/n of its level; opposite ones cancel."""
    samples = tone(16000, channels)
    samples[:, 1:] = 0
    assert_is_the_tone(decode(with_soundfile(samples, 16000, "WAV", subtype))[0], level=0.5 / channels)
    samples[:, 1] = -samples[:, 0]
    assert np.abs(decode(with_soundfile(samples, 16000, "WAV", subtype))[0]).max() < 1e-4


@pytest.mark.parametrize("channels", [6, 8])
def test_lossy_codecs_of_many_channels_are_averaged(channels):
    """Six and eight channels that a decoder gives one after the other count alike."""
    samples = tone(48000, channels)
    assert_is_the_tone(decode(with_soundfile(samples, 48000, "OGG", "VORBIS"))[0])


def test_channels_may_change_on_the_way():
    """A broadcast that goes from mono to stereo and back is decoded to its end."""
    mono = with_libav(tone(44100), 44100, "adts", "aac")
    stereo = with_libav(tone(44100, 2), 44100, "adts", "aac", layout="stereo")
    samples, _ = decode(mono + stereo + mono)
    assert len(samples) / 16000 == pytest.approx(3 * SECONDS, abs=0.2)
    third = len(samples) // 3
    for start in (0, third, 2 * third):
        assert_is_the_tone(samples[start : start + third])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("form", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("OGG", "VORBIS")])
def test_samples_do_not_depend_on_the_length_of_blocks(form, subtype, channels, monkeypatch):
    """Long blocks and short ones give the same bits, through either decoder and the resampler."""
    signal = np.random.default_rng(3).normal(0, 0.1, (3 * 48000, channels)).clip(-1, 1)
    data = with_soundfile(signal, 48000, form, subtype)
    whole, _ = decode(data)
    monkeypatch.setattr("sensevoiced.frontend.audio.BLOCK_S", 0.1)
    np.testing.assert_array_equal(decode(data)[0], whole)


def test_what_is_not_a_number_becomes_silence():
    """NaN and infinities give finite samples in -1..1, and the rest of the recording stays."""
    samples = tone(16000)[:, 0]
    samples[100:200], samples[300], samples[301], samples[302] = np.nan, np.inf, -np.inf, 1e30
    decoded, _ = decode(with_soundfile(samples, 16000, "WAV", "FLOAT"))
    assert np.isfinite(decoded).all()
    assert np.abs(decoded).max() <= 1
    assert not decoded[100:200].any()
    np.testing.assert_allclose(decoded[400:], samples[400:], atol=1e-4)


@pytest.mark.parametrize("data", [b"", b"\0", b"RIFF", b"hello world, this is no audio at all\n" * 200])
def test_what_is_no_audio_gets_a_sentence(data):
    """Empty, tiny and foreign files are bad_input, with one sentence."""
    with pytest.raises(JobError) as caught:
        decode(data)
    assert caught.value.code == "bad_input"
    assert_one_sentence(caught.value)


def test_random_bytes_get_the_remedy():
    """Noise that no decoder takes is refused with the command that would help."""
    with pytest.raises(JobError) as caught:
        decode(np.random.default_rng(5).bytes(100_000))
    assert caught.value.message == UNREADABLE


def test_a_header_without_samples_is_named():
    """A WAV or AIFF of no samples is told from a foreign file."""
    for form in ("WAV", "AIFF"):
        with pytest.raises(JobError) as caught:
            decode(with_soundfile(np.zeros(0), 16000, form))
        assert caught.value.message == NO_AUDIO


def test_a_film_without_sound_is_named():
    """A container with a picture only says so."""
    if "mpeg4" not in av.codecs_available:
        pytest.skip("libav here has no mpeg4 encoder")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
        for packet in (*video.encode(av.VideoFrame(32, 32, "yuv420p")), *video.encode(None)):
            container.mux(packet)
    with pytest.raises(JobError, match="no audio stream"):
        decode(buffer.getvalue())


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9])
@pytest.mark.parametrize(
    ("form", "codec"), [(*SOUNDFILE_FORMATS[0],), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("AIFF", "PCM_16")]
)
def test_a_cut_file_gives_its_readable_part_and_says_so(form, codec, share):
    """WAV, AIFF, FLAC and Ogg that break off give what is there, marked truncated, or a sentence."""
    noisy = tone(16000, seconds=4) + np.random.default_rng(2).normal(0, 0.1, (64000, 1))
    data = with_soundfile(noisy, 16000, form, codec)
    try:
        samples, recording = decode(data[: int(len(data) * share)])
    except JobError as error:
        # A quarter of this Ogg holds nothing but the headers.
        assert share <= (0.25 if form == "OGG" else 0.01)
        assert_one_sentence(error)
    else:
        assert recording.truncated
        assert len(samples) / 16000 < 4
        if form in ("WAV", "AIFF"):
            assert len(samples) / 16000 == pytest.approx(4 * share, abs=0.1)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95])
@pytest.mark.parametrize(("form", "codec", "rate"), LIBAV_FORMATS)
def test_a_cut_container_gives_a_part_or_a_sentence(form, codec, rate, share):
    """Containers that break off give a part or a sentence; MP4 with its index in front says it was cut."""
    options = {"movflags": "faststart"} if form in ("mp4", "mov") else {}
    data = with_libav(tone(rate), rate, form, codec, options)
    try:
        samples, recording = decode(data[: int(len(data) * share)])
    except JobError as error:
        assert_one_sentence(error)
    else:
        assert 0 < len(samples) / 16000 <= SECONDS + 0.1
        if form == "mp4" and share == 0.5:
            assert recording.truncated


def test_flipped_bits_never_raise_anything_but_a_job_error():
    """Damage anywhere gives audio or a sentence (the pool's tests do the same where a crash may happen)."""
    rng = np.random.default_rng(7)
    for form, codec in (
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("MP3", "MPEG_LAYER_III"),
        ("WAV", "IMA_ADPCM"),
    ):
        data = np.frombuffer(with_soundfile(tone(16000), 16000, form, codec), np.uint8)
        for _ in range(10):
            damaged = data.copy()
            at = rng.integers(0, len(damaged), 5)
            damaged[at] ^= (1 << rng.integers(0, 8, 5)).astype(np.uint8)
            try:
                samples, _ = decode(damaged.tobytes())
            except JobError as error:
                assert_one_sentence(error)
            else:
                assert np.isfinite(samples).all()


@pytest.mark.parametrize(
    ("rate", "channels", "sentence"),
    [(1, 1, "sample rate of 1 Hz"), (2_000_000_000, 1, "2000000000 Hz"), (16000, 100, "claims 100 channels")],
)
def test_absurd_headers_are_refused(rate, channels, sentence):
    """A WAV of 1 Hz, of 2 GHz or of 100 channels is bad_input before anything is allocated for it."""
    data = bytearray(with_soundfile(np.zeros((1000, 1)), 16000))
    data[22:24] = channels.to_bytes(2, "little")
    data[24:28] = rate.to_bytes(4, "little")
    data[28:32] = min(rate * channels * 2, 2**32 - 1).to_bytes(4, "little")
    data[32:34] = (channels * 2).to_bytes(2, "little")
    with pytest.raises(JobError, match=sentence):
        decode(bytes(data))


def test_a_recording_beyond_the_limit_is_too_long():
    """The duration limit holds for lengths that a header tells and for those that only decoding shows."""
    for data in (
        with_soundfile(np.zeros(16000 * 5), 16000, "FLAC"),
        with_soundfile(np.zeros(16000 * 5), 16000, "OGG", "VORBIS"),
    ):
        with pytest.raises(JobError) as caught:
            decode(data, max_duration_s=3.0)
        assert caught.value.code == "too_long"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hls", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{secret}\n#EXT-X-ENDLIST\n"),
        ("hls-url", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{secret}\n#EXT-X-ENDLIST\n"),
        ("concat", "ffconcat version 1.0\nfile '{secret}'\n"),
        ("sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n"),
        ("dash", '<?xml version="1.0"?><MPD><Period><BaseURL>{secret}</BaseURL></Period></MPD>'),
        ("name", "{secret}"),
    ],
)
@pytest.mark.parametrize("by", ["file", "pipe"])
def test_a_playlist_opens_nothing(tmp_path, name, text, by):
    """F25: a recording that names another file, by any script libav knows, is refused and opens nothing."""
    secret = tmp_path / "secret.wav"
    secret.write_bytes(with_soundfile(tone(16000), 16000))
    os.utime(secret, (1, 1))
    with pytest.raises(JobError) as caught:
        (decode if by == "file" else stream)(text.format(secret=secret).encode())
    assert caught.value.code == "bad_input"
    assert secret.stat().st_atime == 1


def test_a_file_is_read_without_moving_its_offset():
    """The descriptor's offset is shared with its sender, and stays where it was."""
    fd = os.memfd_create("test")
    try:
        for data in (with_soundfile(tone(16000), 16000), with_libav(tone(16000), 16000, "mp4", "aac")):
            os.ftruncate(fd, 0)
            os.pwrite(fd, data, 0)
            os.lseek(fd, 7, os.SEEK_SET)
            drain(fd)
            assert os.lseek(fd, 0, os.SEEK_CUR) == 7
    finally:
        os.close(fd)


def test_a_file_that_shrinks_while_it_is_read_just_ends(tmp_path):
    """F21: truncating the file under the decoder gives an earlier end, not an error of ours."""
    path = tmp_path / "shrinking.wav"
    path.write_bytes(with_soundfile(np.tile(tone(16000), (40, 1)), 16000))
    fd = os.open(path, os.O_RDONLY)
    try:
        recording = Recording(fd, FrontendConfig())
        blocks = recording.blocks()
        first = next(blocks)
        os.truncate(path, 1000)
        rest = list(blocks)
    finally:
        os.close(fd)
    assert len(first) + sum(map(len, rest)) < 60 * 16000
    assert recording.truncated


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: with_soundfile(tone(44100, 2), 44100), id="wav"),
        pytest.param(lambda: with_soundfile(tone(16000), 16000, "FLAC"), id="flac"),
        pytest.param(lambda: with_soundfile(tone(16000), 16000, "OGG", "OPUS"), id="opus"),
        pytest.param(lambda: with_libav(tone(16000), 16000, "matroska", "aac"), id="mkv"),
        pytest.param(lambda: with_libav(tone(16000), 16000, "mp4", "aac"), id="mp4-index-behind"),
    ],
)
def test_a_stream_gives_what_the_file_gives(data):
    """The same bytes through a pipe give the same samples, also MP4 whose index comes last."""
    content = data()
    np.testing.assert_array_equal(stream(content)[0], decode(content)[0])


def test_a_streamed_mp3_gives_what_the_file_gives_and_its_padding():
    """The padding that a file's end allows to cut off stays in a stream; the rest is the same."""
    content = with_soundfile(tone(16000), 16000, "MP3", "MPEG_LAYER_III")
    whole, piped = decode(content)[0], stream(content)[0]
    np.testing.assert_array_equal(piped[: len(whole) - 500], whole[:-500])
    assert 0 <= len(piped) - len(whole) < 1600


def test_a_wav_stream_of_unknown_length_is_read_to_its_end():
    """Recorders that pipe WAV write sizes they cannot know; the end of the stream is the end."""
    data = bytearray(with_soundfile(tone(16000), 16000))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    samples, recording = stream(bytes(data))
    assert_is_the_tone(samples)
    assert not recording.truncated


@pytest.mark.parametrize(
    ("form", "subtype", "rate", "channels", "enough_bytes"),
    [
        ("WAV", "PCM_16", 16_000, 1, 2**16 + 2**12),
        ("WAV", "PCM_16", 44_100, 2, 2**18),
        ("WAV", "ULAW", 8_000, 1, 12_000),
        ("WAV", "FLOAT", 16_000, 1, 96_000),
        ("AU", "PCM_16", 16_000, 1, 48_000),
    ],
)
def test_what_has_come_of_a_live_stream_is_given(form, subtype, rate, channels, enough_bytes):
    """A second is there with the half of the next: libav by itself would wait for three seconds and more.

    Of 16-bit WAV it waits for 64 KiB in any case, to rule out S/PDIF.
    """
    data = with_soundfile(np.full((6 * rate, channels), 0.5), rate, form, subtype)
    assert enough_bytes < len(data)
    reader, writer = os.pipe()
    stop, stopper = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 2**20)
    os.write(writer, data[:enough_bytes])
    hung = threading.Timer(60, os.write, (stopper, b"x"))
    hung.start()
    try:
        recording = Recording(reader, FrontendConfig(), part=Part(duration_s=1.0), stop_fd=stop)
        assert sum(block.size for block in recording.blocks()) == 16_000
        assert not hung.finished.is_set()
    finally:
        hung.cancel()
        for fd in (reader, writer, stop, stopper):
            os.close(fd)


def test_a_stream_that_must_be_kept_is_bounded():
    """An MP4 beyond the spool's size is refused with the way out."""
    data = with_libav(np.random.default_rng(0).normal(0, 0.2, 160_000), 16000, "mp4", "aac")
    with pytest.raises(JobError, match="send it as a file"):
        stream(data, max_spool_bytes=10_000)


def test_an_empty_stream_is_named():
    """A pipe closed without a byte is bad_input."""
    with pytest.raises(JobError, match="no byte of audio"):
        stream(b"")


def test_waiting_for_a_stream_can_be_called_off():
    """A stalled stream ends with Stopped as soon as the job's own socket closes."""
    reader, writer = os.pipe()
    ours, theirs = socket.socketpair()
    try:
        os.write(writer, with_soundfile(tone(16000), 16000)[:5000])
        recording = Recording(reader, FrontendConfig(), stop_fd=theirs.fileno())
        ours.close()
        with pytest.raises(Stopped):
            list(recording.blocks())
    finally:
        theirs.close()
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("path", ["/", "/dev/zero", "/dev/null"])
def test_what_is_neither_file_nor_stream_is_refused(path):
    """F18: directories and devices are bad_input at once."""
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(JobError, match="neither a file nor a stream") as caught:
            Recording(fd, FrontendConfig())
    finally:
        os.close(fd)
    assert caught.value.code == "bad_input"


def test_a_descriptor_that_cannot_be_read_is_refused(tmp_path):
    """F18: write-only and O_PATH descriptors of a file are bad_input."""
    path = tmp_path / "x.wav"
    path.write_bytes(with_soundfile(tone(16000), 16000))
    for flags in (os.O_WRONLY, os.O_PATH):
        fd = os.open(path, flags)
        try:
            with pytest.raises(JobError, match="cannot be read"):
                Recording(fd, FrontendConfig())
        finally:
            os.close(fd)


def test_a_file_that_libav_reads_whole_is_whole(monkeypatch):
    """Where libsndfile fails on its first read and libav then reads everything, nothing is missing."""

    def fail(*_, **__):
        raise soundfile.LibsndfileError(0)

    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    samples, recording = decode(with_soundfile(tone(16000), 16000, "FLAC"))
    assert_is_the_tone(samples)
    assert not recording.truncated


def test_arrivals_of_a_stream_are_told_and_a_listener_that_left_ends_it():
    """Each part that comes is told of; an error of the listener calls the job off, not the decoder."""
    told = []

    def listen(decoded_s):
        told.append(decoded_s)
        if len(told) > 1:
            raise BrokenPipeError

    reader, writer = os.pipe()
    try:
        os.write(writer, with_soundfile(tone(16000, seconds=0.1), 16000))
        recording = Recording(reader, FrontendConfig(), on_bytes=listen)
        assert told == [0.0]
        os.write(writer, bytes(2000))
        with pytest.raises(Stopped):
            list(recording.blocks())
        assert len(told) == 2
    finally:
        os.close(reader)
        os.close(writer)
