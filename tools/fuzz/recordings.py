"""The audio front end's target: any bytes are utterances or one refusal, in process and with small limits.

Must never import the fuzzer, nor torch. Only our own Python guides the fuzzer; the libraries that decode are
not instrumented, but a crash of theirs is found all the same.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sensevoiced.config import FrontendConfig
from sensevoiced.frontend.answers import Expected, Found, interpret
from sensevoiced.frontend.audio import Recording
from sensevoiced.frontend.pipeline import Frontend, Pass
from sensevoiced.jobs import Decoded, JobError
from sensevoiced.models import find_asr, find_vad
from tools.fuzz import require
from tools.fuzz.samples import clip, encoded

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BYTES = 32 * 2**10
"""Below a pipe's capacity, so that a stream needs no second thread."""
DICTIONARY = (
    *("RIFF", "RF64", "WAVE", "fmt ", "data", "LIST", "FORM", "AIFF", "SSND", "COMM", "caff", "desc", "pakt"),
    *("fLaC", "OggS", "OpusHead", "vorbis", "ID3", "Xing", "ftyp", "moov", "mdat", "trak", "stbl", "stsz"),
    *("stco", "esds", "dref", "#!AMR", "TTA1", "wvpk", "NIST_1A", ".snd", "FLV", "#EXTM3U", "file:", "MAC "),
    *("ffconcat version 1.0", "MPCK", "DSD ", "FRM8", "VBRI", "OpusTags"),
)
"""What containers begin with and are divided by."""
LIMITS = FrontendConfig(
    max_duration_s=20.0, max_utterance_s=5.0, max_whole_s=8.0, merge_length_s=3.0, max_spool_bytes=24 * 2**10
)
"""Small enough that a few KiB reach each of them."""
VAD_BIT, STREAM_BIT = 1, 2
"""Of an input's last byte, which no container needs: whether VAD is on, and whether it comes by a pipe."""
SEED_S = 0.8


class Target:
    """A front end with the demo model, which every checkout has, and what a parent expects of its child."""

    def __init__(self) -> None:
        """Load and warm it up, as a child does."""
        asr = find_asr("demo", Path("absent"))
        vad = find_vad("auto", Path("absent"), beside=asr)
        self._frontend = Frontend.load(
            LIMITS, asr.frontend, vad_spec=vad.frontend, vad_weights=vad.weights, vad_config=vad.config
        )
        self._frontend.warm_up()
        self._expected = Expected.under(LIMITS, asr.frontend)

    def check(self, data: bytes) -> None:
        """Require of one input what the child promises its parent, who takes it for an enemy otherwise."""
        if not data:
            return
        fd = _pipe(data) if data[-1] & STREAM_BIT else _memfd(data)
        try:
            self._run(fd, vad=bool(data[-1] & VAD_BIT))
        except JobError as error:
            refusal = {"type": "error", "code": error.code, "message": error.message}
            require(isinstance(self._understood(refusal), JobError), "a refusal is understood")
            require(error.message.endswith(".") and error.message.isprintable(), "it is one sentence")
        except MemoryError:
            pass  # the child says so and makes room for another
        finally:
            os.close(fd)

    def _run(self, fd: int, *, vad: bool) -> None:
        run = Pass(self._frontend, Recording(fd, LIMITS), vad=vad)
        index, before_s = 0, 0.0
        for stretches in run.stretches():
            for stretch in stretches:
                frames, dim = stretch.features.shape
                message = {"type": "utterance", "index": index, "frames": frames, "dim": dim}
                message["channel"] = stretch.channel
                message |= {"start_s": stretch.start_s, "end_s": stretch.end_s, "decoded_s": run.decoded_s}
                features = memoryview(stretch.features.data).cast("B")
                require(
                    isinstance(self._understood(message, features, index), Found),
                    "an utterance is understood",
                )
                require(np.isfinite(stretch.features).all(), "features are finite")
                require(before_s <= stretch.start_s, "utterances come in order and do not overlap")
                index, before_s = index + 1, stretch.end_s
        end = run.decoded()
        done = {"type": "done", "duration_s": end.duration_s, "truncated": end.truncated}
        done |= {"decode_s": end.decode_s, "features_s": end.features_s, "vad_s": end.vad_s}
        require(isinstance(self._understood(done), Decoded), "the end is understood")
        require(0 <= end.duration_s <= LIMITS.max_duration_s, "the duration keeps its limit")
        require(before_s <= end.duration_s, "no utterance ends behind the recording")

    def _understood(
        self, message: dict[str, object], payload: bytes | memoryview = b"", index: int = 0
    ) -> object:
        return interpret(message, memoryview(payload), index, self._expected)


def make_check() -> Callable[[bytes], None]:
    """Give the function that is fuzzed."""
    return Target().check


def seeds() -> dict[str, bytes]:
    """A sample clip in every form, by file and by stream, with VAD and without, in turn."""
    forms = encoded(clip(SEED_S))
    return {name: data[: MAX_BYTES - 1] + bytes([at % 4]) for at, (name, data) in enumerate(forms.items())}


def _memfd(data: bytes) -> int:
    fd = os.memfd_create("recording")
    os.write(fd, data)
    return fd


def _pipe(data: bytes) -> int:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        os.write(writer, data)
    finally:
        os.close(writer)
    return reader
