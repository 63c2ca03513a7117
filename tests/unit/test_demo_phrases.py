"""The demo model's teaching material: what may be trained on, and that its tokenizer writes every text."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

phrases = pytest.importorskip("demo.phrases")
tokenizer = pytest.importorskip("demo.tokenizer")
metrics = pytest.importorskip("demo.metrics")
sentencepiece = pytest.importorskip("sentencepiece")


@pytest.mark.parametrize("language", phrases.LANGUAGES)
def test_tokenizer_writes_every_text(language: str) -> None:
    """Cutting a text into the model's pieces and decoding their ids gives the text back, in both forms."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.build())
    ids = tokenizer.vocabulary()
    rng = random.Random(7)
    for _ in range(300):
        sentence = phrases.draw(language, rng)
        for text in (sentence.with_itn, sentence.without_itn):
            assert processor.decode([ids[p] for p in phrases.pieces(text, language)]).strip() == text


def test_tokenizer_has_the_tags_as_single_pieces() -> None:
    """Each tag of SenseVoice is one piece, and a tagged text is cut at its tags."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.build())
    ids = tokenizer.vocabulary()
    assert processor.get_piece_size() == len(ids)
    assert all(processor.piece_to_id(tag) == ids[tag] for tag in tokenizer.special_pieces())
    assert processor.encode("<|en|><|withitn|> Hello", out_type=str) == ["<|en|>", "<|withitn|>", "▁Hello"]


def test_shipped_tokenizer_is_the_one_the_tools_make() -> None:
    """The tokenizer beside the demo model is byte for byte what the phrase books give."""
    shipped = TOOLS.parent / "sensevoiced" / "demo" / tokenizer.FILE_NAME
    assert shipped.read_bytes() == tokenizer.build()


@pytest.mark.parametrize("language", phrases.LANGUAGES)
def test_about_a_tenth_of_the_combinations_is_held_out(language: str) -> None:
    """Held-out texts are near one in ten of the combinations and never a phrase that training needs."""
    rng = random.Random(3)
    drawn = {phrases.draw(language, rng) for _ in range(2000)}
    combined = [s for s in drawn if not phrases.is_fixed(s)]
    share = sum(map(phrases.held_out, combined)) / len(combined)
    assert 0.07 < share < 0.13
    assert not any(map(phrases.held_out, phrases.fixed_phrases(language)))


def test_text_without_itn_has_words_only() -> None:
    """Without ITN there are no numerals, punctuation marks or capitals."""
    rng = random.Random(5)
    for language in phrases.LANGUAGES:
        for _ in range(300):
            text = phrases.draw(language, rng).without_itn
            assert not any(
                (c.isascii() and (c.isdigit() or c.isupper())) or c in phrases.PUNCTUATION for c in text
            )


def test_errors_are_counted_in_words_for_english_and_characters_elsewhere() -> None:
    """One wrong word of four is 25 %; one missing syllable of five is 20 %, spaces not counted."""
    score = metrics.Score()
    for language, true, got in (
        ("en", "the shop is closed", "the shop was closed"),
        ("ko", "비가 와 요네", "비 와 요네"),
    ):
        truth = metrics.Truth(language, "SAD", "Speech", true, with_itn=False)
        score.add(truth, metrics.Recognised(language, "SAD", "Speech", "woitn", got))
    assert score.error("en plain") == 25.0
    assert score.error("ko plain") == 20.0


def test_missing_espeak_is_said_in_one_sentence_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libespeak-ng the measurement stops with one sentence that names the package to install."""
    espeak = pytest.importorskip("demo.espeak")

    def missing(_name: str) -> None:
        raise OSError

    monkeypatch.setattr(espeak.ctypes, "CDLL", missing)
    espeak._library.cache_clear()
    with pytest.raises(espeak.EspeakMissingError, match=r"^libespeak-ng is missing: .*espeak-ng\)\.$"):
        espeak.say(phrases.fixed("en", 0), espeak.Voice("f3", 150, 50, 50))
    espeak._library.cache_clear()
