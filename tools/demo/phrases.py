"""Owns what the demo model is taught: texts of five languages, with and without ITN, and how each is spoken.

Never imports torch or audio code. The words themselves are in phrases/*.toml.
"""

from __future__ import annotations

import re
import tomllib
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

LANGUAGES = ("zh", "en", "yue", "ja", "ko")
HELD_OUT_ONE_IN = 10  # combinations whose text hashes to 0 are never trained on
MAX_DIGITS = 8  # longest digit string; a phone number read in one breath
MAX_JOINED = 3  # phrases spoken in one utterance
PUNCTUATION = "，。？！、,.?!"
SPACED = frozenset({"en", "ko"})  # languages written with spaces between words

# Shares of the three kinds of text (of the recipe this model follows).
DIGIT_SHARE = 0.36
SINGLE_SHARE = 0.34
TEMPLATE_SHARE = 0.5  # of single utterances and of the parts of joined ones


@dataclass(frozen=True, slots=True)
class Sentence:
    """One thing to say: its text in both forms, and what the synthesiser is given."""

    language: str
    with_itn: str
    without_itn: str
    spoken: str


@dataclass(frozen=True, slots=True)
class Book:
    """All the words of one language, as read from its TOML file."""

    digits: list[str]
    hours: dict[str, str]
    day: list[str]
    thing: list[str]
    templates: list[str]
    phrases: list[str]


@cache
def book(language: str) -> Book:
    """Read the phrase book of `language`."""
    path = Path(__file__).parent / "phrases" / f"{language}.toml"
    return Book(**tomllib.loads(path.read_text(encoding="utf-8")))


def _pair(entry: str) -> tuple[str, str]:
    """Split "text|reading"; without a reading the text is read."""
    text, _, reading = entry.partition("|")
    return text, reading or text


def plain(text: str, language: str) -> str:
    """Drop punctuation and capitals from `text`: its form without ITN (numerals must already be words)."""
    text = re.sub(f"[{re.escape(PUNCTUATION)}]", "", text)
    return text.lower() if language == "en" else text


def _sentence(language: str, with_itn: str, in_words: str, reading: str) -> Sentence:
    return Sentence(language, with_itn, plain(in_words, language), plain(reading, language))


def digit_string(language: str, digits: list[int]) -> tuple[str, str, str]:
    """Write a row of digits three ways: as numerals, in words, and as read."""
    words, readings = zip(*(_pair(book(language).digits[d]) for d in digits), strict=True)
    join = " " if language in SPACED else ""
    numerals = "".join(str(d) for d in digits)
    return numerals, join.join(words), ("" if language in {"zh", "yue"} else " ").join(readings)


def digits_alone(language: str, digits: list[int]) -> Sentence:
    """A digit string as an utterance of its own."""
    return Sentence(language, *digit_string(language, digits))


def fixed(language: str, index: int) -> Sentence:
    """Phrase number `index` of the language."""
    text, reading = _pair(book(language).phrases[index])
    return _sentence(language, text, text, reading)


def fill(language: str, rng: random.Random) -> Sentence:
    """One template of the language with random digits, hour, day and thing in it."""
    words = book(language)
    text, reading = _pair(rng.choice(words.templates))
    hour = rng.choice(sorted(words.hours))
    hour_words, hour_read = _pair(words.hours[hour])
    numerals, in_words, digits_read = digit_string(language, random_digits(rng))
    day, day_read = _pair(rng.choice(words.day))
    thing, thing_read = _pair(rng.choice(words.thing))

    def put(template: str, hour: str, digits: str, day: str, thing: str) -> str:
        filled = template.format(hour=hour, digits=digits, day=day, thing=thing)
        return filled[0].upper() + filled[1:] if language == "en" else filled

    return _sentence(
        language,
        put(text, hour, numerals, day, thing),
        put(text, hour_words, in_words, day, thing),
        put(reading, hour_read, digits_read, day_read, thing_read),
    )


def random_digits(rng: random.Random) -> list[int]:
    """Between 1 and MAX_DIGITS random digits."""
    return [rng.randrange(10) for _ in range(rng.randint(1, MAX_DIGITS))]


def join(parts: list[Sentence]) -> Sentence:
    """Say several sentences of one language one after the other."""
    language = parts[0].language
    space = " " if language in SPACED else ""
    return Sentence(
        language,
        space.join(p.with_itn for p in parts),
        space.join(p.without_itn for p in parts),
        ", ".join(p.spoken for p in parts),
    )


def draw(language: str, rng: random.Random) -> Sentence:
    """One random utterance: a digit string, a phrase or template, or two or three of them joined."""
    kind = rng.random()
    if kind < DIGIT_SHARE:
        return digits_alone(language, random_digits(rng))
    count = 1 if kind < DIGIT_SHARE + SINGLE_SHARE else rng.randint(2, MAX_JOINED)
    return join([_part(language, rng) for _ in range(count)])


def _part(language: str, rng: random.Random) -> Sentence:
    if rng.random() < TEMPLATE_SHARE:
        return fill(language, rng)
    return fixed(language, rng.randrange(len(book(language).phrases)))


def is_fixed(sentence: Sentence) -> bool:
    """Whether the text is a single phrase or a single digit, which training must have seen to know it."""
    return len(sentence.with_itn) == 1 or sentence in fixed_phrases(sentence.language)


@cache
def fixed_phrases(language: str) -> frozenset[Sentence]:
    """All phrases of the language."""
    return frozenset(fixed(language, i) for i in range(len(book(language).phrases)))


def held_out(sentence: Sentence) -> bool:
    """Whether this combination is kept out of training, decided by the hash of its text."""
    hashed = zlib.crc32(f"{sentence.language}:{sentence.without_itn}".encode())
    return hashed % HELD_OUT_ONE_IN == 0 and not is_fixed(sentence)


def draw_from(language: str, rng: random.Random, *, unseen: bool) -> Sentence:
    """Draw until the text is on the asked side of the training / evaluation split."""
    while True:
        sentence = draw(language, rng)
        if held_out(sentence) == unseen:
            return sentence


def pieces(text: str, language: str) -> list[str]:
    """Cut `text` into the model's tokens: English words, Korean syllables, single characters elsewhere.

    A piece that starts a word carries the mark "▁", as SentencePiece writes it.
    """
    if language not in SPACED:
        return list(text)
    cut: list[str] = []
    for word in text.split():
        if language == "ko" or word[0].isdigit():
            cut += ["▁" + word[0], *word[1:]]
        else:
            bare = word.rstrip(PUNCTUATION)
            cut += ["▁" + bare, *word[len(bare) :]]
    return cut


@cache
def all_pieces() -> tuple[str, ...]:
    """Every piece any text of any language can need, in a stable order."""
    found: set[str] = set()
    for language in LANGUAGES:
        words = book(language)
        slots = {"day": words.day, "thing": words.thing, "hour": [*words.hours, *words.hours.values()]}
        slots["digits"] = ["0123456789", *words.digits]
        sentences = [_pair(entry)[0] for entry in words.phrases]
        for template in (_pair(entry)[0] for entry in words.templates):
            filled = [template]
            for slot, values in slots.items():
                if "{" + slot + "}" in template:
                    filled = [f.replace("{" + slot + "}", _pair(v)[0]) for f in filled for v in values]
            sentences += filled
        if language == "en":
            sentences = [s[0].upper() + s[1:] for s in sentences]
        # Digits may stand first in a word or after another digit; words of digits always stand alone.
        digit_words = [_pair(d)[0] for d in words.digits]
        sentences.append((" " if language in SPACED else "").join(digit_words))
        sentences += list("0123456789")
        for text in sentences:
            found.update(pieces(text, language), pieces(plain(text, language), language))
    return tuple(sorted(found))
