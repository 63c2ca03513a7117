"""Any rate, one or two channels -> 16 kHz mono 16-bit, as `ffmpeg -ac 1 -ar 16000` does it, bit for bit.

Must never import torch.

libswresample with its defaults, because it is what the recordings FunASR is measured on went through:
FSMN-VAD decides differently on music and near-silence when another resampler moves the last bits. 16-bit
input is mixed and filtered in 16-bit arithmetic (`tsf=s16p`), which was libswresample's own choice up to
FFmpeg 5.1; the rest in float.
"""

from __future__ import annotations

import contextlib
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import av.filter
import numpy as np

from sensevoiced.jobs import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Samples = NDArray[np.int16] | NDArray[np.float32]

PUSH_SAMPLES = 2**16
"""Samples per channel given to libswresample at once: what it makes of them stays in a core's cache."""
INT16_SCALE = np.float32(1 / 32768)


class Resampler:
    """One stretch of audio of one rate, channel count and type: accept() pieces, then finish()."""

    def __init__(self, rate: int, channels: int, dtype: np.dtype[Any]) -> None:
        """Prepare for pieces of samples x channels (1 or 2) in int16 or float32."""
        self.kind = (rate, channels, dtype)
        self._rate = rate
        self._position = 0
        self._format = "s16" if dtype == np.int16 else "flt"
        self._layout = "mono" if channels == 1 else "stereo"
        self._needed = rate != SAMPLE_RATE_HZ or channels != 1
        self._planar = False
        self._graph: av.filter.Graph | None = None

    def accept(self, piece: Samples) -> Floats:
        """Take the next samples; give 16 kHz mono on the 16-bit grid, in -1..1, as far as they are ready."""
        if not self._needed:
            return to_16_bit(piece[:, 0])
        if self._graph is None:
            # As the decoder gives it, one channel behind the other or interleaved: libswresample takes both.
            self._planar = piece.T.flags.c_contiguous
            self._graph = self._build()
        whole: Any = np.asfortranarray(piece) if self._planar else np.ascontiguousarray(piece)
        parts = []
        for start in range(0, len(whole), PUSH_SAMPLES):
            part = whole[start : start + PUSH_SAMPLES]
            planes = part.T if self._planar else part.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(planes, format=self._sample_format(), layout=self._layout)
            frame.sample_rate = self._rate
            frame.time_base = Fraction(1, self._rate)
            frame.pts = self._position
            self._position += len(part)
            self._graph.push(frame)
            parts.append(self._pull(self._graph))
        return np.concatenate(parts)

    def finish(self) -> Floats:
        """Give what the filter still holds."""
        if self._graph is None:
            return np.zeros(0, np.float32)
        self._graph.push(None)
        return self._pull(self._graph)

    def _sample_format(self) -> str:
        return self._format + "p" if self._planar else self._format

    def _build(self) -> av.filter.Graph:
        graph = av.filter.Graph()
        # Nothing in it works in parallel, and libavfilter would start a thread for each core. PyAV can say so
        # since 18.
        with contextlib.suppress(AttributeError):
            graph.threads = 1
        source = graph.add_abuffer(
            sample_rate=self._rate,
            format=self._sample_format(),
            layout=self._layout,
            time_base=Fraction(1, self._rate),
        )
        inner = ":tsf=s16p" if self._format == "s16" else ""
        resample = graph.add("aresample", f"{SAMPLE_RATE_HZ}{inner}")
        form = graph.add("aformat", f"sample_fmts=s16:sample_rates={SAMPLE_RATE_HZ}:channel_layouts=mono")
        sink = graph.add("abuffersink")
        source.link_to(resample)
        resample.link_to(form)
        form.link_to(sink)
        graph.configure()
        return graph

    def _pull(self, graph: av.filter.Graph) -> Floats:
        parts = []
        while True:
            try:
                frame = graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break
            if isinstance(frame, av.AudioFrame):
                parts.append(frame.to_ndarray()[0])
        if not parts:
            return np.zeros(0, np.float32)
        return to_16_bit(np.concatenate(parts))


def to_16_bit(samples: Samples) -> Floats:
    """Give samples as float32 in -1..1 on the 16-bit grid.

    Int16 as it is, floats rounded and clipped at full scale.
    """
    if samples.dtype == np.int16:
        return samples.astype(np.float32) * INT16_SCALE
    scaled: Floats = samples * np.float32(32768)
    np.rint(scaled, out=scaled)
    np.clip(scaled, -32768, 32767, out=scaled)
    scaled *= INT16_SCALE
    return scaled
