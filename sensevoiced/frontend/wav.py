"""What the header of a WAV promises; for streams, whose length nobody else knows.

Must never import numpy or torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Literal

WAV_HEAD_BYTES = 64 * 2**10
"""Where the audio of a WAV begins at the latest, else nothing is known of its length."""
PLACEHOLDER_BYTES = 0x7FFF_0000
"""Chunk sizes from here on stand for "not known yet" in the headers that recorders and pipes write."""
_PLACEHOLDER_LONG = 2**62
"""The same for the 64-bit sizes of an RF64."""
_ELSEWHERE = 0xFFFF_FFFF
"""The 32-bit size of an RF64's audio."""
_CHUNK_BYTES = 8


def is_wav(head: bytes) -> bool:
    """Say whether a recording that begins so is a WAV of any kind."""
    return head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE"


def promised_bytes(head: bytes) -> int | None:
    """Give how many bytes a WAV that begins so has up to the end of its audio.

    0 where it does not say, None where its audio does not begin.

    RIFF's chunks have four letters and a 32-bit size, and begin at even places. An RF64 (EBU Tech 3306) has
    the size of its audio in `ds64`, behind that of the whole.
    """
    order: Literal["big", "little"] = "big" if head.startswith(b"RIFX") else "little"
    long, at = 0, 12
    while at + _CHUNK_BYTES <= len(head):
        name, size = head[at : at + 4], int.from_bytes(head[at + 4 : at + _CHUNK_BYTES], order)
        at += _CHUNK_BYTES
        if name == b"data":
            if size == _ELSEWHERE and long < _PLACEHOLDER_LONG:
                size = long
            elif size >= PLACEHOLDER_BYTES:
                size = 0
            return at + size if size else 0
        if name == b"ds64":
            long = int.from_bytes(head[at + 8 : at + 16], order)
        at += size + size % 2
    return None
