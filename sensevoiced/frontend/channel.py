"""What parent and child say to each other, and how: framed msgpack with raw features behind it.

Stdlib and msgpack only.

Two sockets, so that calling a job off needs no conversation. The control socket (SOCK_SEQPACKET, for the
child's life) carries `setup` and `job` down and `ready`, `failed` and `idle` up. Each job has a stream socket
of its own, passed with the job beside the recording's descriptor: the child writes `begun`, `utterance`,
`progress`, then `done` or `error`; the parent only reads, and ends a job by closing it. A child whose parent
does not read simply blocks.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgpack

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Mapping

HEAD = struct.Struct("=II")
"""Before each message of a job: bytes of msgpack, bytes of features."""
MAX_HEADER_BYTES = 16 * 2**10
MAX_PAYLOAD_BYTES = 16 * 2**20
"""60 s of features are 2.2 MiB; a child that sends more has been taken over."""
MAX_CONTROL_BYTES = 64 * 2**10


class Closed(Exception):
    """The other side closed the socket."""


def pack(message: Mapping[str, Any]) -> bytes:
    """Encode a message."""
    packed: bytes = msgpack.packb(message)
    return packed


def unpack(data: bytes | memoryview) -> dict[str, Any]:
    """Decode a message; ValueError when it is none."""
    message = msgpack.unpackb(data)
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ValueError("a message without a type")  # noqa: TRY004 - one error for everything that is no message
    return message


def send_message(sock: socket.socket, message: Mapping[str, Any], payload: memoryview | bytes = b"") -> None:
    """Write one message to a blocking job socket; OSError when the parent has closed it."""
    header = pack(message)
    body = memoryview(payload).cast("B")
    parts = [memoryview(HEAD.pack(len(header), len(body)) + header), body]
    while parts:
        sent = sock.sendmsg(parts)
        while parts and sent >= len(parts[0]):
            sent -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][sent:]


async def read_message(
    loop: asyncio.AbstractEventLoop, sock: socket.socket
) -> tuple[dict[str, Any], memoryview]:
    """Read one message from a non-blocking job socket.

    Raises Closed, or ValueError for what no child of ours would send.
    """
    header_bytes, payload_bytes = HEAD.unpack(await _read(loop, sock, HEAD.size))
    if header_bytes > MAX_HEADER_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
        raise ValueError("an oversized message")
    body = await _read(loop, sock, header_bytes + payload_bytes)
    return unpack(body[:header_bytes]), body[header_bytes:]


async def _read(loop: asyncio.AbstractEventLoop, sock: socket.socket, size: int) -> memoryview:
    view = memoryview(bytearray(size))
    got = 0
    while got < size:
        count = await loop.sock_recv_into(sock, view[got:])
        if not count:
            raise Closed
        got += count
    return view
