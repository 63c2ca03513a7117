"""Owns the scores: CER / WER per language, tags right, text where nothing was said. Pure Python."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from demo.edits import distance
from demo.phrases import LANGUAGES, SPACED


@dataclass(frozen=True, slots=True)
class Truth:
    """What a clip holds. `text` is in the form (with or without ITN) that was asked for."""

    language: str
    emotion: str
    event: str
    text: str
    with_itn: bool


@dataclass(frozen=True, slots=True)
class Recognised:
    """What a recogniser answered: the four tags by name, and the text."""

    language: str
    emotion: str
    event: str
    itn: str
    text: str


def units(text: str, language: str) -> list[str]:
    """What errors are counted in: words for English, characters without spaces elsewhere."""
    return text.split() if language == "en" else list(text.replace(" ", ""))


@dataclass
class Score:
    """Counts of right and wrong over a set of clips."""

    errors: Counter[str] = field(default_factory=Counter)
    reference: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    false_text: int = 0
    silent: int = 0

    def add(self, truth: Truth, got: Recognised) -> None:
        """Count one clip."""
        self._tag("language", truth.language, got.language)
        self._tag("event", truth.event, got.event)
        self._tag("itn", "withitn" if truth.with_itn else "woitn", got.itn)
        if truth.language == "nospeech":
            self.silent += 1
            self.false_text += bool(got.text.strip())
            return
        self._tag("emotion", truth.emotion, got.emotion)
        form = "itn" if truth.with_itn else "plain"
        self._text(
            f"{truth.language} {form}", units(truth.text, truth.language), units(got.text, truth.language)
        )
        if truth.language in SPACED:
            letters = list(truth.text.replace(" ", "")), list(got.text.replace(" ", ""))
            self._text(f"{truth.language} {form} letters", *letters)

    def _tag(self, kind: str, true: str, got: str) -> None:
        for name in (kind, f"{kind} {true}"):
            self.asked[name] += 1
            self.right[name] += true == got

    def _text(self, name: str, true: list[str], got: list[str]) -> None:
        self.errors[name] += distance(true, got)
        self.reference[name] += len(true)

    def error(self, name: str) -> float:
        """Error rate in percent of `name`, for example "zh plain"."""
        return 100 * self.errors[name] / max(1, self.reference[name])

    def tag(self, name: str) -> float:
        """Percent right of `name`, for example "emotion" or "emotion SAD"."""
        return 100 * self.right[name] / max(1, self.asked[name])

    def line(self) -> str:
        """Everything on one line."""
        texts = " ".join(
            f"{x} {self.error(f'{x} plain'):.1f}/{self.error(f'{x} itn'):.1f}" for x in LANGUAGES
        )
        tags = " ".join(f"{kind} {self.tag(kind):.1f}" for kind in ("language", "itn", "emotion", "event"))
        false = f"text in {self.false_text} of {self.silent} without speech"
        return f"error % plain/itn {texts} | right % {tags} | {false}"
