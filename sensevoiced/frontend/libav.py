"""Decodes with libav what libsndfile cannot read, from an object and never from a name.

Must never be imported before it is needed.

Only listed demuxers and decoders may run: a playlist, a concat script or an SDP is not a recording, and could
name other files. Nothing can be opened besides the object given (protocol_whitelist is empty, io_open
refuses), and no video decoder starts for a cover picture, nor its parser where PyAV can skip a stream.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

import av
import av.stream
import av.subtitles.codeccontext  # PyAV does so late, for a film with subtitles: too late in a jail
import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.plane import AudioPlane
from av.error import FFmpegError

from sensevoiced.jobs import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sensevoiced.frontend.resample import Samples
    from sensevoiced.frontend.source import Source

UNREADABLE = (
    "This is not an audio file that libsndfile or libav can read: convert it first, for example with "
    "'ffmpeg -i IN -ac 1 -ar 16000 out.wav'."
)
FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,gsm,iff,loas,matroska,mov,mp3,"
    "mpc,mpc8,mpeg,mpegts,nistsphere,ogg,sox,tak,tta,voc,w64,wav,wv,xwma"
)
"""Demuxers that hold audio and refer to nothing outside themselves; names as `ffmpeg -demuxers` has them."""
CODECS = (
    "aac,aac_latm,ac3,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,adpcm_swf,adpcm_yamaha,alac,amrnb,"
    "amrwb,ape,comfortnoise,cook,dca,dsd_lsbf,dsd_lsbf_planar,dsd_msbf,dsd_msbf_planar,eac3,"
    "flac,g722,g723_1,g726,g726le,g729,gsm,gsm_ms,ilbc,libopencore_amrnb,libopencore_amrwb,"
    "libopus,mace3,mace6,mlp,mp1,mp1float,mp2,mp2float,mp3,mp3float,mpc7,mpc8,nellymoser,"
    "opus,pcm_alaw,pcm_bluray,pcm_dvd,pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,pcm_mulaw,"
    "pcm_s16be,pcm_s16be_planar,pcm_s16le,pcm_s16le_planar,pcm_s24be,pcm_s24le,pcm_s24le_planar,"
    "pcm_s32be,pcm_s32le,pcm_s32le_planar,pcm_s8,pcm_s8_planar,pcm_u16be,pcm_u16le,pcm_u24be,"
    "pcm_u24le,pcm_u32be,pcm_u32le,pcm_u8,qdm2,speex,tak,truehd,tta,vorbis,wavpack,"
    "wmalossless,wmapro,wmav1,wmav2,wmavoice"
)
"""Decoders of those formats; none for video, whose libraries are the larger target."""
DTYPES = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "flt": np.float32, "dbl": np.float64}
"""libav's sample formats that may come (planar ones end in p), as numpy has them."""
MAX_ERRORS_BEFORE_AUDIO = 200
"""Packets that may fail before the first frame: sync bytes found in something that is no audio."""
LIVE = {"max_ts_probe": "1"}
"""For a stream: libav would hold back 50 packets, 3 s of PCM, for a first timestamp, which nobody uses."""
LIVE_WAV = LIVE | {"max_probe_packets": "4"}
"""And 32, 3 s at 44.1 kHz, to look for DTS in 16-bit PCM: 4 are the 64 KiB it wants for S/PDIF anyway."""
FAILURES = (FFmpegError, PermissionError)
"""What libav refuses, and what `_refuse` does."""
MISSING_S = 0.25
"""A container that promises more than it holds by so much was cut; less is priming and padding."""


class LibavDecoder:
    """One container's audio stream: iterate blocks() once, then ask `damaged`, then close()."""

    def __init__(
        self,
        source: Source,
        check: Callable[[int, int], None],
        *,
        hurry: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Find the audio stream.

        `check` is given each new rate and channel count, and raises if it dislikes them. `hurry` is LIVE or
        LIVE_WAV for what is not there yet.
        """
        self.damaged = False
        self._check = check
        try:
            self._container = av.open(
                source,
                mode="r",
                metadata_errors="replace",
                container_options={
                    "format_whitelist": FORMATS,
                    "codec_whitelist": CODECS,
                    "protocol_whitelist": "",
                    **hurry,
                },
                io_open=_refuse,
            )
        except (*FAILURES, ValueError) as error:
            raise JobError("bad_input", UNREADABLE) from error
        streams = self._container.streams.audio
        # Only the first: more are other languages or commentary of the same film.
        if not streams:
            self.close()
            raise JobError("bad_input", "The recording holds no audio stream.")
        self._stream = streams[0]
        if self._stream.codec_context is None or self._stream.codec_context.codec.name not in CODECS.split(
            ","
        ):
            self.close()
            raise JobError("bad_input", UNREADABLE)
        self._stream.codec_context.thread_count = 1
        self._skip_the_rest()

    @property
    def format(self) -> str:
        """First name of the demuxer that was chosen, such as mov or ogg."""
        return self._container.format.name.split(",")[0]

    def close(self) -> None:
        """Let go of the container."""
        self._container.close()

    def blocks(self, block_s: float, max_values: int) -> Iterator[tuple[Samples, int]]:
        """Give frames x channels and their rate, about `block_s` seconds or `max_values` values at a time.

        Raises JobError(bad_input) if nothing can be read.
        """
        given_s = 0.0
        for block in self._collected(block_s, max_values):
            given_s += block.samples / block.sample_rate
            yield to_samples(block), block.sample_rate
        if not given_s:
            raise JobError("bad_input", UNREADABLE)
        self._compare(given_s)

    def _collected(self, block_s: float, max_values: int) -> Iterator[av.AudioFrame]:
        """Give the decoder's frames joined to long ones, each of one rate, channel count and sample format.

        They are joined in libav: an Opus frame has 20 ms, and as an array of its own costs more than its
        decoding.
        """
        queue = AudioFifo()
        kind = (0, 0, "")
        held, enough = 0, 0.0
        for frame in self._frames():
            found = (frame.sample_rate, frame.layout.nb_channels, frame.format.name)
            if found != kind:
                # The queue itself would not notice other channels, and read beyond the frame.
                rate, channels, _ = kind = found
                self._check(rate, channels)
                yield from _left(queue)
                queue, held = AudioFifo(), 0
                enough = min(block_s * rate, max_values / channels)
            # With times it would insist on a recording without gaps.
            frame.pts = None
            queue.write(frame)
            held += frame.samples
            if held >= enough:
                yield from _left(queue)
                held = 0
        yield from _left(queue)

    def _skip_the_rest(self) -> None:
        """Have no other stream's packets read or parsed: pictures and film are of no use to us."""
        if (discard := getattr(av.stream, "Discard", None)) is None:
            # PyAV before 18: they are read, and not decoded.
            return
        for other in self._container.streams:
            if other.index != self._stream.index:
                other.discard = discard.all

    def _frames(self) -> Iterator[av.AudioFrame]:
        errors, frames = 0, 0
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except FAILURES:
                self.damaged = True
                return
            except IndexError:
                # At the end, PyAV looks for streams that libav found on the way, and has none of them.
                return
            if packet is None:
                return
            try:
                decoded = packet.decode()
            except FAILURES:
                # As ffmpeg does: a damaged packet is left out, the next one may be fine.
                self.damaged = True
                errors += 1
                if not frames and errors > MAX_ERRORS_BEFORE_AUDIO:
                    return
                continue
            for frame in decoded:
                if isinstance(frame, av.AudioFrame) and frame.samples:
                    frames += 1
                    yield frame

    def _compare(self, given_s: float) -> None:
        # MPEG audio and other bare streams only estimate their duration from the bit rate.
        if self.format not in ("mov", "matroska", "asf", "caf", "wav", "aiff", "avi"):
            return
        duration, base = self._stream.duration, self._stream.time_base
        whole = self._container.duration
        promised_s = 0.0
        if duration is not None and base is not None:
            promised_s = float(duration * base)
        elif whole is not None and len(self._container.streams) == 1:
            # Matroska tells the length of the file alone; where there is a picture too, it may be longer.
            promised_s = whole / av.time_base
        if promised_s > given_s + MISSING_S:
            self.damaged = True


def _left(queue: AudioFifo) -> Iterator[av.AudioFrame]:
    rest = queue.read()
    if rest is not None:
        yield rest


def to_samples(frame: av.AudioFrame) -> Samples:
    """Give a decoded frame as samples x channels: int16 for up to 16 bits, else float32 in -1..1."""
    name = frame.format.name.removesuffix("p")
    if name not in DTYPES:
        raise JobError("bad_input", UNREADABLE)
    channels = frame.layout.nb_channels
    planes, values_each = (channels, 1) if frame.format.is_planar else (1, channels)
    # Not frame.to_ndarray(): with eight planes and more it looks for another one beyond the last.
    plane: Any = AudioPlane
    dtype, count = DTYPES[name], frame.samples * values_each
    values: Any = np.stack([np.frombuffer(plane(frame, at), dtype, count) for at in range(planes)])
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    samples: Samples
    if name == "s16":
        samples = values
    elif name == "u8":
        samples = (values.astype(np.int16) - 128) << 8
    else:
        samples = values.astype(np.float32, copy=False)
        if name == "s32":
            samples *= np.float32(2.0**-31)
    return samples


def _refuse(*_: object) -> NoReturn:
    """Open nothing: a recording has no business naming files."""
    raise PermissionError
