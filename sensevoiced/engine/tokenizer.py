"""The model's SentencePiece vocabulary: ids to text, and the tag tokens' ids by name; never torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sentencepiece

from sensevoiced.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LANGUAGE_TAGS = ("zh", "en", "yue", "ja", "ko", "nospeech")
"""The languages SenseVoiceSmall was trained to tell apart; the real vocabulary names about 100 more that it
never says."""
EMOTION_TAGS = (
    "HAPPY",
    "SAD",
    "ANGRY",
    "NEUTRAL",
    "FEARFUL",
    "DISGUSTED",
    "SURPRISED",
    "OTHER",
    "EMO_UNKNOWN",
)
EVENT_TAGS = (
    "Speech",
    "BGM",
    "Laughter",
    "Applause",
    "Cry",
    "Sneeze",
    "Breath",
    "Cough",
    "Sing",
    "Speech_Noise",
    "GBG",
    "Event_UNK",
)
ITN_TAGS = ("withitn", "woitn")

_SPACE_MARK = "\u2581"
_UNKNOWN_SURFACE = " \u2047 "
"""What SentencePiece prints for the unknown piece unless a model says otherwise."""


@dataclass(frozen=True, slots=True)
class Slot:
    """What one of the four tag frames may say.

    Names without their marks, and their ids, in the same order.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token of the path wrote, and the frames `start` to `end` (exclusive) of its run."""

    surface: str
    start: int
    end: int


class Tokenizer:
    """SentencePiece ids to text, exactly as FunASR's SentencepiecesTokenizer decodes them."""

    def __init__(self, path: Path) -> None:
        """Read the vocabulary at `path`.

        A file that is none, or that lacks the tag tokens, raises ConfigError.
        """
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.Load(os.fspath(path))
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"{path} is not a SentencePiece model: fetch the model again, or restore the file."
            ) from error
        self.size: int = self._pieces.GetPieceSize()
        names = [self._pieces.IdToPiece(i) for i in range(self.size)]
        by_name = {name: i for i, name in enumerate(names)}
        self.special: frozenset[int] = frozenset(
            i for i, name in enumerate(names) if name.startswith("<|") and name.endswith("|>")
        )
        """Ids of everything written `<|...|>`: part of FunASR's raw text, never of the text people read."""
        self.slots: tuple[Slot, Slot, Slot, Slot] = (
            _slot(path, by_name, LANGUAGE_TAGS, what="language"),
            _slot(path, by_name, EMOTION_TAGS, what="emotion"),
            _slot(path, by_name, EVENT_TAGS, what="event"),
            _slot(path, by_name, ITN_TAGS, what="ITN"),
        )
        """What frames 0 to 3 may say, in their order: language, emotion, event, ITN."""

    def decode(self, ids: Sequence[int]) -> str:
        """Give the text of `ids`, special tokens included: FunASR's `text` field."""
        return str(self._pieces.DecodeIds(list(ids)))

    def surfaces(self, ids: Sequence[int]) -> tuple[str, list[str]]:
        """Give the text of `ids` and the part of it that each id wrote; the parts joined are the text.

        A piece writes its own name with the mark for a space made a space; SentencePiece then drops the space
        before the first. Where a vocabulary decodes otherwise (byte pieces, an unknown piece of its own), the
        parts are found by decoding growing prefixes.
        """
        text = self.decode(ids)
        parts: list[str] = []
        for i in ids:
            if self._pieces.IsControl(i):
                part = ""
            elif self._pieces.IsUnknown(i):
                part = _UNKNOWN_SURFACE
            else:
                part = self._pieces.IdToPiece(i).replace(_SPACE_MARK, " ")
            parts.append(part[1:] if part.startswith(" ") and not any(parts) else part)
        if "".join(parts) == text:
            return text, parts
        parts.clear()
        done = 0
        for count in range(1, len(ids) + 1):
            end = len(text)
            if count < len(ids):
                end = max(done, _agreement(self.decode(ids[:count]), text))
            parts.append(text[done:end])
            done = end
        return text, parts


def _agreement(one: str, other: str) -> int:
    """Count the characters with which both begin."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _slot(path: Path, by_name: dict[str, int], tags: tuple[str, ...], *, what: str) -> Slot:
    """Find the tags a vocabulary has.

    A small model may know fewer, but none, or half of the ITN pair, is another kind of model.
    """
    found = tuple((tag, by_name[f"<|{tag}|>"]) for tag in tags if f"<|{tag}|>" in by_name)
    if not found or (tags is ITN_TAGS and len(found) < len(ITN_TAGS)):
        raise ConfigError(
            f"{path} is not a SenseVoice tokenizer: it lacks the {what} tokens (such as <|{tags[0]}|>)."
        )
    return Slot(names=tuple(tag for tag, _ in found), ids=tuple(i for _, i in found))
