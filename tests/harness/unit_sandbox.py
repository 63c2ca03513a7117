"""Runs a command under what a unit says: `python unit_sandbox.py UNIT COMMAND...`.

As far as a process can do that to itself. PID 1 does more (devices, /proc, control groups); what is here are
the lines that break programs: system calls, address families, namespaces, capabilities, limits, and a
read-only file system without a network. What cannot be had without privileges is left out, and what is in
force is said on standard error.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

LIBSECCOMP = "libseccomp.so.2"
_ALLOW, _ERRNO = 0x7FFF_0000, 0x0005_0000
_NOT_EQUAL, _MASKED_EQUAL = 1, 7
_AF_UNIX = 1
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_LAST_CAPABILITY = 63
_NEW_NAMESPACES = {
    "CLONE_NEWNS": 0x0002_0000,
    "CLONE_NEWCGROUP": 0x0200_0000,
    "CLONE_NEWUTS": 0x0400_0000,
    "CLONE_NEWIPC": 0x0800_0000,
    "CLONE_NEWUSER": 0x1000_0000,
    "CLONE_NEWPID": 0x2000_0000,
    "CLONE_NEWNET": 0x4000_0000,
}
_MS_BIND, _MS_REC_PRIVATE = 0x1000, 0x4000 | 0x4_0000
_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY = 1

libc = ctypes.CDLL(None, use_errno=True)


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def directives(unit):
    """The lines of [Service]; a name may come more than once."""
    lines = Path(unit).read_text().partition("[Service]")[2].partition("[Install]")[0].splitlines()
    return [tuple(line.split("=", 1)) for line in lines if "=" in line and not line.startswith("#")]


def system_calls(filters):
    """The names that the lines of SystemCallFilter= leave allowed; each adds some, or takes some away."""
    shown = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True)
    sets, current = {}, []
    for line in shown.stdout.splitlines():
        if line.startswith("@"):
            current = sets.setdefault(line.strip(), [])
        elif line.startswith("    ") and not line.strip().startswith("#"):
            current.append(line.strip())

    def spread(name):
        return set().union(*map(spread, sets[name])) if name.startswith("@") else {name}

    allowed = spread("@default")
    for value in filters:
        named = set().union(*map(spread, value.removeprefix("~").split()))
        allowed = allowed - named if value.startswith("~") else allowed | named
    return allowed


class Filter:
    """A seccomp filter, through the library that systemd itself uses."""

    def __init__(self, default):
        self._lib = ctypes.CDLL(LIBSECCOMP)
        self._lib.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._lib.seccomp_init(ctypes.c_uint32(default)))

    def add(self, action, name, *conditions):
        """A rule; a system call that this machine does not have is passed over."""
        number = self._lib.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return
        array = (_Comparison * len(conditions))(*conditions)
        done = self._lib.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(action), number, len(conditions), array
        )
        assert done in (0, -errno.EACCES), (name, done)  # EACCES: the rule says what the default says

    def load(self):
        assert self._lib.seccomp_load(self._context) == 0


def restrict(said):
    """Put the seccomp filters in force that the lines amount to."""
    filters = []
    if any(name == "SystemCallFilter" for name, _ in said):
        error = getattr(errno, dict(said).get("SystemCallErrorNumber", "EPERM"))
        listed = Filter(_ERRNO | error)
        for name in system_calls([value for key, value in said if key == "SystemCallFilter"]):
            listed.add(_ALLOW, name)
        filters.append(listed)
    if ("RestrictAddressFamilies", "AF_UNIX") in said:
        families = Filter(_ALLOW)
        families.add(_ERRNO | errno.EAFNOSUPPORT, "socket", _Comparison(0, _NOT_EQUAL, _AF_UNIX, 0))
        filters.append(families)
    if ("RestrictNamespaces", "yes") in said:
        namespaces = Filter(_ALLOW)
        namespaces.add(
            _ERRNO | errno.ENOSYS, "clone3"
        )  # its flags cannot be looked at; glibc then takes clone
        namespaces.add(_ERRNO | errno.EPERM, "setns")
        for flag in _NEW_NAMESPACES.values():
            for name in ("clone", "unshare"):
                namespaces.add(_ERRNO | errno.EPERM, name, _Comparison(0, _MASKED_EQUAL, flag, flag))
        filters.append(namespaces)
    for one in filters:
        one.load()


def seclude(said):
    """A file system that is read-only but for CACHE_DIRECTORY, and no network; False where we may not."""
    wanted = _NEW_NAMESPACES["CLONE_NEWNS"] | _NEW_NAMESPACES["CLONE_NEWIPC"]
    if ("PrivateNetwork", "yes") in said:
        wanted |= _NEW_NAMESPACES["CLONE_NEWNET"]
    if ("ProtectSystem", "strict") not in said or libc.unshare(wanted) != 0:
        return False
    cache = os.environ.get("CACHE_DIRECTORY", "/tmp").encode()
    return (
        libc.mount(None, b"/", None, _MS_REC_PRIVATE, None) == 0
        and libc.mount(cache, cache, None, _MS_BIND, None) == 0
        and _set_attributes(b"/", _AT_RECURSIVE, _MOUNT_ATTR_RDONLY, 0)
        and _set_attributes(cache, 0, 0, _MOUNT_ATTR_RDONLY)
    )


def _set_attributes(path, flags, to_set, to_clear):
    """Whether mount_setattr(2), of Linux 5.12, did so."""
    attributes = (ctypes.c_uint64 * 4)(to_set, to_clear, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    return libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, path, flags, attributes, size) == 0


def main():
    """Apply, say what is in force, and become the command."""
    unit, *command = sys.argv[1:]
    said = directives(unit)
    given = dict(said)
    secluded = seclude(said)
    for number in range(_LAST_CAPABILITY if given.get("CapabilityBoundingSet") == "" else 0):
        libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    if given.get("NoNewPrivileges") == "yes":
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if "LimitCORE" in given:
        resource.setrlimit(resource.RLIMIT_CORE, (int(given["LimitCORE"]), int(given["LimitCORE"])))
    os.umask(int(given.get("UMask", "0022"), 8))
    os.environ.update(word.split("=", 1) for word in shlex.split(given.get("Environment", "")))
    restrict(said)
    sys.stderr.write(f"in force: seccomp, no capabilities{', secluded' if secluded else ''}\n")
    sys.stderr.flush()
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
