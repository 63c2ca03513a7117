"""Recordings that are small and claim, or become, very much; written by hand, as no encoder makes them."""

from __future__ import annotations

import struct
import zlib

MIB = 2**20
FLAC_BLOCK = 65_535
"""Samples of the longest block that FLAC has."""
_FLAC_RATES = {16_000: 5, 48_000: 10, 192_000: 3}


def crc_table(width, polynomial):
    """The table of a checksum that starts from 0, highest bit first."""
    top, mask = 1 << (width - 1), (1 << width) - 1
    table = []
    for byte in range(256):
        value = byte << (width - 8)
        for _ in range(8):
            value = ((value << 1) ^ (polynomial if value & top else 0)) & mask
        table.append(value)
    return width, table


def crc(kind, data):
    """The checksum of some bytes."""
    width, table = kind
    shift, mask, value = width - 8, (1 << width) - 1, 0
    for byte in data:
        value = ((value << 8) & mask) ^ table[(value >> shift) ^ byte]
    return value


CRC8, CRC16 = crc_table(8, 0x07), crc_table(16, 0x8005)
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_crc(data):
    """Ogg's checksum: that of zlib with all bits in the other order, and from 0."""
    value = zlib.crc32(data.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{value:032b}"[::-1], 2)


def constant_flac(size, *, rate=16_000, channels=1, claimed=0):
    """FLAC of `size` bytes at most in which every sample is 0: a frame of 15 bytes has 65,535 of them.

    `claimed` is the number of samples that its header tells; 0 is "not known".
    """
    facts = (rate << 44) | ((channels - 1) << 41) | (15 << 36) | claimed
    info = struct.pack(">HH6xQ16x", FLAC_BLOCK, FLAC_BLOCK, facts)
    whole = bytearray(b"fLaC\x80\0\0\x22" + info)
    number = 0
    while True:
        head = bytes((0xFF, 0xF8, 0x70 | _FLAC_RATES[rate], ((channels - 1) << 4) | 8))
        head += chr(number).encode("utf-8", "surrogatepass") + struct.pack(">H", FLAC_BLOCK - 1)
        frame = head + bytes((crc(CRC8, head),)) + bytes(3 * channels)
        frame += struct.pack(">H", crc(CRC16, frame))
        if len(whole) + len(frame) > size:
            return bytes(whole)
        whole += frame
        number += 1


def flac_samples(data):
    """How many samples such a file holds."""
    return data.count(b"\xff\xf8") * FLAC_BLOCK


def ogg_page(serial, number, flags, packet):
    """One page with one packet of less than 255 bytes."""
    head = struct.pack("<4sBBqIIIBB", b"OggS", 0, flags, 0, serial, number, 0, 1, len(packet))
    check = ogg_crc(head + packet)
    return head[:22] + struct.pack("<I", check) + head[26:] + packet


def ogg_of_streams(count, *, in_turn):
    """Ogg of so many Opus streams without a sound in them: all at once, or one after the other."""
    head = struct.pack("<8sBBHIhB", b"OpusHead", 1, 1, 0, 48_000, 0, 0)
    tags = struct.pack("<8sII", b"OpusTags", 0, 0)
    if in_turn:
        return b"".join(
            ogg_page(serial, 0, 2, head) + ogg_page(serial, 1, 4, tags) for serial in range(count)
        )
    return b"".join(ogg_page(serial, 0, 2, head) for serial in range(count))


def wav(
    *,
    rate=16_000,
    channels=1,
    bits=16,
    tag=1,
    align=None,
    fmt_bytes=16,
    before=b"",
    riff_bytes=None,
    data_bytes=None,
    seconds=1.0,
):
    """A WAV that says whatever one likes of itself; what follows is silence of 16 bits at 16 kHz."""
    data = bytes(int(seconds * 32_000))
    align = channels * bits // 8 if align is None else align
    values = (tag, channels, rate, rate * align, align, bits)
    masks = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFF, 0xFFFF)
    form = struct.pack("<HHIIHH", *(value & mask for value, mask in zip(values, masks, strict=True)))
    body = b"WAVEfmt " + struct.pack("<I", fmt_bytes) + form + before
    body += b"data" + struct.pack("<I", len(data) if data_bytes is None else data_bytes) + data
    return b"RIFF" + struct.pack("<I", len(body) if riff_bytes is None else riff_bytes) + body


def id3(frame_name, content_head, size):
    """The beginning of an ID3v2.3 tag that holds one frame of `size` bytes: what is missing is to follow."""
    total = 10 + size
    synchsafe = bytes((total >> shift) & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + synchsafe + frame_name + struct.pack(">IH", size, 0) + content_head
