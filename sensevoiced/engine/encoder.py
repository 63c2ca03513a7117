"""SenseVoiceSmall's network, encoder and CTC head, for packed batches; imports torch only, reads no file.

Parameters have FunASR's names. The architecture is SAN-M (https://arxiv.org/abs/2006.01713), the arithmetic
that of FunASR's funasr/models/sense_voice/model.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it everywhere

from sensevoiced.engine.linear import Linear
from sensevoiced.engine.packing import Dimensions, Packing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LANGUAGE_QUERY = {"auto": 0, "zh": 3, "en": 4, "yue": 7, "ja": 11, "ko": 12, "nospeech": 13}
"""Rows of the query embedding, constants of the architecture: FunASR's SenseVoiceSmall.lid_dict."""
EVENT_QUERY, EMOTION_QUERY = 1, 2
WITH_ITN_QUERY, WITHOUT_ITN_QUERY = 14, 15
QUERY_ROWS = 16

_LONGEST_PERIOD = 10_000.0
"""The slowest sine turns once in 2 pi times so many frames (https://arxiv.org/abs/1706.03762)."""
_POSITIONS = 1_024
"""Rows of the position table to begin with: 61 s, more than any utterance, so that it is made once."""


class Memory(nn.Module):
    """The FSMN memory block: a depthwise convolution over time, plus its input.

    Its parameter is Conv1d's, (width, 1, kernel).
    """

    def __init__(self, dimensions: Dimensions) -> None:
        """Make room for the taps."""
        super().__init__()
        self.left = dimensions.left
        self.kernel = dimensions.kernel
        self.weight = nn.Parameter(torch.empty(dimensions.width, 1, dimensions.kernel))
        self._taps = torch.empty(0)
        """The weights as they are used, shape (kernel, width), once they have been."""

    def taps(self) -> torch.Tensor:
        """Give the weights as they are used, shape (kernel, width)."""
        taps = self.weight[:, 0, :].t().clone(memory_format=torch.contiguous_format)
        # The input itself is one more of the middle tap.
        taps[self.left] += 1
        return taps

    def forward(self, value: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Map (total, width) to (total, width), each utterance between zeros.

        Written as one multiply-add a tap: elementwise, so that a frame's result does not depend on its place
        in the batch, and at these sizes no slower than the library's convolution.
        """
        if self._taps.device != value.device or not len(self._taps):
            self._taps = self.taps()
        spaced = self._taps.new_zeros(packing.spaced_total, value.shape[1])
        alone = len(packing.lengths) == 1
        if alone:
            spaced[self.left : self.left + len(value)].copy_(value)
        else:
            spaced.index_copy_(0, packing.spaced_rows, value.float())
        count = packing.spaced_total - self.kernel + 1
        summed = spaced[:count] * self._taps[0]
        for tap in range(1, self.kernel):
            summed.addcmul_(spaced[tap : tap + count], self._taps[tap])
        return summed if alone else summed.index_select(0, packing.spaced_rows - self.left)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attend within one utterance: (heads, rows, depth) each, and the same out."""
    if query.dtype == torch.bfloat16 and query.is_cpu:
        # The plain formula: at 254 rows torch's fused kernel takes 1.7 times as long in bfloat16.
        room = query.new_empty(1, 1, 1)
        scores = torch.baddbmm(room, query, key.transpose(1, 2), beta=0, alpha=query.shape[-1] ** -0.5)
        return torch.bmm(scores.softmax(dim=-1), value)
    # torch's fused kernels want a batch.
    return F.scaled_dot_product_attention(query[None], key[None], value[None])[0]


class Attention(nn.Module):
    """Self-attention within each utterance, plus the memory of its values."""

    def __init__(self, inputs: int, dimensions: Dimensions) -> None:
        """Make room for the fused query, key and value projection and the output projection."""
        super().__init__()
        self.heads = dimensions.heads
        self.linear_q_k_v = Linear(inputs, dimensions.width * 3, narrow=True)
        self.linear_out = Linear(dimensions.width, dimensions.width)
        self.fsmn_block = Memory(dimensions)

    def forward(self, rows: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Map (total, inputs) to (total, width)."""
        qkv = self.linear_q_k_v(rows, packing.spans)
        width = qkv.shape[1] // 3
        mixed = qkv.new_empty(packing.total, width)
        for start, end in packing.spans:
            # (rows, 3, heads, depth) -> three of (heads, rows, depth)
            query, key, value = qkv[start:end].view(end - start, 3, self.heads, -1).permute(1, 2, 0, 3)
            attended = _attend(query, key, value)
            mixed[start:end].view(end - start, self.heads, -1).copy_(attended.transpose(0, 1))
        result: torch.Tensor = self.fsmn_block(qkv[:, 2 * width :], packing)
        return result.add_(self.linear_out(mixed, packing.spans))


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between."""

    def __init__(self, dimensions: Dimensions) -> None:
        """Make room for both layers."""
        super().__init__()
        self.w_1 = Linear(dimensions.width, dimensions.hidden, relu=True)
        self.w_2 = Linear(dimensions.hidden, dimensions.width)

    def forward(self, rows: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Map (total, width) to (total, width)."""
        result: torch.Tensor = self.w_2(self.w_1(rows, packing.spans), packing.spans)
        return result


class Block(nn.Module):
    """One encoder layer, normalised before each half.

    It is without a residual around attention where it changes the width.
    """

    def __init__(self, inputs: int, dimensions: Dimensions) -> None:
        """Make room for one layer that takes rows of `inputs` columns."""
        super().__init__()
        self._residual = inputs == dimensions.width
        self.norm1 = nn.LayerNorm(inputs)
        self.norm2 = nn.LayerNorm(dimensions.width)
        self.self_attn = Attention(inputs, dimensions)
        self.feed_forward = FeedForward(dimensions)

    def forward(self, rows: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Map (total, inputs) to (total, width), in float32 whatever the type of the linear layers."""
        # Sums go into what was just made: at these sizes a new tensor costs as much as the sum.
        attended: torch.Tensor = self.self_attn(self.norm1(rows), packing)
        if self._residual:
            attended.add_(rows)
        return attended.add_(self.feed_forward(self.norm2(attended), packing))


class Encoder(nn.Module):
    """The stack: a block that changes the width, more blocks, a norm, the tp_blocks, a norm."""

    def __init__(self, dimensions: Dimensions) -> None:
        """Make room for all blocks."""
        super().__init__()
        self._scale = math.sqrt(dimensions.width)
        self.encoders0 = nn.ModuleList([Block(dimensions.features, dimensions)])
        self.encoders = nn.ModuleList(
            [Block(dimensions.width, dimensions) for _ in range(dimensions.blocks - 1)]
        )
        self.tp_encoders = nn.ModuleList(
            [Block(dimensions.width, dimensions) for _ in range(dimensions.tp_blocks)]
        )
        self.after_norm = nn.LayerNorm(dimensions.width)
        self.tp_norm = nn.LayerNorm(dimensions.width)
        self._positions = torch.empty(0)
        self.between_layers: Callable[[], None] = lambda: None
        """Called after each layer. It may run another batch through this network: nothing is shared."""

    def forward(self, rows: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Map (total, features) to (total, width); positions count from 1 in every utterance."""
        positions = self._encoding(max(packing.lengths), rows)
        rows = rows * self._scale + torch.cat([positions[:length] for length in packing.lengths])
        for block in (*self.encoders0, *self.encoders):
            rows = block(rows, packing)
            self.between_layers()
        rows = self.after_norm(rows)
        for block in self.tp_encoders:
            rows = block(rows, packing)
            self.between_layers()
        result: torch.Tensor = self.tp_norm(rows)
        return result

    def _encoding(self, length: int, like: torch.Tensor) -> torch.Tensor:
        """Give at least `length` rows of the position encoding: first all sines, then all cosines."""
        if len(self._positions) < length or self._positions.device != like.device:
            length = max(_POSITIONS, 2 ** math.ceil(math.log2(length)))
            half = like.shape[1] // 2
            step = torch.log(torch.tensor(_LONGEST_PERIOD)) / (half - 1)
            speeds = torch.exp(torch.arange(half, dtype=torch.float32) * -step)
            angles = torch.arange(1, length + 1, dtype=torch.float32)[:, None] * speeds
            self._positions = torch.cat((angles.sin(), angles.cos()), dim=1).to(like.device)
        return self._positions


class Ctc(nn.Module):
    """The head: width to vocabulary. No softmax, because the best id of a row needs none."""

    def __init__(self, dimensions: Dimensions) -> None:
        """Make room for the head."""
        super().__init__()
        self.ctc_lo = Linear(dimensions.width, dimensions.vocabulary)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map rows (N, width) of one utterance to logits (N, vocabulary)."""
        logits: torch.Tensor = self.ctc_lo(rows, [(0, len(rows))])
        return logits


class Queries(nn.Module):
    """The table of query embeddings.

    Not nn.Embedding: that initialises itself, which without memory behind it makes torch import its compiler,
    a second of every start.
    """

    def __init__(self, dimensions: Dimensions) -> None:
        """Make room for the table."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(QUERY_ROWS, dimensions.features))

    def forward(self, language: int, itn: int) -> torch.Tensor:
        """Give the four query rows (4, features) in the order language, event, emotion, ITN."""
        return self.weight[[language, EVENT_QUERY, EMOTION_QUERY, itn]]


class SenseVoice(nn.Module):
    """The whole network; `state_dict()` has the names and shapes of FunASR's model.pt."""

    def __init__(self, dimensions: Dimensions) -> None:
        """Make room for a model of `dimensions`."""
        super().__init__()
        self.dimensions = dimensions
        self.embed = Queries(dimensions)
        self.encoder = Encoder(dimensions)
        self.ctc = Ctc(dimensions)

    def forward(
        self, features: Sequence[torch.Tensor], queries: Sequence[tuple[int, int]]
    ) -> tuple[torch.Tensor, Packing]:
        """Encode utterances of (frames, features) under (language, ITN) query rows each.

        Returns rows (total, width) and their layout. The model answers on the four query rows with language,
        emotion, event, ITN.
        """
        utterances = [
            torch.cat((self.embed(language, itn), rows))
            for (language, itn), rows in zip(queries, features, strict=True)
        ]
        packed = torch.cat(utterances)
        packing = Packing([len(rows) for rows in utterances], self.dimensions, packed.device)
        return self.encoder(packed, packing), packing
