"""Owns the demo model's small SentencePiece tokenizer: writes the .model file from the phrase books' pieces.

Never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentencepiece import sentencepiece_model_pb2 as proto

from demo.phrases import all_pieces

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = "demo_zh_en_yue_ja_ko.model"
LANGUAGE_TAGS = ("zh", "en", "yue", "ja", "ko", "nospeech")
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
    "Event_UNK",
)
EVENT_TAGS_UNUSED = ("/Speech", "/BGM", "/Laughter", "/Applause", "Speech_Noise", "GBG")
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
ITN_TAGS = ("withitn", "woitn")


def special_pieces() -> list[str]:
    """The tags, under SenseVoice's own names, in the order of its own tokenizer where it has one."""
    tags = (*LANGUAGE_TAGS, *EVENT_TAGS, *EVENT_TAGS_UNUSED, *EMOTION_TAGS, *ITN_TAGS)
    return [f"<|{tag}|>" for tag in tags]


def build() -> bytes:
    """Make the tokenizer: `<unk>`, `<s>`, `</s>`, pieces, tags. Id 0 doubles as CTC's blank, as in FunASR."""
    model = proto.ModelProto()
    kind = proto.ModelProto.SentencePiece
    for piece, piece_type in (("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), ("</s>", kind.CONTROL)):
        model.pieces.add(piece=piece, score=0.0, type=piece_type)
    for piece in all_pieces():
        # Equal scores make the unigram search prefer the cut with the fewest pieces, that is whole words.
        model.pieces.add(piece=piece, score=-1.0, type=kind.NORMAL)
    for piece in special_pieces():
        model.pieces.add(piece=piece, score=0.0, type=kind.USER_DEFINED)
    model.trainer_spec.model_type = proto.TrainerSpec.UNIGRAM
    model.trainer_spec.vocab_size = len(model.pieces)
    model.trainer_spec.unk_id, model.trainer_spec.bos_id = 0, 1
    model.trainer_spec.eos_id, model.trainer_spec.pad_id = 2, -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    return model.SerializeToString(deterministic=True)


def write(directory: Path) -> Path:
    """Write the tokenizer into `directory` and return its path."""
    path = directory / FILE_NAME
    path.write_bytes(build())
    return path


def vocabulary() -> dict[str, int]:
    """Piece to id."""
    return {p: i for i, p in enumerate(["<unk>", "<s>", "</s>", *all_pieces(), *special_pieces()])}
