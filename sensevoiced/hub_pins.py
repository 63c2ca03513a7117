"""Which bytes are the models this program knows: revisions and hashes; data only, for hub.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sensevoiced.config import DEFAULT_ASR, DEFAULT_VAD

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Pin:
    """What is known beforehand of a model: where it is on each hub, and the SHA-256 its files must have."""

    modelscope: tuple[str, str]
    huggingface: tuple[str, str]
    """Repository and revision; tags may move, but what they then name would not pass the hashes."""
    sha256: Mapping[str, frozenset[str]]
    """By file name; several where the hubs hold the same numbers in different bytes."""


PINS: Mapping[str, Pin] = {
    DEFAULT_ASR: Pin(
        modelscope=("iic/SenseVoiceSmall", "70514a3da51f1160f51d18449dab6128bbd4928b"),
        huggingface=("FunAudioLLM/SenseVoiceSmall", "3847d57b6bdf2dd8875cb1508d2af43d80a16bf7"),
        sha256={
            "model.pt": frozenset({"833ca2dcfdf8ec91bd4f31cfac36d6124e0c459074d5e909aec9cabe6204a3ea"}),
            "config.yaml": frozenset({"f71e239ba36705564b5bf2d2ffd07eece07b8e3f2bbf6d2c99d8df856339ac19"}),
            "configuration.json": frozenset(
                {"02810a7f8e9e8aee10370a265f7e799728ce25b4c00cdbf4602b303ee395a38e"}
            ),
            "am.mvn": frozenset({"29b3c740a2c0cfc6b308126d31d7f265fa2be74f3bb095cd2f143ea970896ae5"}),
            "chn_jpn_yue_eng_ko_spectok.bpe.model": frozenset(
                {"aa87f86064c3730d799ddf7af3c04659151102cba548bce325cf06ba4da4e6a8"}
            ),
        },
    ),
    DEFAULT_VAD: Pin(
        modelscope=("iic/speech_fsmn_vad_zh-cn-16k-common-pytorch", "v2.0.4"),
        huggingface=("funasr/fsmn-vad", "df20e6b30c653645fa4ff125cacfcabd1020a669"),
        sha256={
            "model.pt": frozenset({"b3be75be477f0780277f3bae0fe489f48718f585f3a6e45d7dd1fbb1a4255fc5"}),
            "config.yaml": frozenset({"486861ca26ddb79081663b6179cb204c6bfae71c52f04aafc48a9e9d8dde1e93"}),
            "configuration.json": frozenset(
                {"7bce8867e37d55c3dd8f672695ced18077a2be199ea529a5d432d5350fc0acba"}
            ),
            "am.mvn": frozenset(
                {
                    "6820fef9687708c4fc3fab2530179c8fcea6262daa25514380056cd8f6eb1754",  # ModelScope
                    "df189fd5f4352df84a0fd464eeab4e450a5e645665d6b38f13c832492261a739",  # Hugging Face
                }
            ),
        },
    ),
}
