"""Tags, text and word times from paths of ids, with vocabularies trained on the spot and the real one."""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise

import pytest
import sentencepiece
from harness.random_checkpoint import SENTENCES, tiny_tokenizer

from sensevoiced.config import ConfigError
from sensevoiced.engine.richtext import Path, TagPick, recognition, words_of
from sensevoiced.engine.tokenizer import Piece, Tokenizer

PICKS = (TagPick("en", 0.9), TagPick("NEUTRAL", 0.8), TagPick("Speech", 0.7), TagPick("withitn", 0.6))


@cache
def vocabulary(byte_fallback: bool) -> bytes:
    """Train each kind once."""
    return tiny_tokenizer(byte_fallback=byte_fallback)


@pytest.fixture(params=[False, True], ids=["plain", "byte_fallback"])
def tokenizer(request, tmp_path):
    """A small vocabulary, once with pieces only and once with bytes for what has no piece."""
    file = tmp_path / "t.model"
    file.write_bytes(vocabulary(request.param))
    return Tokenizer(file)


def ids_of(tokenizer, text):
    """Encode a text."""
    return tokenizer._pieces.EncodeAsIds(text)


def tag_ids(tokenizer):
    """Give the first label of each slot."""
    return [slot.ids[0] for slot in tokenizer.slots]


def read(tokenizer, path, picks=PICKS, length_s=1e6):
    """Read a path with frames of 60 ms."""
    return recognition(Path(path, picks), tokenizer, blank=0, frame_s=0.06, length_s=length_s)


def spoken(tokenizer, text):
    """Make a path of runs and blanks for `text` behind the four tags; give it with the ids of the text."""
    ids = ids_of(tokenizer, text)
    path = tag_ids(tokenizer)
    for i in ids:
        path += [0, i, i]
    return path, ids


def words(text, frames_each=1):
    """Divide a text given as pieces, a frame for each piece."""
    return [word.word for word in words_of([Piece(text, 0, frames_each)], frame_s=0.06, length_s=1e6)]


@pytest.mark.parametrize("text", SENTENCES)
def test_a_spoken_sentence_comes_back(tokenizer, text):
    """Runs collapse, blanks vanish, and the text is what SentencePiece decodes."""
    path, ids = spoken(tokenizer, text)
    result = read(tokenizer, path)
    assert result.text == tokenizer.decode(ids) == text
    assert result.raw.replace("|> ", "|>") == "<|zh|><|HAPPY|><|Speech|><|withitn|>" + text


def test_raw_is_the_decoded_path_of_all_frames(tokenizer):
    """`raw` is FunASR's text: repeats collapse over tag frames and speech alike, and special tokens stay."""
    zh, neutral, speech, withitn = (
        tokenizer._pieces.PieceToId(f"<|{name}|>") for name in ("zh", "NEUTRAL", "Speech", "withitn")
    )
    hello = ids_of(tokenizer, "hello")
    path = [zh, neutral, speech, withitn, withitn, 0, *hello, 0, speech]
    assert read(tokenizer, path).raw == "<|zh|><|NEUTRAL|><|Speech|><|withitn|> hello<|Speech|>"
    assert read(tokenizer, path).text == "hello"


def test_tags_come_from_the_picks_and_not_from_the_text(tokenizer):
    """Whatever ids stand on the tag frames, the labels and scores are those picked there."""
    result = read(tokenizer, [0, 0, 0, 0])
    assert (result.language, result.emotion, result.event, result.itn) == ("en", "NEUTRAL", "Speech", True)
    assert (result.language_score, result.emotion_score, result.event_score) == (0.9, 0.8, 0.7)
    assert (result.text, result.raw, result.words) == ("", "", ())


def test_no_speech_has_no_text(tokenizer):
    """Where the language says nospeech, stray tokens are not shown; `raw` still holds them."""
    path, _ = spoken(tokenizer, "hello")
    result = read(tokenizer, path, (TagPick("nospeech", 0.9), *PICKS[1:3], TagPick("woitn", 0.6)))
    assert (result.text, result.words, result.itn) == ("", (), False)
    assert result.raw.endswith("hello")


def test_a_token_has_the_time_of_its_run(tokenizer):
    """Times count from the first frame after the tags, in steps of 60 ms, and end with the utterance."""
    (you,), (good,) = (ids_of(tokenizer, c)[-1:] for c in ("你", "好"))
    path = [*tag_ids(tokenizer), 0, 0, you, you, you, 0, good, good, 0]
    times = [(w.word, w.start, w.end) for w in read(tokenizer, path).words]
    assert times == [("你", 0.12, 0.3), ("好", 0.36, 0.48)]
    assert read(tokenizer, path, length_s=0.4).words[-1].end == 0.4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("don't stop, it's ten.", ["don't", "stop,", "it's", "ten."]),
        ("10,000 dollars and 5% (more)", ["10,000", "dollars", "and", "5%", "(more)"]),
        ("今天,很好。", ["今", "天,", "很", "好。"]),
        ("今天，hello，world！", ["今", "天，", "hello，", "world！"]),
        ("“你好”", ["“你", "好”"]),
        ("iPhone手机5个", ["iPhone", "手", "机", "5", "个"]),
        ("안녕하세요, 오늘 좋네요.", ["안녕하세요,", "오늘", "좋네요."]),
        ("コーヒーです", ["コ", "ー", "ヒ", "ー", "で", "す"]),
        ("cafe\u0301 x", ["cafe\u0301", "x"]),
        ("  ", []),
        ("...", ["..."]),
    ],
)
def test_words_follow_the_script(text, expected):
    """Spaces divide, characters of scripts without spaces stand alone, punctuation stays with its word."""
    assert words(text) == expected


def test_characters_of_one_token_share_its_time():
    """A piece of two characters gives each half of its run; a word over two pieces spans both."""
    pieces = [Piece("世界", 10, 14), Piece(" hel", 20, 21), Piece("lo", 25, 26)]
    times = [(w.word, w.start, w.end) for w in words_of(pieces, frame_s=0.1, length_s=100.0)]
    assert times == [("世", 1.0, 1.2), ("界", 1.2, 1.4), ("hello", 2.0, 2.6)]


def assert_words_are_the_text(result):
    """Check that the words, with the text's spaces between, are the text, in order of time."""
    rest = result.text
    for word in result.words:
        assert word.word
        rest = rest.lstrip()
        assert rest.startswith(word.word)
        rest = rest[len(word.word) :]
        assert 0 <= word.start <= word.end
    assert rest == ""
    assert all(one.start <= other.start and one.end <= other.end for one, other in pairwise(result.words))


def test_words_joined_are_the_text_whatever_the_ids(tokenizer):
    """On random paths over the whole vocabulary the words cover the text exactly, in order of time."""
    dice = random.Random(1)
    for _ in range(300):
        path = [dice.choice((0, dice.randrange(tokenizer.size))) for _ in range(dice.randrange(4, 60))]
        assert_words_are_the_text(read(tokenizer, path))


def test_surfaces_joined_are_the_text_whatever_the_ids(tokenizer):
    """Each token's part of the text, joined, is the text, also for unknown, control and byte pieces."""
    dice = random.Random(2)
    for _ in range(300):
        ids = [dice.randrange(tokenizer.size) for _ in range(dice.randrange(30))]
        text, parts = tokenizer.surfaces(ids)
        assert text == tokenizer.decode(ids)
        assert "".join(parts) == text
        assert len(parts) == len(ids)


def test_the_real_vocabulary_gives_the_published_ids_and_exact_text(shared_data):
    """Tag ids are found by name where the model's page has them; random paths read back exactly."""
    tokenizer = Tokenizer(shared_data / "sensevoice_small" / "chn_jpn_yue_eng_ko_spectok.bpe.model")
    language, emotion, event, itn = tokenizer.slots
    assert dict(zip(language.names, language.ids, strict=True)) == {
        "zh": 24884, "en": 24885, "yue": 24888, "ja": 24892, "ko": 24896, "nospeech": 24992,
    }  # fmt: skip
    assert dict(zip(emotion.names, emotion.ids, strict=True)) == {
        "HAPPY": 25001, "SAD": 25002, "ANGRY": 25003, "NEUTRAL": 25004, "FEARFUL": 25005,
        "DISGUSTED": 25006, "SURPRISED": 25007, "OTHER": 25008, "EMO_UNKNOWN": 25009,
    }  # fmt: skip
    assert event.ids[event.names.index("Applause")] == 24999
    assert event.ids[event.names.index("Event_UNK")] == 25019
    assert itn == type(itn)(("withitn", "woitn"), (25016, 25017))
    dice = random.Random(3)
    for _ in range(100):
        path = [dice.choice((0, dice.randrange(tokenizer.size))) for _ in range(60)]
        assert_words_are_the_text(read(tokenizer, path))
    ids = [24884, 25004, 24993, 25016, 9000, 9001]
    assert read(tokenizer, ids).raw == "<|zh|><|NEUTRAL|><|Speech|><|withitn|> scramble CNN"


def test_a_tokenizer_of_another_kind_is_refused_in_one_sentence(tmp_path):
    """No SentencePiece model, and one without the tag tokens: each names the file and the fault."""
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"broken\.model is not a SentencePiece model"):
        Tokenizer(broken)
    with pytest.raises(ConfigError, match=r"absent\.model is not a SentencePiece model"):
        Tokenizer(tmp_path / "absent.model")
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(SENTENCES * 5),
        model_prefix=str(tmp_path / "tagless"),
        vocab_size=150,
        hard_vocab_limit=False,
        minloglevel=2,
        user_defined_symbols=["<|zh|>", "<|NEUTRAL|>", "<|Speech|>", "<|withitn|>"],
    )
    with pytest.raises(ConfigError, match=r"lacks the ITN tokens \(such as <\|withitn\|>\)"):
        Tokenizer(tmp_path / "tagless.model")
