"""Writes seeded random SenseVoiceSmall checkpoints of any size, in FunASR's folder layout."""

from __future__ import annotations

import io
import json
import math
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import sentencepiece
import torch
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

TAGS = (
    "<|zh|>", "<|en|>", "<|yue|>", "<|ja|>", "<|ko|>", "<|nospeech|>",
    "<|HAPPY|>", "<|SAD|>", "<|ANGRY|>", "<|NEUTRAL|>", "<|EMO_UNKNOWN|>",
    "<|Speech|>", "<|BGM|>", "<|Applause|>", "<|Laughter|>", "<|Cough|>", "<|Event_UNK|>",
    "<|withitn|>", "<|woitn|>",
)  # fmt: skip

SENTENCES = (
    "don't stop, it's half past ten.",
    "hello world, how are you today?",
    "the quick brown fox jumps over the lazy dog (twice)!",
    "10,000 dollars and 5% more",
    "今天天气很好，我们去公园吧。",
    "你好世界！一二三四五六七八九十",
    "こんにちは、今日はいい天気ですね。コーヒー",
    "안녕하세요, 오늘 날씨가 좋네요.",
    "唔该晒，你食咗饭未呀？",
)

TINY: dict[str, Any] = {
    "output_size": 32,
    "attention_heads": 4,
    "linear_units": 64,
    "num_blocks": 3,
    "tp_blocks": 2,
    "dropout_rate": 0.1,
    "positional_dropout_rate": 0.1,
    "attention_dropout_rate": 0.1,
    "input_layer": "pe",
    "pos_enc_class": "SinusoidalPositionEncoder",
    "normalize_before": True,
    "kernel_size": 11,
    "sanm_shfit": 0,
    "selfattention_layer_type": "sanm",
}


def tiny_tokenizer(*, byte_fallback: bool = False) -> bytes:
    """Train a SentencePiece model of a few hundred pieces on `SENTENCES`, with the tag tokens."""
    pieces = 480 if byte_fallback else 260
    return train_tokenizer(SENTENCES * 20, pieces=pieces, tags=TAGS, byte_fallback=byte_fallback)


def train_tokenizer(
    sentences: Iterable[str], *, pieces: int, tags: Iterable[str], byte_fallback: bool = False
) -> bytes:
    """Train a SentencePiece model with every character of `sentences` and every one of `tags`."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        model_type="bpe",
        vocab_size=pieces,
        hard_vocab_limit=False,
        byte_fallback=byte_fallback,
        character_coverage=1.0,
        normalization_rule_name="identity",
        max_sentence_length=1 << 20,
        user_defined_symbols=list(tags),
        minloglevel=2,
    )
    return written.getvalue()


def state_dict(*, seed: int, features: int, vocabulary: int, conf: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Make weights under FunASR's names for an encoder of `conf`.

    Linear layers keep the variance of what passes through, and the head is scaled up, so that the winner of a
    frame is clear of the others and differs from frame to frame; some of the frames are blank.
    """
    random = torch.Generator().manual_seed(seed)
    width, hidden = conf["output_size"], conf["linear_units"]
    state: dict[str, torch.Tensor] = {}

    def normal(*shape: int, std: float) -> torch.Tensor:
        return torch.randn(*shape, generator=random) * std

    def linear(name: str, inputs: int, outputs: int, gain: float = 1.0) -> None:
        state[f"{name}.weight"] = normal(outputs, inputs, std=gain / math.sqrt(inputs))
        state[f"{name}.bias"] = normal(outputs, std=0.05)

    def norm(name: str, size: int) -> None:
        state[f"{name}.weight"] = 1 + normal(size, std=0.1)
        state[f"{name}.bias"] = normal(size, std=0.1)

    def block(name: str, inputs: int) -> None:
        linear(f"{name}.self_attn.linear_out", width, width)
        linear(f"{name}.self_attn.linear_q_k_v", inputs, 3 * width)
        state[f"{name}.self_attn.fsmn_block.weight"] = normal(
            width, 1, conf["kernel_size"], std=1 / math.sqrt(conf["kernel_size"])
        )
        linear(f"{name}.feed_forward.w_1", width, hidden)
        linear(f"{name}.feed_forward.w_2", hidden, width)
        norm(f"{name}.norm1", inputs)
        norm(f"{name}.norm2", width)

    block("encoder.encoders0.0", features)
    for i in range(conf["num_blocks"] - 1):
        block(f"encoder.encoders.{i}", width)
    for i in range(conf["tp_blocks"]):
        block(f"encoder.tp_encoders.{i}", width)
    norm("encoder.after_norm", width)
    norm("encoder.tp_norm", width)
    state["embed.weight"] = normal(16, features, std=1.0)
    linear("ctc.ctc_lo", width, vocabulary, gain=4.0)
    # The largest of n normal logits lies somewhat below sqrt(2 ln n) deviations: lifted to 0.8 of that, blank
    # wins in a quarter (25,055 pieces) to a half (260 pieces) of the frames.
    lift = 0.8 * math.sqrt(2 * math.log(vocabulary))
    state["ctc.ctc_lo.bias"][0] = 4.0 * lift
    state["ctc.ctc_lo.weight"][0] *= 0.5
    return state


def write_cmvn(file: Path, *, dim: int, seed: int) -> None:
    """Write a shift and a scale for `dim` columns, as kaldi's nnet1 prints them (FunASR's am.mvn)."""
    random = np.random.default_rng(seed)
    shift = " ".join(f"{x:.6f}" for x in -13 + random.normal(size=dim))
    scale = " ".join(f"{x:.6f}" for x in 0.25 + 0.02 * random.normal(size=dim))
    file.write_text(
        f"<Nnet>\n<Splice> {dim} {dim}\n[ 0 ]\n"
        f"<AddShift> {dim} {dim}\n<LearnRateCoef> 0 [ {shift} ]\n"
        f"<Rescale> {dim} {dim}\n<LearnRateCoef> 0 [ {scale} ]\n</Nnet>\n"
    )


def write_tiny(
    folder: Path,
    *,
    seed: int = 1,
    conf: dict[str, Any] | None = None,
    n_mels: int = 8,
    dtype: torch.dtype = torch.float32,
    byte_fallback: bool = False,
) -> Path:
    """Write a model that runs in milliseconds, with its own tokenizer; `conf` overrides parts of `TINY`."""
    return write_model(
        folder,
        seed=seed,
        conf={**TINY, **(conf or {})},
        n_mels=n_mels,
        dtype=dtype,
        tokenizer=tiny_tokenizer(byte_fallback=byte_fallback),
    )


def write_model(
    folder: Path,
    *,
    seed: int,
    conf: dict[str, Any],
    n_mels: int,
    tokenizer: bytes,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a model whose encoder is `conf`, with all its side files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.bpe.model").write_bytes(tokenizer)
    config = {
        "encoder": "SenseVoiceEncoderSmall",
        "encoder_conf": conf,
        "model": "SenseVoiceSmall",
        "model_conf": {"length_normalized_loss": True, "sos": 1, "eos": 2, "ignore_id": -1},
        "tokenizer": "SentencepiecesTokenizer",
        "tokenizer_conf": {"bpemodel": None, "unk_symbol": "<unk>", "split_with_space": True},
        "frontend": "WavFrontend",
        "frontend_conf": {
            "fs": 16000, "window": "hamming", "n_mels": n_mels, "frame_length": 25, "frame_shift": 10,
            "lfr_m": 7, "lfr_n": 6, "cmvn_file": None,
        },
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    metas = {
        "init_param": "model.pt",
        "config": "config.yaml",
        "tokenizer_conf": {"bpemodel": "tiny.bpe.model"},
        "frontend_conf": {"cmvn_file": "am.mvn"},
    }
    configuration = {"framework": "pytorch", "model": {"type": "funasr"}, "file_path_metas": metas}
    (folder / "configuration.json").write_text(json.dumps(configuration))
    write_cmvn(folder / "am.mvn", dim=7 * n_mels, seed=seed)
    _write_weights(folder, seed=seed, features=7 * n_mels, conf=conf, dtype=dtype)
    return folder


def write_full(folder: Path, side_files: Path, *, seed: int = 1) -> Path:
    """Write a checkpoint of the size that config.yaml in `side_files` describes, beside copies of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in side_files.iterdir():
        if file.name != "model.pt" and file.is_file():
            shutil.copyfile(file, folder / file.name)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    front = config["frontend_conf"]
    _write_weights(
        folder,
        seed=seed,
        features=front["n_mels"] * front["lfr_m"],
        conf=config["encoder_conf"],
        dtype=torch.float32,
    )
    return folder


def random_features(seed: int, frames: int, dim: int) -> np.ndarray:
    """Make features (frames, dim) float32 that change gradually, as those of speech do."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(frames + 4, dim))
    return ((rows[:-4] + rows[1:-3] + rows[2:-2]) / math.sqrt(3)).astype(np.float32)


def _write_weights(
    folder: Path, *, seed: int, features: int, conf: dict[str, Any], dtype: torch.dtype
) -> None:
    pieces = sentencepiece.SentencePieceProcessor()
    pieces.Load(str(next(folder.glob("*.bpe.model"))))
    state = state_dict(seed=seed, features=features, vocabulary=pieces.GetPieceSize(), conf=conf)
    torch.save({name: tensor.to(dtype) for name, tensor in state.items()}, folder / "model.pt")
