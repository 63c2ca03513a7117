"""One recording's way from samples to utterances of features.

Fbank once, VAD on it, recognition features from it; must never import torch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sensevoiced.frontend.checkpoint import read_tensors
from sensevoiced.frontend.fbank import Cmvn, Fbank, stack_frames
from sensevoiced.frontend.fsmn import Fsmn
from sensevoiced.frontend.segments import UtterancePlan, quietest_frame
from sensevoiced.frontend.vad import Segment, VadOptions, VoiceDetector
from sensevoiced.jobs import SAMPLE_RATE_HZ, Decoded, JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from sensevoiced.config import FrontendConfig
    from sensevoiced.features import FrontendSpec
    from sensevoiced.frontend.audio import Recording
    from sensevoiced.frontend.fbank import Frames

    Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Stretch:
    """One utterance of a recording, in seconds of it, with its features.

    LFR frames x columns, CMVN applied.
    """

    start_s: float
    end_s: float
    features: Floats
    channel: int = 0
    """From 1 on, where channels are told apart."""


@dataclass(frozen=True, slots=True)
class Frontend:
    """What every job of a process shares: the arithmetic of both models' features, and the VAD network."""

    limits: FrontendConfig
    spec: FrontendSpec
    cmvn: Cmvn
    vad_spec: FrontendSpec
    vad_cmvn: Cmvn
    vad_options: VadOptions
    net: Fsmn

    @classmethod
    def load(
        cls,
        limits: FrontendConfig,
        spec: FrontendSpec,
        *,
        vad_spec: FrontendSpec,
        vad_weights: Path,
        vad_config: Mapping[str, Any],
        vad_asked: Mapping[str, Any] | None = None,
    ) -> Frontend:
        """Read weights and normalisation; `vad_asked` are VAD options over those of config.yaml.

        Raises ValueError or OSError.
        """
        if _analysis(spec) != _analysis(vad_spec):
            raise ValueError(
                "the recognition model and the VAD model want different filter banks, which is not offered"
            )
        if vad_spec.lfr_n != 1:
            raise ValueError(f"the VAD model skips frames (lfr_n {vad_spec.lfr_n}), which is not offered")
        return cls(
            limits=limits,
            spec=spec,
            cmvn=Cmvn.read(spec.cmvn, spec.dim),
            vad_spec=vad_spec,
            vad_cmvn=Cmvn.read(vad_spec.cmvn, vad_spec.dim),
            vad_options=VadOptions.from_config(vad_config["model_conf"], vad_asked),
            net=Fsmn.from_tensors(vad_config["encoder_conf"], read_tensors(vad_weights)),
        )

    def warm_up(self) -> None:
        """Run once over a second of silence, so that the first job pays for no lazy initialisation."""
        frames = Fbank(self.spec).accept(np.zeros(SAMPLE_RATE_HZ, np.float32))
        self.features(frames.mel)
        VoiceDetector(self.net, self.vad_options, self.vad_cmvn, lfr_m=self.vad_spec.lfr_m).accept(frames)

    def features(self, mel: Floats) -> Floats:
        """Give recognition features of consecutive frames.

        What FunASR's WavFrontend gives for the samples under them.
        """
        return self.cmvn(stack_frames(mel, self.spec.lfr_m, self.spec.lfr_n))


class Pass:
    """One recording's pass through the front end: iterate stretches() to its end, then ask decoded()."""

    def __init__(
        self,
        frontend: Frontend,
        recording: Recording,
        *,
        vad: bool,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin with nothing read; without `vad` the whole recording becomes one utterance.

        `between` is called after each track's part of each block: what it raises ends the pass.
        """
        self._frontend = frontend
        self._recording = recording
        self._vad = vad
        self._between = between
        self._tracks: list[_Track] = []
        self._decode_s = 0.0

    @property
    def decoded_s(self) -> float:
        """How far into the recording it is, in seconds."""
        return self._recording.position_s

    @property
    def tracks(self) -> int:
        """How many channels are told apart; 0 while nothing has been decoded."""
        return len(self._tracks)

    def decoded(self) -> Decoded:
        """Say how much audio there was, and what it cost in CPU seconds."""
        return Decoded(
            duration_s=self._given_s,
            truncated=self._recording.truncated,
            decode_s=self._decode_s,
            features_s=sum(track.features_s for track in self._tracks),
            vad_s=sum(track.vad_s for track in self._tracks),
        )

    @property
    def _given_s(self) -> float:
        """Seconds of the part that is wanted."""
        return self._recording.samples / SAMPLE_RATE_HZ

    def stretches(self) -> Iterator[list[Stretch]]:
        """Give the utterances of each block of audio, often none, of all tracks.

        Raises JobError as Recording does, and for too long a whole.
        """
        blocks = self._recording.tracks()
        while True:
            begun = time.thread_time()
            block = next(blocks, None)
            self._decode_s += time.thread_time() - begun
            if block is None:
                break
            if not self._vad and self._given_s > self._frontend.limits.max_whole_s:
                raise JobError(
                    "too_long",
                    "Without VAD a recording is one utterance, and this one is longer than "
                    f"{self._frontend.limits.max_whole_s:g} s, which is the limit: leave VAD on.",
                )
            if not self._tracks:
                self._tracks = [_Track(self._frontend, vad=self._vad) for _ in block]
            yield self._of_all(
                self._each(
                    track.accept(samples) if samples.size else []
                    for track, samples in zip(self._tracks, block, strict=True)
                )
            )
        yield self._of_all(self._each(track.finish() for track in self._tracks))

    def _each(self, found: Iterable[list[Stretch]]) -> list[list[Stretch]]:
        """Gather what every track gives: a block of sixteen of them is half a second of work."""
        gathered = []
        for stretches in found:
            gathered.append(stretches)
            self._between()
        return gathered

    def _of_all(self, found: list[list[Stretch]]) -> list[Stretch]:
        """Put the stretches of all tracks in their order of time, in seconds of the whole recording."""
        part = self._recording.part
        moved = [
            replace(
                stretch,
                start_s=stretch.start_s + part.start_s,
                end_s=stretch.end_s + part.start_s,
                channel=part.channel(track),
            )
            for track, stretches in enumerate(found)
            for stretch in stretches
        ]
        return sorted(moved, key=lambda stretch: stretch.start_s) if len(found) > 1 else moved


class _Track:
    """What one channel, or the mix of all, goes through."""

    def __init__(self, frontend: Frontend, *, vad: bool) -> None:
        self._frontend = frontend
        self._fbank = Fbank(frontend.spec)
        self._frame_s = frontend.spec.frame_shift_ms / 1000
        self._detector: VoiceDetector | None = None
        if vad:
            self._detector = VoiceDetector(
                frontend.net, frontend.vad_options, frontend.vad_cmvn, lfr_m=frontend.vad_spec.lfr_m
            )
        limits = frontend.limits
        self._plan = UtterancePlan(
            max_frames=self._frames(limits.max_utterance_s),
            merge_frames=self._frames(limits.merge_length_s),
            gap_frames=self._frames(limits.merge_gap_s),
            quietest=self._quietest,
        )
        self._mel: Floats = np.zeros((0, frontend.spec.n_mels), np.float32)
        self._speech: NDArray[np.float64] = np.zeros(0)
        self._base = 0
        """Frame number of the first row held."""
        self._samples = 0
        self.features_s = self.vad_s = 0.0

    @property
    def _heard_s(self) -> float:
        return self._samples / SAMPLE_RATE_HZ

    def accept(self, samples: Floats) -> list[Stretch]:
        """Take the next samples; give the utterances that they bring to an end."""
        self._samples += samples.size
        begun = time.thread_time()
        frames = self._fbank.accept(samples)
        self._mel = np.concatenate((self._mel, frames.mel))
        self.features_s += time.thread_time() - begun
        return self._stretches(self._detect(frames))

    def finish(self) -> list[Stretch]:
        """Give the utterances that are left."""
        return self._stretches(self._last())

    def _detect(self, frames: Frames) -> list[Segment]:
        if self._detector is None:
            return []
        begun = time.thread_time()
        closed, speech = self._detector.accept(frames)
        ready = self._planned(closed, speech)
        self.vad_s += time.thread_time() - begun
        return ready

    def _planned(self, closed: list[Segment], speech: NDArray[np.float64]) -> list[Segment]:
        detector = self._detector
        if detector is None:
            return []
        self._speech = np.concatenate((self._speech, speech))
        ready = [utterance for segment in closed for utterance in self._plan.close(segment)]
        if detector.open_start is not None:
            ready += self._plan.grow(detector.open_start, detector.open_end)
        else:
            ready += self._plan.silence(detector.earliest_start)
        return ready

    def _last(self) -> list[Segment]:
        if self._detector is None:
            # Frames end where their window does; the whole reaches one window further than its last frame's
            # start.
            return [Segment(0, len(self._mel) + 2)] if len(self._mel) else []
        begun = time.thread_time()
        closed, speech = self._detector.finish(self._heard_s * 1000)
        ready = self._planned(closed, speech) + self._plan.finish()
        self.vad_s += time.thread_time() - begun
        return ready

    def _stretches(self, utterances: list[Segment]) -> list[Stretch]:
        begun = time.thread_time()
        stretches = [self._stretch(utterance) for utterance in utterances]
        if self._detector is not None:
            open_start = self._detector.open_start
            start = self._detector.earliest_start if open_start is None else open_start
            self._forget(self._plan.needed_from(start))
        self.features_s += time.thread_time() - begun
        return stretches

    def _stretch(self, utterance: Segment) -> Stretch:
        # FunASR cuts the samples of a segment and takes the frames that lie wholly inside; a 25 ms window
        # begins every 10 ms, so the last two of the segment's frames reach beyond it.
        first = utterance.start - self._base
        last = max(first + 1, utterance.end - 2 - self._base)
        start_s = round(utterance.start * self._frame_s, 3)
        end_s = self._heard_s if self._detector is None else round(utterance.end * self._frame_s, 3)
        return Stretch(start_s, end_s, self._frontend.features(self._mel[first:last]))

    def _quietest(self, first: int, last: int) -> int:
        part = slice(first - self._base, last + 1 - self._base)
        return first + quietest_frame(self._speech[part], self._mel[part])

    def _forget(self, frame: int) -> None:
        drop = frame - self._base
        if drop > 0:
            self._mel = self._mel[drop:]
            self._speech = self._speech[drop:]
            self._base = frame

    def _frames(self, seconds: float) -> int:
        return round(seconds / self._frame_s)


def _analysis(spec: FrontendSpec) -> tuple[object, ...]:
    return spec.sample_rate_hz, spec.window, spec.n_mels, spec.frame_length_ms, spec.frame_shift_ms
