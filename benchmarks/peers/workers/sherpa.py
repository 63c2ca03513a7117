"""sherpa-onnx's OfflineRecognizer: `sherpa.py MODEL.onnx TOKENS THREADS`, in the peers' environment.

The clock runs from samples in memory to the text: features and network, without VAD and without reading the
file. What is longer than 30 s is cut there, which its user would pay a VAD for; here it costs nothing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import sherpa_onnx
import soundfile
from lines import Answer, Lines

PIECE_S = 30
ITN_UNKNOWN = -1
"""Stands for the fourth tag, which sherpa-onnx does not tell."""


class Sherpa:
    """The recogniser, and its token table read backwards."""

    def __init__(self, model: str, tokens: str, threads: int) -> None:
        """Load the model."""
        self._recognizer = sherpa_onnx.OfflineRecognizer.from_sense_voice(
            model=model, tokens=tokens, num_threads=threads, language="auto", use_itn=True
        )
        rows = (line.rsplit(" ", 1) for line in Path(tokens).read_text(encoding="utf-8").splitlines())
        # As sherpa-onnx prints them: with a space for SentencePiece's mark.
        self._ids = {piece.replace("\u2581", " "): int(number) for piece, number in rows}

    def recognise(self, clip: Path) -> Answer:
        """Recognise a file piece by piece, its channels mixed."""
        channels, rate = soundfile.read(clip, dtype="float32", always_2d=True)
        samples = channels.mean(axis=1)
        pieces = [samples[at : at + PIECE_S * rate] for at in range(0, len(samples), PIECE_S * rate)]
        streams = []
        start = time.perf_counter()
        for piece in pieces:
            stream = self._recognizer.create_stream()
            stream.accept_waveform(rate, piece)
            self._recognizer.decode_stream(stream)
            streams.append(stream)
        seconds = time.perf_counter() - start
        text = " ".join(stream.result.text for stream in streams)
        return {"seconds": seconds, "text": text, "tokens": self._tokens(streams)}

    def _tokens(self, streams: list[sherpa_onnx.OfflineStream]) -> list[int] | None:
        """Ids of a clip that was one piece."""
        if len(streams) != 1:
            return None
        result = streams[0].result
        tags = [self._ids.get(tag, ITN_UNKNOWN) for tag in (result.lang, result.emotion, result.event)]
        return [*tags, ITN_UNKNOWN, *(self._ids[piece] for piece in result.tokens)]


if __name__ == "__main__":
    lines = Lines()
    lines.serve(Sherpa(*sys.argv[1:3], int(sys.argv[3])).recognise)
