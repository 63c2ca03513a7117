"""Any recording in, blocks of 16 kHz mono out, streaming with bounded memory.

Must never import torch, nor open a path or a URL.

libsndfile decodes what is lossless and libav the rest, so that every decoder is the one whose output people
know (see resample.py). Samples are on the 16-bit grid in the end: the models were trained on 16-bit audio,
FunASR gets it from files, and FSMN-VAD's decisions in near-silence depend on it. So a file and the same sound
piped as a 16-bit WAV give the same transcript.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import soundfile

from sensevoiced.frontend.libav import LIVE, LIVE_WAV, UNREADABLE, LibavDecoder
from sensevoiced.frontend.mixing import finite
from sensevoiced.frontend.part import Part
from sensevoiced.frontend.resample import Resampler
from sensevoiced.frontend.source import (
    OGG_PAGE,
    OGG_PAGE_BYTES,
    FileSource,
    HeadedStream,
    open_source,
)
from sensevoiced.frontend.wav import PLACEHOLDER_BYTES
from sensevoiced.jobs import SAMPLE_RATE_HZ, JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from sensevoiced.config import FrontendConfig
    from sensevoiced.frontend.resample import Samples
    from sensevoiced.frontend.source import Source

    Floats = NDArray[np.float32]

BLOCK_S = 8.0
"""Audio per block from a file: up to 30 ms of work, so a job that is called off ends soon, and long enough
for large matrix products."""
STREAM_BLOCK_S = 0.25
"""Audio per block from a stream: what a live speaker waits at most."""
MAX_READ_VALUES = 2**21
"""Values (samples x channels) per read: 8 MiB of float32, whatever rate and channels a header claims."""
CHANGING = (
    "The recording changes its number of channels, so that they cannot be told apart: leave out `split`."
)
NO_AUDIO = "The recording holds no audio: there is a header, and not one sample after it."
LOSSY = frozenset({"VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"})
"""libsndfile's subtypes that libav decodes instead."""
INT16_SUBTYPES = frozenset(
    {
        "PCM_16",
        "PCM_S8",
        "PCM_U8",
        "ULAW",
        "ALAW",
        "IMA_ADPCM",
        "MS_ADPCM",
        "GSM610",
        "G721_32",
        "G723_24",
        "G723_40",
        "ALAC_16",
    }
)
"""Subtypes whose samples 16 bits hold without loss."""
_UNKNOWN_SAMPLES = 2**62
"""libsndfile says 2^63 - 1 when a header does not tell the length."""


_WHOLE = Part()


class Recording:
    """One recording being decoded: iterate tracks() or blocks() once, then read `truncated` and `samples`."""

    def __init__(
        self,
        fd: int,
        limits: FrontendConfig,
        *,
        part: Part = _WHOLE,
        stop_fd: int | None = None,
        on_bytes: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Borrow `fd` (see source.open_source for what it may be).

        `on_bytes` hears of every arrival from a stream, with the seconds decoded so far: much may have
        to come before there is anything to give.

        JobError(bad_input) when it is nothing to read.
        """
        self._limits = limits
        self.part = part
        self.truncated = False
        """The recording breaks off or is damaged; what could be read was given."""
        self.samples = 0
        """16 kHz samples of each track given so far."""
        self._position = 0
        """16 kHz samples decoded so far, whether they are wanted or not."""
        self._source = open_source(
            fd,
            stop_fd=stop_fd,
            max_spool_bytes=limits.max_spool_bytes,
            on_bytes=lambda: on_bytes(self.position_s),
        )

    @property
    def position_s(self) -> float:
        """How far it is decoded, in seconds, and not beyond the part that is wanted."""
        return min(self._position, self.part.end) / SAMPLE_RATE_HZ

    def blocks(self) -> Iterator[Floats]:
        """Give the blocks of a recording's only track; see `tracks`."""
        return (tracks[0] for tracks in self.tracks() if tracks[0].size)

    def tracks(self) -> Iterator[list[Floats]]:
        """Give 16 kHz samples in -1..1, on the 16-bit grid, in blocks of up to a few seconds for each track.

        All blocks of one step are equally long; before the part that is wanted they are empty.

        Raises JobError: bad_input (nothing readable, odd rate or channels), too_long; source.Stopped for a
        stream called off.
        """
        resamplers: list[Resampler] = []
        for piece, rate in self.decoded():
            tracks = self.part.tracks(finite(piece))
            kinds = [(rate, track.shape[1], track.dtype) for track in tracks]
            if [resampler.kind for resampler in resamplers] != kinds:
                if resamplers:
                    yield self._give([resampler.finish() for resampler in resamplers])
                if resamplers and len(tracks) != len(resamplers):
                    raise JobError("bad_input", CHANGING)
                resamplers = [Resampler(*kind) for kind in kinds]
            yield self._give([one.accept(track) for one, track in zip(resamplers, tracks, strict=True)])
            if self._position >= self.part.end:
                return
        if not resamplers:
            raise JobError("bad_input", NO_AUDIO)
        yield self._give([resampler.finish() for resampler in resamplers])
        if not self.samples and self.part.first:
            length_s = self._position / SAMPLE_RATE_HZ
            raise JobError(
                "bad_input",
                f"The recording is {length_s:.1f} s long, and {self.part.start_s:g} s is where to start.",
            )

    def decoded(self) -> Iterator[tuple[Samples, int]]:
        """Give the recording as it is.

        Pieces of samples x channels (int16 or float32) with their rate in Hz.
        """
        file = self._open_libsndfile()
        given = False
        if file is not None:
            with file:
                for piece, rate in self._libsndfile(file):
                    given = True
                    yield piece, rate
            if isinstance(self._source, FileSource):
                self._source.seek(0)
        if not given:
            # libav also gets what libsndfile opened and found nothing in, such as FLAC with blocks of varying
            # size. What it says counts then: libsndfile's complaint was about its own attempt.
            self.truncated = False
            try:
                yield from self._libav(self._source)
            except JobError as error:
                self._settle_failure()
                headed = isinstance(self._source, HeadedStream) and self._source.has_header
                if (file is not None or headed) and error.message == UNREADABLE:
                    raise JobError("bad_input", NO_AUDIO) from error
                raise
        self._settle_failure()

    def _settle_failure(self) -> None:
        """Raise what ended the source early, or note that the file could not be read to its end."""
        failure = self._source.failure
        if isinstance(failure, OSError):
            self.truncated = True
        elif failure is not None:
            raise failure

    def _give(self, tracks: list[Floats]) -> list[Floats]:
        """Cut out what is wanted of the next samples of each track."""
        begins, count = self._position, tracks[0].size
        self._position += count
        if self._position > self._limits.max_duration_s * SAMPLE_RATE_HZ:
            raise self._too_long()
        first = min(max(self.part.first - begins, 0), count)
        end = int(min(max(self.part.end - begins, first), count))
        self.samples += end - first
        return [track[first:end] for track in tracks]

    def _too_long(self) -> JobError:
        hours = self._limits.max_duration_s / 3600
        return JobError(
            "too_long", f"The recording is longer than {hours:g} h, which is the limit: split it."
        )

    def _check(self, rate: int, channels: int) -> None:
        limits = self._limits
        if not limits.min_sample_rate_hz <= rate <= limits.max_sample_rate_hz:
            raise JobError(
                "bad_input",
                f"The recording claims a sample rate of {rate} Hz: "
                f"from {limits.min_sample_rate_hz} to {limits.max_sample_rate_hz} Hz is accepted.",
            )
        if not 1 <= channels <= limits.max_channels:
            raise JobError(
                "bad_input",
                f"The recording claims {channels} channels: up to {limits.max_channels} are accepted.",
            )

    def _open_libsndfile(self) -> soundfile.SoundFile | None:
        if not isinstance(self._source, FileSource):
            # libsndfile has to seek.
            return None
        try:
            file = soundfile.SoundFile(self._source)
        except (soundfile.SoundFileError, TypeError):
            # TypeError: what it takes for headerless samples, which nobody can guess.
            self._source.seek(0)
            return None
        if file.subtype in LOSSY:
            file.close()
            self._source.seek(0)
            return None
        return file

    def _libsndfile(self, file: soundfile.SoundFile) -> Iterator[tuple[Samples, int]]:
        rate, channels = file.samplerate, file.channels
        self._check(rate, channels)
        known = file.frames < _UNKNOWN_SAMPLES
        if known and file.frames > self._limits.max_duration_s * rate:
            raise self._too_long()
        dtype = "int16" if file.subtype in INT16_SUBTYPES else "float32"
        size = max(1, min(int(BLOCK_S * rate), MAX_READ_VALUES // channels))
        read = 0
        while True:
            try:
                piece = file.read(size, dtype=dtype, always_2d=True)
            except soundfile.SoundFileError:
                self.truncated = True
                break
            if not len(piece):
                break
            read += len(piece)
            yield piece, rate
        if read and ((known and read < file.frames) or _claims_more(file)):
            self.truncated = True

    def _libav(self, source: Source) -> Iterator[tuple[Samples, int]]:
        block_s, hurry = BLOCK_S, {}
        if isinstance(source, HeadedStream):
            block_s, hurry = STREAM_BLOCK_S, LIVE_WAV if source.is_wav else LIVE
        decoder = LibavDecoder(source, self._check, hurry=hurry)
        try:
            yield from decoder.blocks(block_s, MAX_READ_VALUES)
            if (
                decoder.format == "ogg"
                and isinstance(source, FileSource | HeadedStream)
                and not _ogg_ends(source.tail(OGG_PAGE_BYTES))
            ):
                self.truncated = True
            if isinstance(source, HeadedStream) and source.breaks_off:
                self.truncated = True
        finally:
            self.truncated = self.truncated or decoder.damaged
            decoder.close()


def _claims_more(file: soundfile.SoundFile) -> bool:
    """Say whether the audio chunk was meant to be longer than the file: libsndfile notes that in its log."""
    found = re.search(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    return found is not None and int(found.group(2)) < int(found.group(1)) < PLACEHOLDER_BYTES


def _ogg_ends(tail: bytes) -> bool:
    """Say whether the last page of an Ogg recording is there whole and says that it is the last.

    RFC 3533: flag 4 of byte 5; byte 26 counts the lengths from byte 27 on, and what they add up to follows.
    """
    header_bytes = 27
    page = tail[max(0, tail.rfind(OGG_PAGE)) :]
    if not page.startswith(OGG_PAGE) or len(page) < header_bytes or not page[5] & 4:
        return False
    behind_lengths = header_bytes + page[26]
    return len(page) >= behind_lengths + sum(page[header_bytes:behind_lengths])


__all__ = ["NO_AUDIO", "UNREADABLE", "Recording"]
