"""What a front-end child that was taken over can still do: read its recording, compute, answer."""

import asyncio
import ctypes
import errno
import fcntl
import logging
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from harness.energy_vad import speech
from harness.pools import drain, holding, memfd, run_program, running, take_over

from sensevoiced.frontend import child as child_module
from sensevoiced.frontend import jail
from sensevoiced.jobs import JobError, Options
from tools.fuzz.samples import encoded

FILES = {
    "open a file": "os.open('/etc/passwd', os.O_RDONLY)",
    "make a file": "os.open('/tmp', os.O_TMPFILE | os.O_RDWR)",
    "list a folder": "os.listdir('/')",
    "look at the daemon": "os.open(f'/proc/{parent}/status', os.O_RDONLY)",
}
"""Which Landlock alone denies too."""
SIGNALS = {
    "signal the daemon": "os.kill(parent, 0)",
    "signal the daemon's thread": "checked(libc.tgkill(parent, parent, 0))",
}
"""Which Landlock alone denies since version 6."""
CALLS = {
    # A memfd is in no folder, so Landlock does not mind.
    "reopen the recording for writing": "os.open(f'/proc/self/fd/{recording}', os.O_RDWR)",
    "queue a signal": "checked(libc.sigqueue(parent, 0, None))",
    "hold the daemon": "os.pidfd_open(parent)",
    "own a socket's signals": "fcntl.fcntl(sock, fcntl.F_SETOWN, parent)",
    "own them by another way": "fcntl.ioctl(sock, 0x8901, struct.pack('i', parent))",
    "change the daemon's limits": "resource.prlimit(parent, resource.RLIMIT_NOFILE)",
    "look into the daemon": "checked(libc.ptrace(3, parent, None, None))",
    "read the daemon's memory": "checked(libc.process_vm_readv(parent, None, 0, None, 0, 0))",
    "become another program": "checked(libc.execve(b'/nonexistent', None, None))",
    "start a process": "if not (pid := os.fork()):\n    os._exit(0)\nos.waitpid(pid, 0)",
    "make a TCP socket": "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "make a UDP socket": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "make a Unix socket": "socket.socket(socket.AF_UNIX)",
    "make a pair of sockets": "socket.socketpair()",
    "connect a socket": "sock.connect('\\0nobody')",
    "listen": "sock.listen()",
    "double a descriptor": "os.dup(recording)",
    "make a memfd": "os.memfd_create('x')",
    "make a pipe": "os.pipe()",
    "write to the recording": "os.pwrite(recording, b'x', 0)",
    "cut the recording": "os.ftruncate(recording, 1)",
    "map the recording": "mmap.mmap(recording, 0)",
    "map new code": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    "make data code": (
        "page = mmap.mmap(-1, 4096)\n"
        "at = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
        "checked(libc.mprotect(ctypes.c_void_p(at), 4096, mmap.PROT_READ | mmap.PROT_EXEC))"
    ),
    "write to a standard stream": "os.write(1, b'x')",
    "remove a file": "os.unlink('/nonexistent')",
    "rename a file": "os.rename('/nonexistent', '/nonexistent2')",
    "read a link": "os.readlink('/proc/self/exe')",
    "change a mode": "os.chmod('/nonexistent', 0)",
    "move to a folder": "os.chdir('/')",
    "use io_uring": "checked(libc.syscall(ctypes.c_long(425), 1, None))",
    "rename itself": "checked(libc.prctl(15, b'x', 0, 0, 0))",
}
"""Which the filter denies."""
DENIED = ("EPERM", "EACCES")


@pytest.fixture(scope="module")
def libseccomp():
    """Skip what needs the library where it is not installed."""
    try:
        ctypes.CDLL(jail.LIBSECCOMP)
    except OSError:
        pytest.skip("libseccomp is not installed (Debian: libseccomp2)")


@pytest.fixture(scope="module")
def landlock():
    """The version of Landlock; skips where the kernel has none."""
    program = "from sensevoiced.frontend import jail; jail.give_up_powers(); print(jail.restrict_files())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no Landlock here: {done.stderr.splitlines()[-1]}")
    return int(done.stdout.split()[1])


async def attempt(pool, code):
    """Give the name of the error that an attempt fails with, or `done`."""
    return await run_program(
        pool,
        "try:\n"
        + textwrap.indent(code, "    ")
        + "\n    answer = 'done'\n"
        + "except OSError as error:\n    answer = errno.errorcode[error.errno]\n",
    )


def results(models, attempts, **limits):
    """Give each attempt's outcome, in one child that survives them all."""

    async def scenario():
        async with running(models, **limits) as pool:
            found = {name: await attempt(pool, code) for name, code in attempts.items()}
            assert pool.snapshot().started == 1
            assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label="after"))) == 1
        return found

    return asyncio.run(scenario())


def test_a_child_that_was_taken_over_gets_nowhere(models, libseccomp, monkeypatch):
    """No file, socket, process, signal or write; each attempt fails, and the child still serves."""
    take_over(monkeypatch)
    found = results(models, FILES | SIGNALS | CALLS)
    assert {name: result for name, result in found.items() if result not in DENIED} == {}


def test_an_ordinary_process_would_get_there(models, monkeypatch):
    """Without the jail the same attempts are not denied: it is the jail that denies them."""
    take_over(monkeypatch)
    found = results(models, FILES | SIGNALS | CALLS, jail=False)
    assert {name for name, result in found.items() if result in DENIED} == set()
    assert found["write to the recording"] == "EFBIG"


def test_the_filter_alone_denies_as_much(models, libseccomp, monkeypatch):
    """Where the kernel has no Landlock, nothing of it is missed."""
    take_over(monkeypatch, "restrict_files")
    found = results(models, FILES | SIGNALS | CALLS)
    assert {name: result for name, result in found.items() if result not in DENIED} == {}


def test_landlock_alone_denies_files_and_signals(models, landlock, monkeypatch):
    """Where there is no filter, no file can be opened, nor the daemon be signalled (since version 6)."""
    take_over(monkeypatch, "filter_calls")
    found = results(models, FILES | (SIGNALS if landlock >= 6 else {}))
    assert {name: result for name, result in found.items() if result not in DENIED} == {}


def test_landlock_alone_denies_tcp(models, landlock, monkeypatch):
    """Where there is no filter, no TCP connection is made (since version 4), as is without the jail."""
    if landlock < 4:
        pytest.skip("this Landlock does not know networks")
    take_over(monkeypatch, "filter_calls")
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = {"connect": f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)"}
        assert results(models, connect) == {"connect": "EACCES"}
        assert results(models, connect, jail=False) == {"connect": "done"}


@pytest.mark.parametrize(
    ("lacking", "layers"),
    [
        ((), {"landlock", "seccomp"}),
        (("restrict_files",), {"seccomp"}),
        (("filter_calls",), {"landlock"}),
        (("restrict_files", "filter_calls"), set()),
    ],
)
def test_what_a_kernel_lacks_is_said_and_costs_no_recording(
    models, libseccomp, landlock, monkeypatch, caplog, *, lacking, layers
):
    """Status and log name the layers in force and, with the reason, those that are not; decoding goes on."""
    take_over(monkeypatch, *lacking)

    async def scenario():
        with caplog.at_level(logging.INFO):
            async with running(models, children=2, max_children=2) as pool:
                assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label="one"))) == 1
                return pool.snapshot().jail

    found = asyncio.run(scenario())
    assert {layer.split()[0] for layer in found} == layers
    lines = [record for record in caplog.records if record.name == "sensevoiced.frontend.pool"]
    assert lines[0].getMessage() == f"front-end children are closed in by {' and '.join(found) or 'nothing'}"
    assert [line.levelname for line in lines[1:]] == ["WARNING"] * len(lacking)
    assert all("Function not implemented" in line.getMessage() for line in lines[1:])


def test_the_switch_leaves_the_jail_open_and_says_so(models, caplog):
    """`frontend.jail = false` is warned of, and shown as no jail."""

    async def scenario():
        async with running(models, jail=False) as pool:
            return pool.snapshot().jail

    assert asyncio.run(scenario()) == ()
    assert "go without a jail: it is switched off in the settings" in caplog.text


def test_every_format_is_decoded_in_the_jail_as_outside(models, libseccomp):
    """All that this machine can encode gives the same utterances, byte for byte, in the jail and without."""
    recordings = encoded(speech(0.8, 1.2, 0.8))

    async def scenario(**limits):
        async with running(models, **limits) as pool:
            return {
                (name, by): [
                    (utterance.start_s, utterance.end_s, utterance.features)
                    for utterance in await drain(pool.utterances(by(data), Options(), label=name))
                ]
                for name, data in recordings.items()
                for by in (holding, piped)
            }

    inside, outside = asyncio.run(scenario()), asyncio.run(scenario(jail=False))
    assert [key for key in inside if inside[key] != outside[key]] == []
    assert {name for (name, _), found in inside.items() if found} == set(recordings)


def test_one_child_decodes_any_number_of_recordings_in_the_jail(models, libseccomp):
    """Good and broken ones in turn: nothing that has to be made anew each time runs out."""
    whole = encoded(speech(0.3))
    recordings = [whole["sf-wav-pcm_16"], whole["sf-flac-pcm_16"], whole["av-matroska-flac"]]
    recordings += [data[: len(data) // 2] for data in recordings] + [b"nothing", whole["sf-wav-pcm_16"][:44]]

    async def scenario():
        async with running(models) as pool:
            outcomes = []
            for number in range(400):
                data = recordings[number % len(recordings)]
                job = pool.utterances(holding(data), Options(), label=str(number))
                try:
                    outcomes.append([utterance.frames for utterance in await drain(job)])
                except JobError as error:
                    outcomes.append(error.message)
            assert (pool.snapshot().started, pool.snapshot().crashed) == (1, 0)
        return outcomes

    outcomes = asyncio.run(scenario())
    assert outcomes == outcomes[: len(recordings)] * (400 // len(recordings))
    assert "memory" not in str(outcomes)


def piped(data):
    """Give the reading end of a pipe that holds these bytes."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, len(data))
    assert os.write(writer, data) == len(data)
    os.close(writer)
    return reader


def test_a_defect_in_the_jail_is_told_in_the_childs_own_words(models, libseccomp, monkeypatch, caplog):
    """An error that nobody expects still reaches the log, though the sources cannot be read there."""
    take_over(monkeypatch)

    async def scenario():
        async with running(models) as pool:
            assert "exit status 1" in await run_program(pool, "raise RuntimeError('unforeseen')")
            assert len(await drain(pool.utterances(memfd(speech(1.0)), Options(), label="next"))) == 1

    asyncio.run(scenario())
    assert "RuntimeError < <module>:2 < stream" in caplog.text


def test_an_aborting_decoder_still_dies_of_its_signal(models, libseccomp, monkeypatch):
    """A C library's abort() ends the child, and its client is told which signal it was."""
    take_over(monkeypatch)

    async def scenario():
        async with running(models) as pool:
            return await run_program(pool, "os.abort()")

    assert "SIGABRT" in asyncio.run(scenario())


def test_threads_can_be_started_in_the_jail(models, libseccomp, monkeypatch):
    """Libavfilter starts one or two for a graph; they are in the jail as well."""
    take_over(monkeypatch)
    program = """
def work():
    global answer
    try:
        os.open("/etc/passwd", os.O_RDONLY)
        answer = "opened"
    except PermissionError as error:
        answer = errno.errorcode[error.errno]
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""

    async def scenario():
        async with running(models) as pool:
            return await run_program(pool, program)

    assert asyncio.run(scenario()) == "EPERM"


def test_nobody_raises_his_limits_again(models, monkeypatch):
    """Not even root's child, jail or no jail: its capabilities are gone."""
    take_over(monkeypatch)
    program = """
answer = ""
for name in ("RLIMIT_FSIZE", "RLIMIT_AS", "RLIMIT_NOFILE", "RLIMIT_CORE"):
    try:
        resource.setrlimit(getattr(resource, name), (resource.RLIM_INFINITY,) * 2)
        answer += name
    except ValueError as error:
        answer += "."
"""

    async def scenario():
        async with running(models, jail=False) as pool:
            return await run_program(pool, program)

    assert asyncio.run(scenario()) == "...."


def test_a_jail_that_leaves_too_little_is_noticed_before_the_first_recording(models, libseccomp, monkeypatch):
    """A filter without a system call that decoding needs fails the start, with a sentence."""
    from sensevoiced.config import ConfigError

    program = (
        "import sys; from sensevoiced.frontend import jail, worker;"
        "jail.ALLOWED = tuple(name for name in jail.ALLOWED if not name.startswith('pread'));"
        "worker.main()"
    )
    popen = subprocess.Popen
    monkeypatch.setattr(
        child_module.subprocess,
        "Popen",
        lambda command, **options: popen([sys.executable, "-c", program, command[-1]], **options),
    )

    async def scenario():
        async with running(models):
            pytest.fail("it started")

    with pytest.raises(ConfigError, match="a rehearsed recording was not decoded"):
        asyncio.run(scenario())


def test_what_libseccomp_refuses_is_an_error():
    """Its negative error numbers become errors with their words."""
    with pytest.raises(PermissionError, match=os.strerror(errno.EACCES)):
        jail._agreed(-errno.EACCES)


def held_by(pid):
    """Give where a process's descriptors lead, and how many threads it has."""
    process = Path(f"/proc/{pid}")
    links = sorted(str(link.readlink()) for link in (process / "fd").iterdir())
    return links, len(list((process / "task").iterdir()))


def test_a_child_holds_only_what_it_should(models, monkeypatch):
    """Standard streams that lead nowhere, and one socket: not even what the daemon left inheritable."""
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    spawned, spawn = [], os.posix_spawn

    def note(*args, **kwargs):
        spawned.append(spawn(*args, **kwargs))
        return spawned[-1]

    monkeypatch.setattr(os, "posix_spawn", note)

    async def scenario():
        async with running(models) as pool:
            (child,) = pool.snapshot().children
            return child.pid, *held_by(child.pid)

    try:
        pid, held, threads = asyncio.run(scenario())
    finally:
        os.close(reader)
        os.close(writer)
    assert held[:3] == ["/dev/null"] * 3
    assert len(held) == 4
    assert held[3].startswith("socket:")
    assert threads == 1
    # Not by fork and close, where a close that hangs would hold the daemon.
    assert spawned == [pid]
