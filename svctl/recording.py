"""Audio as a program holds it, made into a descriptor for the daemon: a path, an open file, bytes, samples.

Only the library imports it. Decodes nothing.
"""

from __future__ import annotations

import io
import os
import stat
import struct
from typing import IO, TYPE_CHECKING, Any

from svctl.sources import Source, open_source
from svctl.sources import label as label_of

if TYPE_CHECKING:
    Audio = str | os.PathLike[str] | IO[bytes] | bytes | bytearray | memoryview | Any

_FLOAT, _INTEGER = 3, 1
"""wFormatTag of a WAV."""
_SAMPLE_BYTES = {"f": 4, "i": 2}
_MAX_DIMENSIONS = 2
_MAX_CHANNELS = 1_024
"""More are frames: the array is the wrong way round. libsndfile reads no more either."""
_MAX_WAV_BYTES = 2**32 - 100
"""What the lengths of a WAV can say, its header included."""


def source_of(audio: Audio, rate: int | None, label: str | None) -> Source:
    """A source that owns its descriptor.

    A path is opened; an open file is passed itself where it is a regular one at its start, streamed where it
    is a pipe, and read to its end where its bytes are not its descriptor's (gzip, urllib); bytes are a whole
    file (WAV, FLAC, MP3, ...); an array of samples, (frames,) or (frames, channels), float in -1..1 or int16,
    needs its `rate` in Hz. Raises TypeError and ValueError for what is none of these, WireError for a file
    that cannot be opened.
    """
    named = None if label is None else label_of(label)
    found = _made(audio, rate)
    if found.error is not None:
        raise found.error
    if named is not None:
        found.label = named
    return found


def _made(audio: Audio, rate: int | None) -> Source:
    if isinstance(audio, (str, os.PathLike)):
        name = os.fspath(audio)
        # a file may well be called "-"; standard input is sys.stdin.buffer here
        return open_source(f"./{name}" if name == "-" else name)
    if isinstance(audio, (bytes, bytearray, memoryview)):
        return Source("bytes", held(bytes(audio)))
    if hasattr(audio, "dtype") and hasattr(audio, "shape"):
        if rate is None:
            raise TypeError("samples need their rate: transcribe(samples, rate=16000)")
        return Source("samples", held(_wav(audio, rate)))
    if hasattr(audio, "read"):
        return _of_file(audio)
    raise TypeError(f"{type(audio).__name__} is no path, open binary file, bytes, or array of samples")


def _of_file(file: IO[bytes]) -> Source:
    # a file that was opened by its descriptor has a number for a name, one that never had any has none
    named = getattr(file, "name", None)
    name = os.fsdecode(named) if isinstance(named, (str, bytes)) else "file"
    if hasattr(file, "encoding"):
        raise TypeError("the file is open as text: open it with mode 'rb'")
    # gzip files and answers of a web server have a descriptor too, whose bytes are not theirs
    if not isinstance(getattr(file, "raw", file), io.FileIO):
        data = file.read()
        if hasattr(data, "close") and hasattr(data, "send"):  # a coroutine
            data.close()
            raise TypeError("the file is read asynchronously: pass what it wraps, as with UploadFile.file")
        if not isinstance(data, bytes):
            raise TypeError("the file does not give bytes: open it with mode 'rb'")
        return Source(name, held(data))
    if not file.readable():
        raise ValueError("the file is open for writing only: open it with mode 'rb'")
    descriptor = file.fileno()
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        if file.tell() == 0:
            return Source(name, os.dup(descriptor))
        return Source(name, held(file.read()))
    # what is buffered in the object (after peek, say) is not in the pipe any more
    return Source(name, os.dup(descriptor), streamed=True, read=getattr(file, "read1", None))


def held(data: bytes) -> int:
    """A descriptor of these bytes, in memory."""
    descriptor = os.memfd_create("recording", os.MFD_CLOEXEC)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _hz(rate: Any, most: int) -> int:
    """A rate as a whole number; TypeError and ValueError for what is none from 1 to `most`."""
    number = rate.item() if hasattr(rate, "item") else rate  # numpy's, be it an array of one
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"rate is a number of Hz, and not of type {type(number).__name__}")
    if not 0 < number <= most or number % 1:  # nor is NaN
        raise ValueError(f"{number!r} is no rate in Hz")
    return int(number)


def _wav(samples: Any, rate: Any) -> bytes:
    """A WAV of an array's samples; whoever has an array has numpy, and numpy converts."""
    kind = getattr(samples.dtype, "kind", "")
    if not kind:
        raise TypeError(f"{type(samples).__name__} is no numpy array: make one of it, as with .numpy()")
    if samples.ndim not in range(1, _MAX_DIMENSIONS + 1) or kind not in _SAMPLE_BYTES:
        raise ValueError("samples are (frames,) or (frames, channels), float or int16")
    if kind == "i" and samples.dtype.itemsize != _SAMPLE_BYTES["i"]:
        raise ValueError(f"integer samples are int16, not {samples.dtype}")
    channels = samples.shape[1] if samples.ndim == _MAX_DIMENSIONS else 1
    if not 0 < channels <= _MAX_CHANNELS:
        raise ValueError(f"samples are (frames, channels), and these have {channels} channels")
    frame_bytes = channels * _SAMPLE_BYTES[kind]
    rate_hz = _hz(rate, _MAX_WAV_BYTES // frame_bytes)
    if samples.shape[0] * frame_bytes > _MAX_WAV_BYTES:
        raise ValueError("samples of more than 4 GiB fit into no WAV: write them into a file of another kind")
    data: bytes = samples.astype("<f4" if kind == "f" else "<i2").tobytes()
    tag = _FLOAT if kind == "f" else _INTEGER
    bits = 8 * _SAMPLE_BYTES[kind]
    form = struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * frame_bytes, frame_bytes, bits)
    head = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data))
    return b"RIFF" + struct.pack("<I", len(head) + len(data)) + head + data
