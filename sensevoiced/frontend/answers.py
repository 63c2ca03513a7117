"""What a child says of its job, checked: it reads strangers' bytes, and may have been taken over.

Must never import numpy or torch.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sensevoiced.jobs import Decoded, JobError, Utterance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sensevoiced.config import FrontendConfig
    from sensevoiced.features import FrontendSpec

FLOAT_BYTES = 4
END_SLACK_S = 10.0
"""What times may go beyond the longest recording: a block of it, and the frames that reach over its end."""
MAX_SENTENCE_CHARS = 1_000
"""Our own sentences are a third of it."""
REFUSALS = frozenset({"bad_input", "too_long"})
"""Codes that are a child's to give; the others speak for the daemon."""


@dataclass(frozen=True, slots=True)
class Begun:
    """The child has taken the job."""


@dataclass(frozen=True, slots=True)
class Progress:
    """So many seconds of audio are decoded."""

    decoded_s: float


@dataclass(frozen=True, slots=True)
class Found:
    """An utterance, and how much audio was decoded until it was found."""

    utterance: Utterance
    decoded_s: float


@dataclass(frozen=True, slots=True)
class Expected:
    """What a child of ours can send."""

    dim: int
    """Columns of its features."""
    max_frames: int
    """Rows of the longest utterance."""
    max_s: float
    """Where the longest recording ends. Times reach counters that every user's `retry_after_ms` goes by."""

    @classmethod
    def under(cls, limits: FrontendConfig, spec: FrontendSpec) -> Expected:
        """What is expected for a model that takes features of `spec`."""
        row_s = spec.frame_shift_ms * spec.lfr_n / 1000
        longest_s = max(limits.max_utterance_s, limits.max_whole_s)
        return cls(spec.dim, math.ceil(longest_s / row_s) + 1, limits.max_duration_s + END_SLACK_S)


MAX_CHANNEL = 1_024
"""The largest `max_channels` that can be set."""

Answer = Begun | Progress | Found | Decoded | JobError


def interpret(message: Mapping[str, Any], payload: memoryview, index: int, expected: Expected) -> Answer:
    """Give what a message means; `index` is that of the utterance that would come next.

    Raises ValueError for everything that no child of ours would say.
    """
    kind = message["type"]
    if kind == "utterance":
        return _found(message, payload, index, expected)
    if len(payload):
        raise ValueError(f"features beside a message {kind!r:.40}")
    match kind:
        case "begun":
            return Begun()
        case "progress":
            return Progress(_seconds(message, "decoded_s", expected.max_s))
        case "done":
            return Decoded(
                duration_s=_seconds(message, "duration_s", expected.max_s),
                truncated=message.get("truncated") is True,
                decode_s=_seconds(message, "decode_s"),
                features_s=_seconds(message, "features_s"),
                vad_s=_seconds(message, "vad_s"),
            )
        case "error":
            code, sentence = message.get("code"), message.get("message")
            if not isinstance(code, str) or code not in REFUSALS:
                raise ValueError(f"a refusal that is not its own, {code!r:.40}")
            if not isinstance(sentence, str) or not 0 < len(sentence) <= MAX_SENTENCE_CHARS:
                raise ValueError("a refusal without a sentence")
            return JobError(code, sentence)
    raise ValueError(f"an unknown message, {kind!r:.40}")


def _found(message: Mapping[str, Any], payload: memoryview, index: int, expected: Expected) -> Found:
    frames = message.get("frames")
    if not isinstance(frames, int) or not 1 <= frames <= expected.max_frames:
        raise ValueError(f"an utterance of {frames!r:.20} frames")
    if message.get("dim") != expected.dim or message.get("index") != index:
        raise ValueError("an utterance that is not the next, or not for this model")
    if len(payload) != frames * expected.dim * FLOAT_BYTES:
        raise ValueError("features that do not fit their description")
    start_s, end_s = (_seconds(message, name, expected.max_s) for name in ("start_s", "end_s"))
    if start_s > end_s:
        raise ValueError("an utterance that ends before it begins")
    channel = message.get("channel")
    if type(channel) is not int or not 0 <= channel <= MAX_CHANNEL:
        raise ValueError(f"an utterance of channel {channel!r:.20}")
    utterance = Utterance(
        index=index,
        start_s=start_s,
        end_s=end_s,
        features=bytes(payload),
        frames=frames,
        dim=expected.dim,
        channel=channel,
    )
    return Found(utterance, _seconds(message, "decoded_s", expected.max_s))


def _seconds(message: Mapping[str, Any], name: str, most_s: float = sys.float_info.max) -> float:
    value = message.get(name)
    if not isinstance(value, int | float) or not 0 <= value <= most_s:
        raise ValueError(f"{name} of {value!r:.20}")
    return float(value)
