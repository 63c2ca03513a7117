"""Owns the trainable form of SenseVoice: arithmetic and state-dict names of FunASR's, padded, quick on a CPU.

Written from the SAN-M paper (arXiv:2006.01713) and FunASR's behaviour; the product has an engine of its own.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor, nn

INPUT_SIZE = 560  # 80 mels, 7 frames
QUERIES = 16  # rows of the query embedding, as SenseVoice has them
EVENT_QUERY, EMOTION_QUERY = 1, 2
LANGUAGE_QUERY = {"auto": 0, "zh": 3, "en": 4, "yue": 7, "ja": 11, "ko": 12, "nospeech": 13}
ITN_QUERY = {True: 14, False: 15}
TAG_FRAMES = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the demo model, under FunASR's names (encoder_conf)."""

    output_size: int = 192
    attention_heads: int = 4
    linear_units: int = 768
    num_blocks: int = 6
    tp_blocks: int = 2
    kernel_size: int = 11

    def encoder_conf(self) -> dict[str, object]:
        """The encoder_conf section of config.yaml."""
        rates = dict.fromkeys(("dropout_rate", "positional_dropout_rate", "attention_dropout_rate"), 0.1)
        rest = {"input_layer": "pe", "pos_enc_class": "SinusoidalPositionEncoder", "normalize_before": True}
        return asdict(self) | rates | rest | {"sanm_shfit": 0, "selfattention_layer_type": "sanm"}


class Dropout(nn.Module):
    """Dropout with one mask for all frames: nn.Dropout would take a quarter of a step on a CPU."""

    def __init__(self, rate: float) -> None:
        """Make the parts."""
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> the same, some channels zeroed."""
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], 1, x.shape[2]) >= self.rate
        return x * (keep / (1.0 - self.rate)).to(x.dtype)


class Attention(nn.Module):
    """Self-attention plus a memory block: a depthwise convolution over the values."""

    def __init__(self, size_in: int, shape: Shape) -> None:
        """Make the parts."""
        super().__init__()
        size = shape.output_size
        self.heads = shape.attention_heads
        self.linear_out = nn.Linear(size, size)
        self.linear_q_k_v = nn.Linear(size_in, 3 * size)
        self.fsmn_block = nn.Conv1d(size, size, shape.kernel_size, groups=size, bias=False)

    def forward(self, x: Tensor, valid: Tensor, bias: Tensor) -> Tensor:
        """X [B, T, size_in], valid [B, T, 1] (1 or 0), bias [B, 1, 1, T] (0 or -inf) -> [B, T, size]."""
        batch, time, _ = x.shape
        q, k, v = self.linear_q_k_v(x).chunk(3, dim=-1)
        memory_in = (v * valid).transpose(1, 2).unsqueeze(2)  # [B, C, 1, T], channels last in memory
        kernel = self.fsmn_block.weight.unsqueeze(2)
        half = (kernel.shape[-1] - 1) // 2
        memory = F.conv2d(memory_in, kernel.to(memory_in.dtype), padding=(0, half), groups=kernel.shape[0])
        memory = (memory + memory_in).squeeze(2).transpose(1, 2)
        q, k, v = (t.view(batch, time, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.linear_out(mixed.transpose(1, 2).reshape(batch, time, -1)) + memory


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        """Make the parts."""
        super().__init__()
        self.w_1 = nn.Linear(shape.output_size, shape.linear_units)
        self.w_2 = nn.Linear(shape.linear_units, shape.output_size)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, size] -> [B, T, size]."""
        return self.w_2(self.dropout(F.relu(self.w_1(x))))


class Block(nn.Module):
    """Attention and feed-forward, each after a layer norm; a block that changes the width has no residual."""

    def __init__(self, size_in: int, shape: Shape, dropout: float) -> None:
        """Make the parts."""
        super().__init__()
        self.self_attn = Attention(size_in, shape)
        self.feed_forward = FeedForward(shape, dropout)
        self.norm1 = nn.LayerNorm(size_in)
        self.norm2 = nn.LayerNorm(shape.output_size)
        self.dropout = Dropout(dropout)
        self.residual = size_in == shape.output_size

    def forward(self, x: Tensor, valid: Tensor, bias: Tensor) -> Tensor:
        """[B, T, size_in] -> [B, T, size]."""
        mixed = self.dropout(self.self_attn(self.norm1(x), valid, bias))
        x = x + mixed if self.residual else mixed
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class Encoder(nn.Module):
    """num_blocks + tp_blocks blocks; module names are FunASR's."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        """Make the parts."""
        super().__init__()
        self.scale = math.sqrt(shape.output_size)
        size = shape.output_size
        self.encoders0 = nn.ModuleList([Block(INPUT_SIZE, shape, dropout)])
        self.encoders = nn.ModuleList([Block(size, shape, dropout) for _ in range(shape.num_blocks - 1)])
        self.tp_encoders = nn.ModuleList([Block(size, shape, dropout) for _ in range(shape.tp_blocks)])
        self.after_norm = nn.LayerNorm(size)
        self.tp_norm = nn.LayerNorm(size)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """X [B, T, 560], lengths [B] -> the output and a middle layer's, both [B, T, size]."""
        time = x.shape[1]
        inside = torch.arange(time)[None, :] < lengths[:, None]
        valid = inside[:, :, None].to(x.dtype)
        bias = torch.zeros(inside.shape).masked_fill(~inside, float("-inf"))[:, None, None, :]
        x = x * self.scale + positions(time, x.shape[2])
        for block in self.encoders0:
            x = block(x, valid, bias)
        middle = x
        for i, block in enumerate(self.encoders):
            x = block(x, valid, bias)
            if i == len(self.encoders) // 2:
                middle = F.layer_norm(x, x.shape[-1:])
        x = self.after_norm(x)
        for block in self.tp_encoders:
            x = block(x, valid, bias)
        return self.tp_norm(x), middle


def positions(time: int, depth: int) -> Tensor:
    """Sinusoidal position code of frames 1..time: [time, depth], sines first."""
    steps = torch.exp(torch.arange(depth / 2) * (-math.log(10000.0) / (depth / 2 - 1)))
    angles = torch.arange(1, time + 1)[:, None] * steps[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Head(nn.Module):
    """The CTC projection."""

    def __init__(self, size: int, vocabulary: int) -> None:
        """Make the parts."""
        super().__init__()
        self.ctc_lo = nn.Linear(size, vocabulary)


class DemoSenseVoice(nn.Module):
    """Query embedding, encoder and CTC head."""

    def __init__(self, vocabulary: int, shape: Shape | None = None, dropout: float = 0.1) -> None:
        """Make the parts."""
        super().__init__()
        shape = shape or Shape()
        self.encoder = Encoder(shape, dropout)
        self.ctc = Head(shape.output_size, vocabulary)
        self.embed = nn.Embedding(QUERIES, INPUT_SIZE)

    def forward(self, x: Tensor, lengths: Tensor, language: Tensor, itn: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the output and of a middle layer.

        Args:
            x: [B, T, 560] features after CMVN, padded.
            lengths: [B] true frame counts.
            language: [B] rows of the query embedding.
            itn: [B] rows of the query embedding.

        Returns:
            Two of [B, 4 + T, vocabulary]; frames 0-3 are language, emotion, event and ITN.
        """
        fixed = torch.tensor([[EVENT_QUERY, EMOTION_QUERY]]).expand(len(x), 2)
        queries = self.embed(torch.cat([language[:, None], fixed, itn[:, None]], dim=1))
        out, middle = self.encoder(torch.cat([queries, x], dim=1), lengths + TAG_FRAMES)
        return self.ctc.ctc_lo(out), self.ctc.ctc_lo(middle)
