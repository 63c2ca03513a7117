"""What a transcription gives a program: typed, frozen, and made from the daemon's events.

Only the library imports it: dataclasses cost more than a whole ping of the command line.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - typing.get_type_hints, and so pydantic, has to find it
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from svctl import formats, objects

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Word:
    """One word, or one character of a script without spaces."""

    word: str
    start: float
    """Seconds from the start of the recording."""
    end: float


@dataclass(frozen=True, slots=True)
class Segment:
    """One stretch of speech."""

    index: int
    start: float
    """Seconds from the start of the recording."""
    end: float
    text: str
    language: str
    """zh, en, yue, ja, ko, or nospeech."""
    emotion: str
    """HAPPY, SAD, ANGRY, NEUTRAL, FEARFUL, DISGUSTED, SURPRISED, or EMO_UNKNOWN."""
    event: str
    """Speech, BGM, Laughter, Applause, Cry, Sneeze, Breath, Cough, or Event_UNK."""
    language_score: float
    """A probability over the model's whole vocabulary, as the other scores are."""
    emotion_score: float
    event_score: float
    words: tuple[Word, ...] = field(repr=False)
    raw: str = field(repr=False)
    """What FunASR's `text` would be, with the model's own tags."""
    channel: int = 0
    """From 1 on, where channels are told apart; 0 for their mix."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """One recording."""

    segments: tuple[Segment, ...] = field(repr=False)
    text: str
    """All of it as running text."""
    language: str
    """The one with most seconds of speech, `nospeech` where there is none."""
    duration: float
    """Seconds of audio."""
    model: str
    truncated: bool
    """The recording was damaged or broke off; this is what could be read of it."""
    timings: Mapping[str, float] = field(repr=False, compare=False)
    """Where the daemon's time went, in seconds; PROTOCOL.md names the stages."""
    file: str = ""

    def render(self, form: str, **style: Any) -> str:
        """The transcript as `svctl transcribe -f` writes it; `style` as of formats.Style.

        What of the style the format has no use for changes nothing. Raises ValueError for a format or style
        that there is not.
        """
        if form not in formats.FORMS:
            raise ValueError(f"{form!r} is not one of {', '.join(formats.FORMS)}")
        done = {"duration": self.duration, "model": self.model, "truncated": self.truncated}
        whole = objects.transcript(self.file, map(asdict, self.segments), done)
        return formats.rendered(form, whole, formats.Style(**style))


def segment_of(event: Mapping[str, Any]) -> Segment:
    """A segment from its event."""
    return _segment(objects.segment_object(dict(event)))


def _segment(whole: Mapping[str, Any]) -> Segment:
    return Segment(
        index=whole["id"],
        channel=whole.get("channel", 0),
        words=tuple(Word(**word) for word in whole["words"]),
        **{name: whole[name] for name in Segment.__slots__ if name not in ("index", "words", "channel")},
    )


def transcript_of(label: str, events: Iterable[Mapping[str, Any]], done: Mapping[str, Any]) -> Transcript:
    """A transcript from its segments' events and its `done`."""
    whole = objects.transcript(label, map(dict, events), dict(done))
    return Transcript(
        segments=tuple(map(_segment, whole["segments"])),
        text=whole["text"],
        language=whole["language"],
        duration=whole["duration"],
        model=whole["model"],
        truncated=whole["truncated"],
        timings=dict(done["timings"]),
        file=label,
    )
