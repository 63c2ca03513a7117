"""What PyAV does of containers whose streams are not those it found when it opened them."""

from __future__ import annotations

import os

from sensevoiced.frontend.libav import LibavDecoder
from sensevoiced.frontend.source import FileSource
from tools.fuzz.samples import clip, encoded


class Container:
    """A container that, at its end, found one stream more than PyAV made room for (FLV, MPEG-TS)."""

    def __init__(self, container):
        self._container = container

    def __getattr__(self, name):
        return getattr(self._container, name)

    def demux(self, stream):
        yield from self._container.demux(stream)
        raise IndexError("list index out of range")


def test_a_stream_that_appears_on_the_way_takes_nothing_from_the_others():
    """PyAV's own IndexError is the end of the recording, not of the process; all samples are given."""
    fd = os.memfd_create("recording")
    os.write(fd, encoded(clip(1.0))["av-mpegts-mp2"])
    given = []
    for wrap in (lambda container: container, Container):
        decoder = LibavDecoder(FileSource(fd), lambda rate, channels: None)
        decoder._container = wrap(decoder._container)
        given.append([piece.shape for piece, _rate in decoder.blocks(8.0, 2**21)])
        assert not decoder.damaged
        decoder.close()
    os.close(fd)
    assert given[0] == given[1] != []
