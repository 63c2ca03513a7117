"""The daemon whose children really decode and whose engine costs nothing, its canary, and how to ask it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path

from harness.daemon import Canary, DaemonProcess, wait_until
from harness.daemon import one_for_all as fixtures
from harness.demo import SONG, SONG_S, sample, wav
from harness.wire_client import memfd, texts

from svctl.wire import MAX_AUDIO_BYTES

PROGRAM = Path(__file__).with_name("decoding_daemon.py")
CHILDREN = 2
SETTINGS = f"[frontend]\nchildren = {CHILDREN}\nmax_children = {CHILDREN}\n"
"""A pool that neither grows nor shrinks: what is missing from it was not replaced."""
LOOK_EVERY_S = 0.01


class DecodingDaemon(DaemonProcess):
    """Answers a recording's utterances with checksums of their features (see decoding_daemon.py)."""

    def __init__(self, folder, *, settings=SETTINGS, **options):
        command = [sys.executable, str(PROGRAM), str(Path(folder) / "control")]
        super().__init__(folder, settings=settings, command=command, **options)

    def children(self):
        """The front end's processes, as the daemon shows them."""
        return self.status()["memory"]["children"]

    def counters(self):
        """How many children ended in a recording, and how many hung and were killed."""
        found = self.status()["frontend"]
        return found["crashed"], found["timeouts"]

    @contextlib.contextmanager
    def held(self, gate):
        """Let every batch wait at `gate` until the end of the block, and with it whoever decodes."""
        hold = self.control / "hold"
        hold.write_text(gate)
        try:
            yield
        finally:
            hold.unlink()
            self.open_gate(gate)


class DecodingCanary(Canary):
    """The canary: 3 s of speech keep their answer, and all children are there and free."""

    def __init__(self, daemon, *, children=CHILDREN):
        self._song = None
        self._children = children
        super().__init__(daemon)
        self._child_descriptors = max(self._descriptors_of_children())

    def _sing(self):
        with self.daemon.client(timeout_s=self.ANSWER_S) as client:
            heard = ask(client, 1, wav(sample(SONG)[: int(SONG_S * 16_000)]))
        assert heard[-1]["type"] == "done", heard
        song = (texts(heard), heard[-1]["duration"])
        assert song[0]
        assert song[1] == SONG_S
        if self._song is None:
            self._song = song
        assert song == self._song

    def check(self, rss_bytes=Canary.RSS_BYTES):
        """As every canary's; besides no child is missing, at work, or holds what it was handed."""
        super().check(rss_bytes)
        wait_until(self._pool_is_whole, "a pool of its size, all of it free")
        wait_until(
            lambda: max(self._descriptors_of_children()) <= self._child_descriptors,
            "the children's descriptors back at baseline",
        )

    def _pool_is_whole(self):
        children = self.daemon.children()
        return len(children) == self._children and not any(child["busy"] for child in children)

    def _descriptors_of_children(self):
        counts = [0]
        for child in self.daemon.children():
            with contextlib.suppress(FileNotFoundError, PermissionError):
                # PermissionError: a child may be closed to all but a root that has every capability.
                counts.append(len(list(Path(f"/proc/{child['pid']}/fd").iterdir())))
        return counts


def one_for_all(settings=SETTINGS):
    """Two fixtures, as of harness.daemon, for daemons that really decode."""
    return fixtures(DecodingDaemon, DecodingCanary, settings)


class ChildMemory:
    """In a `with` block: the most memory that any one of a daemon's children has had in it."""

    def __init__(self, daemon):
        self._daemon = daemon
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.peak_bytes = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        self._see()

    @property
    def peak_mib(self):
        return self.peak_bytes / 2**20

    def _look(self):
        while not self._over.wait(LOOK_EVERY_S):
            self._see()

    def _see(self):
        for pid in children_of(self._daemon.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                self.peak_bytes = max(self.peak_bytes, pages * os.sysconf("SC_PAGE_SIZE"))


def children_of(pid):
    """Process ids of the children that a process's main thread has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ask(client, request, content, **fields):
    """Send a recording and wait for all of the answer; its descriptor is closed at once, as a client may."""
    fd = memfd(content)
    client.transcribe(request, fd, **fields)
    os.close(fd)
    return client.events(request)


def upload(client, request, parts, **fields):
    """Stream a recording that comes in parts (bytes of any length) and wait for all of the answer."""
    client.transcribe(request, source="stream", **fields)
    for part in parts:
        for at in range(0, len(part), MAX_AUDIO_BYTES):
            client.send({"type": "audio", "id": request, "data": part[at : at + MAX_AUDIO_BYTES]})
    client.send({"type": "end", "id": request})
    return client.events(request)


def timed(work, *args, **fields):
    """What a call gives, and the seconds it took."""
    began_s = time.perf_counter()
    found = work(*args, **fields)
    return found, time.perf_counter() - began_s


def refusal(events):
    """The code of the one error that is the whole of an answer, told in one sentence."""
    (error,) = events
    assert error["type"] == "error", error
    assert error["message"].endswith(".")
    assert "\n" not in error["message"]
    return error["code"]


def outcome(events):
    """What became of a recording, in a word or two."""
    last = events[-1]
    if last["type"] == "error":
        return last["code"]
    return f"{last['duration']:.1f} s{' cut' if last['truncated'] else ''}"
