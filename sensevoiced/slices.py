"""Asks the kernel for short slices of a core, for what answers; must import nothing but the standard library.

Where every core is busy, a thread that wakes up waits until a running one has had its slice, 1.4 ms or more,
and a request passes through half a dozen such moments. Linux 6.12 and later lets a thread trade long slices
for early ones: its share of the core stays the same, it gets it in smaller pieces (sched_setattr(2), where
sched_runtime of SCHED_OTHER is that slice; `custom_slice` in the kernel's scheduler). Older kernels take the
call and change nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct

SHORT_NS = 100_000
"""The least that the kernel allows."""
USUAL_NS = 0
"""The kernel's own length again."""

_NUMBERS = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""Of sched_setattr and sched_getattr: glibc has functions for them since 2.41 only."""
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
"""struct sched_attr in its first version: size, policy, flags, nice, priority, runtime, deadline, period."""
_POLICY, _FLAGS, _RUNTIME = 1, 2, 5


def ask_for(slice_ns: int) -> None:
    """Ask for slices of this length for the calling thread, and for what it starts from now on.

    All stays as it is where the kernel, the processor or a sandbox has no such call.
    """
    attributes = _attributes()
    if attributes and attributes[_POLICY] == os.SCHED_OTHER:
        attributes[_FLAGS], attributes[_RUNTIME] = 0, slice_ns
        _call(0, _ATTRIBUTES.pack(*attributes), 0)


def slice_ns() -> int:
    """Length of the calling thread's slices in ns; 0 where the kernel does not tell."""
    attributes = _attributes()
    return attributes[_RUNTIME] if attributes else 0


def _attributes() -> list[int]:
    held = ctypes.create_string_buffer(_ATTRIBUTES.size)
    return [*_ATTRIBUTES.unpack(held.raw)] if _call(1, held, _ATTRIBUTES.size, 0) else []


def _call(which: int, *words: object) -> bool:
    """Make one of the two calls for the calling thread; whether it worked."""
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        return False
    with contextlib.suppress(OSError, AttributeError):
        return ctypes.CDLL(None).syscall(numbers[which], 0, *words) == 0  # type: ignore[no-any-return]
    return False
