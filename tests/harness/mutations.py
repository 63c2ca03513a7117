"""Damaged recordings in any number: the same seed gives the same ones."""

from __future__ import annotations

import random

FEW_BYTES = 32 * 2**10
"""Files well above this are taken rarely: they cost seconds of decoding and break no differently."""
HEADER_BYTES = 256
"""Where most containers keep sizes, rates and channel counts."""
MAX_PIECE_BYTES = 16 * 2**10
EXTREMES = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFE,
    0xFFFF_FFFF,
)
"""What sizes and counts are likeliest to go wrong at."""


def flip_bits(data, _other, rng):
    """Turn over up to 200 bits, wherever they are."""
    for _ in range(rng.choice((1, 5, 50, 200))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def truncate(data, _other, rng):
    """Keep any part of it, an empty one too."""
    del data[rng.randrange(len(data)) :]


def edit_header(data, _other, rng):
    """Write other numbers of one, two or four bytes over its beginning."""
    for _ in range(rng.randint(1, 4)):
        size = rng.choice((1, 2, 4))
        value = rng.choice((*EXTREMES, rng.getrandbits(32))) % 2 ** (8 * size)
        at = rng.randrange(min(len(data), HEADER_BYTES))
        data[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))


def double(data, _other, rng):
    """Put a piece of it in once more, elsewhere."""
    start, end = _piece(data, rng)
    at = rng.randrange(len(data) + 1)
    data[at:at] = data[start:end] * rng.choice((1, 1, 1, 8))


def remove(data, _other, rng):
    """Take a piece out."""
    start, end = _piece(data, rng)
    del data[start:end]


def blank(data, _other, rng):
    """Overwrite a piece with one byte, or with noise."""
    start, end = _piece(data, rng)
    noise = rng.randbytes(end - start)
    data[start:end] = rng.choice((noise, b"\0" * len(noise), b"\xff" * len(noise)))


def splice(data, other, rng):
    """Go on as another recording, of whatever format."""
    del data[rng.randrange(len(data)) :]
    data += other[rng.randrange(len(other)) :]


MUTATIONS = (flip_bits, truncate, edit_header, double, remove, blank, splice)


def mutants(recordings, count, seed):
    """Give `count` pairs of a name, which tells what was done, and the bytes; `recordings` are such pairs."""
    rng = random.Random(seed)
    recordings = sorted((name, data) for name, data in recordings if data)
    weights = [1 / (FEW_BYTES + len(data)) for _, data in recordings]
    for number in range(count):
        (name, whole), (_, other) = rng.choices(recordings, weights, k=2)
        data, done = bytearray(whole), []
        for mutation in rng.choices(MUTATIONS, k=rng.choice((1, 1, 1, 2, 3))):
            if data:
                mutation(data, other, rng)
                done.append(mutation.__name__)
        yield f"{number} {name} {'+'.join(done)}", bytes(data)


def _piece(data, rng):
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.randint(1, MAX_PIECE_BYTES))
