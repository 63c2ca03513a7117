"""The nouns that flow from the socket to the model and back; must import nothing but the standard library."""

from __future__ import annotations

from dataclasses import dataclass

SAMPLE_RATE_HZ = 16_000
"""Everything past decoding is 16 kHz mono float32: what SenseVoiceSmall and FSMN-VAD were trained on."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a request may choose; frozen, so that no request can change another's."""

    language: str = "auto"
    itn: bool = True
    vad: bool = True
    """False: the whole recording is one utterance, refused above `FrontendConfig.max_whole_s`."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One stretch of speech of a job, ready for the model: the unit that crosses from frontend to engine.

    `features` holds `frames` x `dim` float32 in C order, native byte order: log-mel, LFR 7/6, CMVN applied.
    Kept as bytes, so that neither this module nor the event loop needs numpy or torch.
    """

    index: int
    """Position within the job, from 0, without holes: results are put back in this order."""
    start_s: float
    end_s: float
    features: bytes
    frames: int
    dim: int


@dataclass(frozen=True, slots=True)
class Word:
    """One word (or one CJK character) with its time in the recording."""

    word: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Recognition:
    """What the engine says of one utterance; word times are seconds from the start of the utterance.

    Labels are the tokenizer's own names without their marks (`zh`, `NEUTRAL`, `Speech`); `raw` is what
    FunASR's `text` field holds.
    Scores are softmax probabilities of the chosen label on its query frame (0..3), over the whole vocabulary.
    """

    language: str
    language_score: float
    emotion: str
    emotion_score: float
    event: str
    event_score: float
    itn: bool
    text: str
    raw: str
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is in force in the engine, for `svctl status`; all of it known once the engine is ready."""

    name: str
    """`torch` (our own) or `funasr` (the reference)."""
    model: str
    device: str
    precision: str
    parameters: int
    feature_dim: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """The frontend's last word on a job: how much audio there was."""

    duration_s: float
    truncated: bool
    """The recording broke off or was damaged; everything readable before that was used."""
    decode_s: float = 0.0
    """CPU seconds of decoding and resampling."""
    features_s: float = 0.0
    """CPU seconds of fbank, LFR and CMVN."""
    vad_s: float = 0.0
    """CPU seconds of FSMN-VAD."""


@dataclass(slots=True)
class Timings:
    """Where one job's time went, in seconds; reported with `done` so that a slow answer can be explained."""

    queued_s: float = 0.0
    frontend_s: float = 0.0
    engine_s: float = 0.0
    total_s: float = 0.0


class JobError(Exception):
    """A job that ends without its transcript, for a reason its client is told.

    `code` is one of `svctl.wire.ERRORS`, which says what it means, whether trying again can help, and the
    exit status of `svctl`.
    `message` is one sentence for a person, naming the remedy where there is one.
    """

    def __init__(self, code: str, message: str) -> None:
        """Keep the stable code beside the sentence."""
        super().__init__(message)
        self.code = code
        self.message = message
