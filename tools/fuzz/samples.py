"""A clip in every container and codec that this machine can write, a few KiB each.

Must never import the daemon's front end: what it reads is made without it.
"""

from __future__ import annotations

import io
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import soundfile

from sensevoiced.models import DEMO_DIR

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.int16]

BY_LIBSNDFILE = (
    *("WAV/PCM_16", "WAV/PCM_U8", "WAV/FLOAT", "WAV/ULAW", "WAV/IMA_ADPCM", "WAV/GSM610", "RF64/PCM_16"),
    *("FLAC/PCM_16", "OGG/VORBIS", "OGG/OPUS", "MP3/MPEG_LAYER_III", "AIFF/PCM_16", "CAF/ALAC_16"),
    *("AU/G721_32", "W64/PCM_24", "NIST/PCM_16"),
)
"""Format and subtype."""
BY_LIBAV = (
    *("mp4/aac/16000", "adts/aac/16000", "webm/libopus/48000", "matroska/flac/16000", "mp4/alac/16000"),
    *("amr/libopencore_amrnb/8000", "3gp/libopencore_amrnb/8000", "asf/wmav2/22050", "mpegts/mp2/16000"),
    *("tta/tta/16000", "wv/wavpack/16000", "ac3/ac3/32000", "flv/adpcm_swf/22050", "ogg/flac/16000"),
    *("avi/adpcm_ms/16000", "mov/pcm_s16be/16000", "matroska/libvorbis/16000", "asf/wmav1/22050"),
)
"""Muxer, encoder and rate."""
RATE_HZ = 16_000
WMA_BITS_PER_S = 32_000
"""It knows no default for one channel."""


def clip(seconds: float) -> Samples:
    """The beginning of one of the demo model's sample clips, which every checkout has."""
    samples, rate = soundfile.read(
        DEMO_DIR / "samples" / "en.flac", dtype="int16", frames=round(seconds * RATE_HZ)
    )
    if rate != RATE_HZ or samples.ndim != 1:
        raise ValueError("the sample clips are not at 16 kHz mono any more")
    return samples


def encoded(samples: Samples) -> dict[str, bytes]:
    """The samples (16 kHz mono) in every form; encoders that this build lacks are left out."""
    found = {}
    for name in BY_LIBSNDFILE:
        container, subtype = name.split("/")
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, RATE_HZ, format=container, subtype=subtype)
        found[f"sf-{container}-{subtype}".lower()] = buffer.getvalue()
    for name in BY_LIBAV:
        container, codec, rate = name.split("/")
        if codec in av.codecs_available:
            found[f"av-{container}-{codec}"] = by_libav(samples, container, codec, int(rate))
    return found


def by_libav(
    samples: Samples, container: str, codec: str, rate: int, options: dict[str, str] | None = None
) -> bytes:
    """The samples (16 kHz mono) in libav's `container`, encoded by `codec` at `rate`."""
    # A file and not a buffer: MP4 is written with its index at the end, and that is known last.
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=container, options=options or {}) as output:
            stream = output.add_stream(codec, rate=rate, layout="mono")
            if codec.startswith("wma"):
                stream.bit_rate = WMA_BITS_PER_S
            frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = RATE_HZ, Fraction(1, RATE_HZ), 0
            resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate)
            for piece in (*resampler.resample(frame), *resampler.resample(None)):
                output.mux(stream.encode(piece))
            output.mux(stream.encode(None))
        return Path(file.name).read_bytes()
