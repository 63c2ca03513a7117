"""FSMN-VAD: frames in, speech segments out, streaming; must never import torch.

The segments are those of FunASR 1.4.16 (funasr/models/fsmn_vad_streaming/model.py) on the same weights,
whatever the size of the blocks that come in. How it decides:

1. A frame is speech when P(speech) >= P(silence) + speech_noise_thres, where P(silence) is the posterior of
   the silence senones, and its level passes decibel_thres and snr_thres (both are out of reach by default).
2. A vote over the last window_size_ms: at 15 speech frames (sil_to_speech_time_thres) the voice has begun,
   and the segment starts window_size_ms + lookback_time_start_point earlier; at 15 or fewer
   (speech_to_sil_time_thres) it has stopped.
3. Silence counted from there closes the segment once it lasts max_end_silence_time less
   speech_to_sil_time_thres; its end is put lookahead_time_end_point after the voice stopped. A segment longer
   than max_single_segment_time is cut where it stands.
4. Since May 2026 FunASR does not use the fixed max_end_silence_time unless the caller names one. It then
   works through the recording in chunks of 60 s with a schedule of its own: 2000 ms of silence end a segment,
   but 200 ms when at the start of a chunk a segment was open (100 ms when that has lasted for two chunks or
   more), and speech_noise_thres is 0.5 whatever config.yaml says. `VadOptions.dynamic` says which of both is
   in force.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from sensevoiced.frontend.fbank import stacked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from sensevoiced.frontend.fbank import Cmvn, Frames
    from sensevoiced.frontend.fsmn import Fsmn

CHUNK_MS = 60_000
"""FunASR's chunk_size: how often its schedule is looked at."""
SILENCE_SCHEDULE: tuple[tuple[float, int], ...] = (
    (10_000, 2000),
    (20_000, 1000),
    (30_000, 800),
    (40_000, 600),
    (50_000, 400),
    (60_000, 200),
    (inf, 100),
)
"""FunASR's schedule: (up to so many ms of open speech, so many ms of silence end it). With chunks of 60 s
only 0, 60 000 and more occur."""
DYNAMIC_SPEECH_NOISE_THRES = 0.5


@dataclass(frozen=True, slots=True)
class VadOptions:
    """FunASR's options of FSMN-VAD under FunASR's names, times in milliseconds.

    Defaults are those of FunASR.
    """

    max_end_silence_time: int = 800
    window_size_ms: int = 200
    sil_to_speech_time_thres: int = 150
    speech_to_sil_time_thres: int = 150
    speech_2_noise_ratio: float = 1.0
    do_extend: int = 1
    lookback_time_start_point: int = 200
    lookahead_time_end_point: int = 100
    max_single_segment_time: int = 60_000
    snr_thres: float = -100.0
    noise_frame_num_used_for_snr: int = 100
    decibel_thres: float = -100.0
    speech_noise_thres: float = 0.6
    sil_pdf_ids: tuple[int, ...] = (0,)
    frame_in_ms: int = 10
    dynamic: bool = True
    """FunASR's schedule of end silences is in force; False once max_end_silence_time was asked for."""

    @classmethod
    def from_config(cls, model_conf: Mapping[str, Any], asked: Mapping[str, Any] | None = None) -> VadOptions:
        """Read `model_conf` of config.yaml and lay over it what was asked for.

        ValueError for what we do not offer.
        """
        if int(model_conf.get("detect_mode", 1)) != 1:
            raise ValueError("detect_mode 0 (one utterance only) is not offered")
        known = {field.name for field in fields(cls)} - {"dynamic"}
        unknown = set(asked or {}) - known
        if unknown:
            raise ValueError(f"FSMN-VAD has no option {', '.join(sorted(unknown))}")
        values = {name: value for name, value in {**model_conf, **(asked or {})}.items() if name in known}
        values["sil_pdf_ids"] = tuple(values.get("sil_pdf_ids", (0,)))
        return replace(cls(), **values, dynamic="max_end_silence_time" not in (asked or {}))


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech in 10 ms frames, `end` excluded; FunASR's [start * 10, end * 10] ms."""

    start: int
    end: int


class VoiceDetector:
    """One recording's way through FSMN-VAD: accept() blocks of frames, then finish()."""

    def __init__(self, net: Fsmn, options: VadOptions, cmvn: Cmvn, *, lfr_m: int) -> None:
        """Start before the first frame; `lfr_m` frames are stacked for the network, one row a frame."""
        self._net = net
        self._state = net.start()
        self._options = options
        self._cmvn = cmvn
        self._lfr_m = lfr_m
        self._behind, self._ahead = (lfr_m - 1) // 2, lfr_m - 1 - (lfr_m - 1) // 2
        self._context: NDArray[np.float32] | None = None
        self._levels: NDArray[np.float32] = np.zeros(0, np.float32)
        self._endpoint = Endpointer(options, look_ahead=self._ahead)

    @property
    def open_start(self) -> int | None:
        """First frame of the segment that is open, if one is."""
        return self._endpoint.start if self._endpoint.open else None

    @property
    def open_end(self) -> int:
        """End of what is certain to belong to the open segment."""
        return self._endpoint.end

    @property
    def earliest_start(self) -> int:
        """No segment that is not open yet can start before this frame."""
        return self._endpoint.earliest_start

    def accept(self, frames: Frames) -> tuple[list[Segment], NDArray[np.float64]]:
        """Take the next frames; give the segments closed by them and P(speech) of the frames now decided on.

        What the network looks ahead (two frames) stays undecided until the next call or finish().
        """
        if not len(frames):
            return [], np.zeros(0)
        if self._context is None:
            self._context = np.repeat(frames.mel[:1], self._behind, 0)
        return self._advance(
            np.concatenate((self._context, frames.mel)), frames.level_db, held_back=max(self._ahead, 1)
        )

    def finish(self, total_ms: float) -> tuple[list[Segment], NDArray[np.float64]]:
        """Decide on the last frames of a recording of `total_ms`; a segment still open ends here."""
        if self._context is None:
            return [], np.zeros(0)
        padded = np.concatenate((self._context, np.repeat(self._context[-1:], self._ahead, 0)))
        self._endpoint.total_ms = total_ms
        segments, speech = self._advance(padded, self._levels[:0], held_back=0)
        return segments + self._endpoint.close_last(), speech

    def _advance(
        self, mel: NDArray[np.float32], levels: NDArray[np.float32], *, held_back: int
    ) -> tuple[list[Segment], NDArray[np.float64]]:
        final = held_back == 0
        levels = np.concatenate((self._levels, levels))
        count = max(0, len(levels) - held_back)
        self._levels = levels[count:]
        self._context = mel[count:]
        if count == 0:
            return [], np.zeros(0)
        rows = stacked(mel, self._lfr_m, count)
        silence = self._net.probability(self._cmvn(rows), self._options.sil_pdf_ids, self._state)
        return self._endpoint.advance(silence, levels[:count], final=final), 1.0 - silence


class Endpointer:
    """From frame probabilities to segments: vote, counters and schedule; the order of events is FunASR's."""

    def __init__(self, options: VadOptions, *, look_ahead: int = 2) -> None:
        """Start before the first frame, in silence; the network looks `look_ahead` frames into the future."""
        shift = options.frame_in_ms
        self._options = options
        self._window = [False] * int(options.window_size_ms / shift)
        self._rise = int(options.sil_to_speech_time_thres / shift)
        self._fall = int(options.speech_to_sil_time_thres / shift)
        self._latency = len(self._window) + (
            int(options.lookback_time_start_point / shift) if options.do_extend else 0
        )
        self._lookahead = int(options.lookahead_time_end_point / shift)
        self._speech_noise_thres = options.speech_noise_thres
        self._end_silence_ms = options.max_end_silence_time - options.speech_to_sil_time_thres
        self._noise_db = -100.0
        self.total_ms = inf
        """Length of the recording in ms, once it is known."""
        self.frame = 0
        self.open = False
        self.start = 0
        self.end = 0
        self._free = 0
        """First frame that belongs to no segment yet (FunASR's data_buf_start_frame)."""
        # FunASR looks at its schedule before it feeds a chunk; what the last window and the look-ahead hold
        # back is decided after it.
        self._late_frames = 2 + look_ahead
        self._chunk = 0
        self._accumulated_ms = 0
        self._was_open = False
        self._closed_in_chunk = False
        self._closed: Segment | None = None
        self._position = self._votes = self._silent_frames = 0
        self._voiced = False

    @property
    def earliest_start(self) -> int:
        """No segment that is not open yet can start before this frame."""
        return max(self._free, self.frame - self._latency)

    def advance(
        self, silence: NDArray[np.float64], levels: NDArray[np.float32], *, final: bool
    ) -> list[Segment]:
        """Decide on the next frames; `final` says that the last of them is the recording's last."""
        segments: list[Segment] = []
        done, last = 0, len(silence)
        while done < last:
            boundary = max(0, self._chunk * CHUNK_MS // self._options.frame_in_ms - self._late_frames)
            if self.frame == boundary:
                if self.total_ms >= self._chunk * CHUNK_MS:
                    self._begin_chunk()
                self._chunk += 1
                continue
            stop = min(last, done + boundary - self.frame)
            self._run(silence[done:stop], levels[done:stop], segments, final=final and stop == last)
            done = stop
        return segments

    def close_last(self) -> list[Segment]:
        """Give the segment that began with the very last frame, which nothing has closed."""
        if not self.open:
            return []
        self.open = False
        return [Segment(self.start, self.end)]

    def _begin_chunk(self) -> None:
        if not self._options.dynamic:
            return
        if self._closed_in_chunk:
            self._accumulated_ms, self._was_open = 0, False
        self._closed_in_chunk = False
        if self.open or self._was_open:
            self._accumulated_ms += CHUNK_MS
            self._was_open = True
        silence_ms = next(ms for limit, ms in SILENCE_SCHEDULE if self._accumulated_ms <= limit)
        self._end_silence_ms = max(silence_ms - self._options.speech_to_sil_time_thres, 0)
        self._speech_noise_thres = DYNAMIC_SPEECH_NOISE_THRES

    def _run(
        self,
        silence: NDArray[np.float64],
        levels: NDArray[np.float32],
        segments: list[Segment],
        *,
        final: bool,
    ) -> None:
        ratio = self._options.speech_2_noise_ratio
        noise = silence if ratio == 1.0 else silence**ratio
        likely = (1.0 - silence >= noise + self._speech_noise_thres).tolist()
        last = len(likely) - 1
        for at, (speech, level) in enumerate(zip(likely, levels.tolist(), strict=True)):
            self._step(self._is_speech(speech, level), final=final and at == last)
            if self._closed is not None:
                segments.append(self._closed)
                self._closed = None
                self._closed_in_chunk = True
            self.frame += 1

    def _is_speech(self, likely: bool, level_db: float) -> bool:  # noqa: FBT001 - one call site, per frame
        options = self._options
        if level_db < options.decibel_thres:
            return False
        if likely:
            return level_db - self._noise_db >= options.snr_thres
        if self._noise_db < -99.9:  # noqa: PLR2004 - FunASR's mark of "not measured yet"
            self._noise_db = level_db
        else:
            span = options.noise_frame_num_used_for_snr
            self._noise_db = (level_db + self._noise_db * (span - 1)) / span
        return False

    def _step(self, speech: bool, *, final: bool) -> None:  # noqa: FBT001 - one call site, per frame
        self._votes += speech - self._window[self._position]
        self._window[self._position] = speech
        self._position = (self._position + 1) % len(self._window)
        if not self._voiced and self._votes >= self._rise:
            self._voiced = True
            self._silent_frames = 0
            if not self.open:
                self._open_segment()
                return
            self._confirm(self.frame - 1)
        elif self._voiced and self._votes <= self._fall:
            self._voiced = False
            self._silent_frames = 0
        elif not self._voiced:
            self._silent_frames += 1
            self._step_silence(final=final)
            return
        if self.open:
            if final or self._too_long():
                self._close_segment(self.frame)
            else:
                self._confirm(self.frame)

    def _step_silence(self, *, final: bool) -> None:
        frame, shift = self.frame, self._options.frame_in_ms
        if not self.open:
            self._free = max(self._free, frame - self._latency)
        elif self._silent_frames * shift >= self._end_silence_ms:
            back = int(self._end_silence_ms / shift)
            if self._options.do_extend:
                back = max(0, back - self._lookahead - 1)
            self._close_segment(frame - back)
        elif final or self._too_long():
            self._close_segment(frame)
        elif self._options.do_extend and self._silent_frames <= self._lookahead:
            self._confirm(frame)

    def _too_long(self) -> bool:
        length_ms = (self.frame - self.start + 1) * self._options.frame_in_ms
        return length_ms > self._options.max_single_segment_time

    def _open_segment(self) -> None:
        self.open = True
        self.start = self.end = max(self._free, self.frame - self._latency)
        self._confirm(self.frame)

    def _confirm(self, last: int) -> None:
        """Count the frames up to `last` to the open segment."""
        if last >= self.end:
            self._free = max(self._free, self.end) + last + 1 - self.end
            self.end = last + 1

    def _close_segment(self, last: int) -> None:
        self._confirm(last - 1)
        self._free = max(self._free, last) + 1
        self.end = last + 1
        self.open = False
        self._closed = Segment(self.start, self.end)
        self._reset_vote()

    def _reset_vote(self) -> None:
        self._window = [False] * len(self._window)
        self._position = self._votes = self._silent_frames = 0
        self._voiced = False
