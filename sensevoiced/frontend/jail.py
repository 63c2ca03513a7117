"""What a front-end child gives up for good before it reads a stranger's first byte.

Standard library only; must never import a decoder.

Two layers of the kernel, each worth having without the other. Landlock without a single rule: no file is
opened, no TCP connection made, no signal sent to another process. And a seccomp filter that lists what
decoding needs and denies the rest: a process that was taken over can read what it was handed, compute, and
send on the two sockets it has. Neither comes off again. Where the kernel, a container or the machine lacks
one, the other stands alone, and the parent says so.

Seccomp goes through libseccomp: it knows every machine's numbers and is there wherever systemd is. Its own
Python binding is not on PyPI, and what is there was left (November 2026): pyseccomp has had no release since
January 2021, seccompy and landlockpy are two months old, `landlock` has only development releases that know
neither networks nor signals. For Landlock there is no C library. Six functions of the one and two system
calls of the other are less than any of these.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import termios
from dataclasses import dataclass
from typing import Any, NamedTuple

LIBSECCOMP = "libseccomp.so.2"
"""By its name, not through ctypes.util: that would start a compiler to look for it."""

ALLOWED = (
    # What it was handed is read, and sent on; there is no write among them.
    *("read", "readv", "pread64", "preadv", "preadv2", "recvmsg", "recvfrom", "sendmsg", "sendto"),
    *("poll", "ppoll", "ppoll_time64", "close", "getsockname", "getsockopt"),
    # os.fstat, by the names it has in various C libraries. The last three also tell of a path whether it is
    # there, its size and its times, never what it holds.
    *("fstat", "fstat64", "newfstatat", "fstatat64", "statx"),
    *("brk", "munmap", "mremap", "madvise"),
    *("futex", "futex_time64", "set_robust_list", "rseq", "gettid", "getpid", "membarrier"),
    *("sched_yield", "sched_getaffinity", "getcpu", "sysinfo", "getrandom"),
    *("clock_gettime", "clock_gettime64", "clock_getres", "clock_getres_time64", "gettimeofday", "time"),
    *("clock_nanosleep", "clock_nanosleep_time64", "nanosleep", "getrusage", "getrlimit", "ugetrlimit"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigreturn", "sigaltstack", "restart_syscall"),
    *("exit", "exit_group"),
)
"""System calls that decoding, features, VAD and Python's own end make; names that a machine does not have are
passed over."""

RIGHTS_SINCE = {1: 13, 2: 14, 3: 15, 5: 16, 9: 17}
"""Landlock's version -> how many of its file system rights there are, lowest bits first."""
NETWORK_SINCE, TCP = 4, 0b11
"""Binding and connecting."""
SCOPES_SINCE, SCOPES = 6, 0b11
"""Abstract Unix sockets and signals of processes outside."""

_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x2008_0522
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
"""The same on every architecture but Alpha."""
_LANDLOCK_VERSION = 1
_ALLOW, _ERRNO = 0x7FFF_0000, 0x0005_0000
_ALL_THREADS = 4
"""SCMP_FLTATR_CTL_TSYNC"""
_EQUAL, _MASKED_EQUAL = 4, 7
_UNKNOWN = -1
"""What libseccomp says of a name that this machine does not have."""
_CLONE_THREAD = 0x1_0000


@dataclass(frozen=True, slots=True)
class Jail:
    """What holds a child from now on."""

    layers: tuple[str, ...]
    """In force, such as `landlock 7` (its version) and `seccomp`."""
    missing: tuple[str, ...]
    """Not in force, each with the reason."""


OPEN = Jail(layers=(), missing=("a jail: it is switched off in the settings",))


class _Ruleset(ctypes.Structure):
    """`struct landlock_ruleset_attr`, what is denied where no rule allows it."""

    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scopes", ctypes.c_uint64),
    )


class _Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp`, a condition on one argument."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("how", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


class _Rule(NamedTuple):
    """A system call, what must hold of its arguments, and what becomes of it then."""

    name: str
    comparisons: tuple[_Comparison, ...] = ()
    action: int = _ALLOW


def give_up_powers() -> None:
    """Be an ordinary process for good: root's capabilities would raise every limit again."""
    libc = ctypes.CDLL(None)
    libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)())
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def lock_in() -> Jail:
    """Close the jail around this process, which has given up its powers and has but one thread.

    Never fails: what cannot be had is said.
    """
    with contextlib.suppress(OSError):
        # Loaded now and found again below: without files there is no loading.
        ctypes.CDLL(LIBSECCOMP)
    layers, missing = [], []
    # In this order: the filter does not list what Landlock is asked with.
    for name, close in (("landlock", restrict_files), ("seccomp", filter_calls)):
        try:
            layers.append(close())
        except OSError as error:
            missing.append(f"{name}: {error.strerror or error}")
    return Jail(tuple(layers), tuple(missing))


def restrict_files() -> str:
    """Give up files, TCP, and signals to others, as far as this kernel's Landlock goes. Raises OSError."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    version = _done(
        call(ctypes.c_long(_LANDLOCK_CREATE_RULESET), None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    )
    rights = max(count for since, count in RIGHTS_SINCE.items() if since <= version)
    denied = _Ruleset(
        files=(1 << rights) - 1,
        network=TCP if version >= NETWORK_SINCE else 0,
        scopes=SCOPES if version >= SCOPES_SINCE else 0,
    )
    size = ctypes.c_size_t(ctypes.sizeof(denied))
    ruleset = _done(call(ctypes.c_long(_LANDLOCK_CREATE_RULESET), ctypes.byref(denied), size, 0))
    try:
        _done(call(ctypes.c_long(_LANDLOCK_RESTRICT_SELF), ctypes.c_long(ruleset), 0))
    finally:
        os.close(ruleset)
    return f"landlock {version}"


def filter_calls() -> str:
    """Give up every system call but those that decoding makes. Raises OSError."""
    library = ctypes.CDLL(LIBSECCOMP)
    library.seccomp_init.restype = ctypes.c_void_p
    # An error and no signal: libraries ask for much that they can do without.
    context = ctypes.c_void_p(library.seccomp_init(_ERRNO | errno.EPERM))
    if not context:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    try:
        _agreed(library.seccomp_attr_set(context, _ALL_THREADS, 1))
        for rule in (*map(_Rule, ALLOWED), *_rules()):
            number = library.seccomp_syscall_resolve_name(rule.name.encode())
            if number != _UNKNOWN:
                count = len(rule.comparisons)
                compared = (_Comparison * count)(*rule.comparisons)
                _agreed(library.seccomp_rule_add_array(context, rule.action, number, count, compared))
        _agreed(library.seccomp_load(context))
    finally:
        library.seccomp_release(context)
    return "seccomp"


def _rules() -> tuple[_Rule, ...]:
    anonymous = _Comparison(3, _MASKED_EQUAL, mmap.MAP_ANONYMOUS, mmap.MAP_ANONYMOUS)
    no_code = _Comparison(2, _MASKED_EQUAL, mmap.PROT_EXEC, 0)
    return (
        # Memory, and never a file: a mapped one could be written past every limit. Nor new code in it.
        _Rule("mmap", (anonymous, no_code)),
        _Rule("mmap2", (anonymous, no_code)),
        _Rule("mprotect", (no_code,)),
        # Threads, which libavfilter starts for a graph; no processes. The newer call hides its flags from a
        # filter: C libraries that do not find it use the older one.
        _Rule("clone", (_Comparison(0, _MASKED_EQUAL, _CLONE_THREAD, _CLONE_THREAD),)),
        _Rule("clone3", action=_ERRNO | errno.ENOSYS),
        # Its own limits, downwards; not the daemon's, who is of the same user.
        _Rule("prlimit64", (_Comparison(0, _EQUAL, 0),)),
        # abort() signals itself.
        _Rule("tgkill", (_Comparison(0, _EQUAL, os.getpid()),)),
        # Blocking or not. Others make the kernel send signals to whom one likes.
        _Rule("ioctl", (_Comparison(1, _EQUAL, termios.FIONBIO),)),
    )


def _done(result: Any) -> int:
    """Give what a system call gave; OSError where it failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)


def _agreed(result: int) -> None:
    """OSError for what libseccomp answers in place of 0."""
    if result:
        raise OSError(-result, os.strerror(-result))
