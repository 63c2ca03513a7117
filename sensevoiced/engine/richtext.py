"""One utterance's best path to its Recognition: tags, text, word times; pure functions, never torch."""

from __future__ import annotations

import time
import unicodedata
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from sensevoiced.engine.tokenizer import Piece, Tokenizer
from sensevoiced.jobs import Recognition, Word

if TYPE_CHECKING:
    from collections.abc import Sequence

TAG_FRAMES = 4
"""Frames that answer the four queries (language, emotion, event, ITN) before the first frame of speech."""

NO_SPEECH = "nospeech"
WITH_ITN = "withitn"

_ALONE = (
    (0x3005, 0x3007),  # ideographic iteration mark, closing mark, zero
    (0x3021, 0x3029),  # Hangzhou numerals
    (0x3040, 0x30FF),  # hiragana, katakana
    (0x31F0, 0x31FF),  # katakana extensions
    (0x3400, 0x4DBF),  # CJK extension A
    (0x4E00, 0x9FFF),  # CJK unified ideographs
    (0xF900, 0xFAFF),  # CJK compatibility ideographs
    (0xFF66, 0xFF9D),  # halfwidth katakana
    (0x20000, 0x323AF),  # CJK extensions B to H
)
"""Scripts written without spaces: every character is a word. Hangul has spaces, so it is not among them."""


@dataclass(frozen=True, slots=True)
class TagPick:
    """The best label of a tag frame among its slot's, with its probability over the whole vocabulary."""

    name: str
    score: float


@dataclass(frozen=True, slots=True)
class Path:
    """What the model says of one utterance, frame by frame: the best id of every frame, and the four tags."""

    ids: Sequence[int]
    tags: tuple[TagPick, TagPick, TagPick, TagPick]


def recognition(
    path: Path, tokenizer: Tokenizer, *, blank: int, frame_s: float, length_s: float
) -> Recognition:
    """Turn a path into what the client is told, with `frame_s` per frame in an utterance of `length_s`.

    The tags come from frames 0 to 3, never from decoded text: the text path collapses repeats across frames.
    Where the best id of a tag frame is no label of its slot (a language the model never learned, a word), the
    slot's best label is reported all the same, with its own, then small, probability. `raw` is FunASR's
    `text`: the greedy path over all frames, tag frames included.
    """
    began_s = time.perf_counter()
    language, emotion, event, itn = path.tags
    raw_ids = [token for token, _ in groupby(path.ids) if token != blank]
    text = ""
    words: tuple[Word, ...] = ()
    if language.name != NO_SPEECH:
        text, pieces = _pieces(path.ids[TAG_FRAMES:], tokenizer, blank)
        words = words_of(pieces, frame_s=frame_s, length_s=length_s)
    raw = tokenizer.decode(raw_ids)
    return Recognition(
        language=language.name,
        language_score=language.score,
        emotion=emotion.name,
        emotion_score=emotion.score,
        event=event.name,
        event_score=event.score,
        itn=itn.name == WITH_ITN,
        text=text.strip(),
        raw=raw,
        words=words,
        richtext_s=time.perf_counter() - began_s,
    )


def _pieces(frames: Sequence[int], tokenizer: Tokenizer, blank: int) -> tuple[str, list[Piece]]:
    """Collapse the frames of speech to tokens with their runs; blanks and special tokens write nothing."""
    ids: list[int] = []
    runs: list[tuple[int, int]] = []
    at = 0
    for token, run in groupby(frames):
        start, at = at, at + sum(1 for _ in run)
        if token != blank and token not in tokenizer.special:
            ids.append(token)
            runs.append((start, at))
    text, surfaces = tokenizer.surfaces(ids)
    return text, [Piece(surface, *run) for surface, run in zip(surfaces, runs, strict=True)]


def words_of(pieces: Sequence[Piece], *, frame_s: float, length_s: float) -> tuple[Word, ...]:
    """Divide the text of `pieces` into words with times; with the text's spaces between, they are the text.

    Spaces divide words ("don't" is one, Korean as it is written); a character of a script without spaces is a
    word of its own; punctuation belongs to the word before it, and at a beginning to the word after it. A
    token's time is that of its run of frames; several characters of one token share its time evenly.
    """
    words: list[Word] = []
    current = ""
    begun = ended = 0.0

    def close() -> None:
        nonlocal current
        if current:
            start, end = (round(min(frame * frame_s, length_s), 3) for frame in (begun, ended))
            words.append(Word(current, start, end))
        current = ""

    for piece in pieces:
        each = (piece.end - piece.start) / max(len(piece.surface.strip()), 1)
        at = float(piece.start)
        for character in piece.surface:
            if character.isspace():
                close()
                continue
            if current and _divides(current, character):
                close()
            if not current:
                begun = at
            current += character
            at += each
            ended = at
    close()
    return tuple(words)


def _divides(word: str, following: str) -> bool:
    """Say whether a word ends before the character that follows it without a space."""
    if _is_mark(following) or all(_is_mark(character) for character in word):
        return False
    if _stands_alone(following):
        return True
    # A letter after 你 or a fullwidth comma begins a word; after a plain comma ("10,000") it does not.
    return any(_stands_alone(character) or _is_wide_mark(character) for character in word)


def _is_mark(character: str) -> bool:
    """Punctuation, and what only modifies the character before it."""
    return unicodedata.category(character)[0] in "PM"


def _is_wide_mark(character: str) -> bool:
    return _is_mark(character) and unicodedata.east_asian_width(character) in "WF"


def _stands_alone(character: str) -> bool:
    code = ord(character)
    return any(low <= code <= high for low, high in _ALONE)
