"""The nouns that flow from the socket to the model and back; must import nothing but the standard library."""

from __future__ import annotations

from dataclasses import dataclass, field

SAMPLE_RATE_HZ = 16_000
"""Everything past decoding is 16 kHz mono float32: what SenseVoiceSmall and FSMN-VAD were trained on."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a request may choose; frozen, so that no request can change another's."""

    language: str = "auto"
    itn: bool = True
    vad: bool = True
    """False: the whole recording is one utterance, refused above `FrontendConfig.max_whole_s`."""
    channels: str = "mix"
    """`mix` averages all channels, `split` takes each for itself, a number from 1 takes that one alone."""
    start_s: float = 0.0
    duration_s: float = 0.0
    """The part of the recording that is transcribed; 0 seconds are all that is left. Times stay those of the
    whole recording."""


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
    channel: int = 0
    """From 1 on, where channels are told apart; 0 for their mix."""


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
    richtext_s: float = field(default=0.0, compare=False)
    """Seconds in which all this was read from the model's output; no part of what was recognised."""


@dataclass(frozen=True, slots=True)
class Recognised:
    """A recognition, and when the engine had its batch: moments of time.monotonic().

    Of the whole batch, because the whole of it is what the utterance's job waited for.
    """

    recognition: Recognition
    began_s: float
    texts_s: float
    """The network was done: what follows is reading tags and texts from its output."""
    ended_s: float


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
    backend: str = ""
    """How the linear layers are computed at this precision, in a few words for a person."""
    threads: int = 0
    """Threads that a batch is computed on; 0 where the engine does not say."""


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
    """Where one job's time went, in seconds; reported with `done` so that a slow answer can be explained.

    Every moment of `total_s` is in one of `queued_s`, `frontend_s` - `overlap_s`, `wait_s`, `engine_s`,
    `richtext_s` and `serving_s`.
    """

    queued_s: float = 0.0
    """Until a process of the front end took the recording up: opening it, the model's loading, the queue."""
    decode_s: float = 0.0
    """CPU seconds of decoding and resampling."""
    fbank_s: float = 0.0
    """CPU seconds of the features: fbank, LFR, CMVN."""
    vad_s: float = 0.0
    """CPU seconds of FSMN-VAD."""
    frontend_s: float = 0.0
    """Sum of the three."""
    overlap_s: float = 0.0
    """The part of it that passed while the engine had utterances of this job: nobody waited for it."""
    wait_s: float = 0.0
    """The engine had utterances of this job, and none of them was in its batch."""
    engine_s: float = 0.0
    """A batch with utterances of this job ran: the whole of it, whatever else it held."""
    richtext_s: float = 0.0
    """... and then the texts of that batch were read from the network's output."""
    serving_s: float = 0.0
    """What is left: messages, processes waking up, a source or a client that is slower than we are."""
    total_s: float = 0.0
    """From the request to its `done`."""

    def settle(self, before_s: float, total_s: float) -> None:
        """End the account: `before_s` passed before the front end was asked, `total_s` in all."""
        self.queued_s += before_s
        self.total_s = total_s
        front_end_s = self.frontend_s - self.overlap_s
        known_s = self.queued_s + front_end_s + self.wait_s + self.engine_s + self.richtext_s
        self.serving_s = max(0.0, total_s - known_s)


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
