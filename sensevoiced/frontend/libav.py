"""Decodes with libav what libsndfile cannot read, from an object and never from a name.

Must never be imported before it is needed.

Only listed demuxers and decoders may run: a playlist, a concat script or an SDP is not a recording, and could
name other files. Nothing can be opened besides the object given (protocol_whitelist is empty, io_open
refuses), and no video decoder starts for a cover picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import av
import numpy as np
from av.error import FFmpegError

from sensevoiced.jobs import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
SCALES = {"u8": 2.0**-7, "s16": 2.0**-15, "s32": 2.0**-31, "flt": 1.0, "dbl": 1.0}
"""libav's sample formats (planar ones end in p), and what brings them to -1..1; numpy knows no others."""
MAX_ERRORS_BEFORE_AUDIO = 200
"""Packets that may fail before the first frame: sync bytes found in something that is no audio."""
MISSING_S = 0.25
"""A container that promises more than it holds by so much was cut; less is priming and padding."""


class LibavDecoder:
    """One container's audio stream: iterate blocks() once, then ask `damaged`, then close()."""

    def __init__(self, source: Source, check: Callable[[int, int], None]) -> None:
        """Find the audio stream.

        `check` is given each new rate and channel count, and raises if it dislikes them.
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
                },
                io_open=_refuse,
            )
        except (FFmpegError, ValueError) as error:
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

    @property
    def format(self) -> str:
        """First name of the demuxer that was chosen, such as mov or ogg."""
        return self._container.format.name.split(",")[0]

    def close(self) -> None:
        """Let go of the container."""
        self._container.close()

    def blocks(self, block_s: float) -> Iterator[tuple[Samples, int]]:
        """Give frames x channels and their rate, about `block_s` seconds at a time.

        Raises JobError(bad_input) if nothing can be read.
        """
        held: list[Any] = []
        count, given, rate = 0, 0.0, 0
        for frame in self._frames():
            samples = to_samples(frame)
            changed = frame.sample_rate != rate or bool(held and held[0].shape[1] != samples.shape[1])
            if changed:
                self._check(frame.sample_rate, samples.shape[1])
            if held and (changed or count >= block_s * rate):
                yield np.concatenate(held), rate
                held, count = [], 0
            rate = frame.sample_rate
            held.append(samples)
            count += len(samples)
            given += len(samples) / rate
        if held:
            yield np.concatenate(held), rate
        if not given:
            raise JobError("bad_input", UNREADABLE)
        self._compare(given)

    def _frames(self) -> Iterator[av.AudioFrame]:
        errors, frames = 0, 0
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except FFmpegError:
                self.damaged = True
                return
            if packet is None:
                return
            try:
                decoded = packet.decode()
            except FFmpegError:
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
        if duration is not None and base is not None and float(duration * base) > given_s + MISSING_S:
            self.damaged = True


def to_samples(frame: av.AudioFrame) -> Samples:
    """Give a decoded frame as samples x channels: int16 for up to 16 bits, else float32 in -1..1."""
    name = frame.format.name.removesuffix("p")
    if name not in SCALES:
        raise JobError("bad_input", UNREADABLE)
    values: Any = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
    samples: Samples
    if name == "s16":
        samples = values
    elif name == "u8":
        samples = (values.astype(np.int16) - 128) << 8
    else:
        samples = values.astype(np.float32)
        if SCALES[name] != 1.0:
            samples *= np.float32(SCALES[name])
    return samples


def _refuse(*_: object) -> NoReturn:
    """Open nothing: a recording has no business naming files."""
    raise PermissionError
