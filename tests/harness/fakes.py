"""A front end and an engine that do as a script says, for tests of everything around them.

A source is a script of JSON lines. Each is an utterance, {"say": text, "seconds": s}, that may hold things up
or break them: `decode_gate` and `engine_gate` name a file that has to exist in the control folder before it
is passed; `fail` and `engine_fail` name an error code; `crash` raises what no part may raise; `spawn`
recognises what a child process sees of its surroundings; `block_loop` names a gate before which the event
loop itself hangs. An engine that works writes what it does to `engine.log` in the control folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from sensevoiced.jobs import Decoded, EngineInfo, JobError, Recognition, Utterance, Word

POLL_S = 0.002


def wait_for_gate(control, name):
    """Block until the gate file is there."""
    gate = Path(control) / name
    while not gate.exists():
        time.sleep(POLL_S)


def block_the_loop(control, name):
    """Stand before a gate on the event loop, as a defect would that blocks it."""
    with (Path(control) / "engine.log").open("a") as file:
        file.write(f"loop at {name}\n")
    wait_for_gate(control, name)


class FakeEngine:
    def __init__(self, control):
        self.control = Path(control)
        self.info = EngineInfo(
            name="fake", model="fake", device="cpu", precision="float32", parameters=1, feature_dim=1
        )

    def warm_up(self):
        self._note("warm_up")
        if "FAKE_WARM_UP_GATE" in os.environ:
            wait_for_gate(self.control, os.environ["FAKE_WARM_UP_GATE"])
        self._note("warmed")

    def run(self, batch):
        self._note(f"batch {len(batch)}")
        results = []
        for utterance, options in batch:
            line = json.loads(utterance.features)
            if "engine_gate" in line:
                self._note(f"at {line['engine_gate']}")
                wait_for_gate(self.control, line["engine_gate"])
            if "engine_fail" in line:
                raise JobError(line["engine_fail"], "As the script says.")
            if "crash" in line:
                raise RuntimeError("as the script says")
            if "spawn" in line:
                line = {"say": surroundings_of_a_child()}
            results.append(recognised(line, options))
        return results

    def device_memory_bytes(self):
        return None

    def close(self):
        self._note("closed")

    def _note(self, text):
        with (self.control / "engine.log").open("a") as file:
            file.write(text + "\n")


def surroundings_of_a_child():
    """JSON of environment and open files of a process started here, with nothing closed on purpose."""
    program = (
        "import json, os; folder = '/proc/self/fd/'; names = [folder + n for n in os.listdir(folder)];"
        "files = [os.readlink(name) for name in names if os.path.lexists(name)];"
        "print(json.dumps({'environ': list(os.environ), 'files': files}))"
    )
    return subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, close_fds=False, check=True
    ).stdout.strip()


def recognised(line, options):
    """What the fake engine makes of a line."""
    language = "en" if options.language == "auto" else options.language
    words = line["say"].split()
    step = line.get("seconds", 1.0) / max(len(words), 1)
    return Recognition(
        language=language,
        language_score=0.9876543219,
        emotion="NEUTRAL",
        emotion_score=0.5,
        event="Speech",
        event_score=0.75,
        itn=options.itn,
        text=line["say"],
        raw=f"<|{language}|><|NEUTRAL|><|Speech|><|{'withitn' if options.itn else 'woitn'}|>{line['say']}",
        words=tuple(Word(word, n * step, (n + 1) * step) for n, word in enumerate(words)),
    )


class FakeRun:
    def __init__(self, source_fd, control):
        self._fd = source_fd
        self._control = control
        self._queue = asyncio.Queue(maxsize=2)
        self._loop = asyncio.get_running_loop()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._started = False
        self._ended = False
        self.decoded = None
        self.decoded_s = 0.0
        self.waits_for = ""
        self.begun_s = None

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self._ended:
            raise StopAsyncIteration
        if not self._started:
            self._started = True
            self.begun_s = time.monotonic()
            self._thread.start()
        item = await self._queue.get()
        if isinstance(item, Utterance):
            self.decoded_s = item.end_s
            if b"block_loop" in item.features:
                block_the_loop(self._control, json.loads(item.features)["block_loop"])
            return item
        self._ended = True
        if isinstance(item, Exception):
            raise item
        self.decoded = item
        raise StopAsyncIteration

    async def aclose(self):
        self._stopped.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        if not self._started:
            os.close(self._fd)
        self._started = True

    def _put(self, item):
        future = asyncio.run_coroutine_threadsafe(self._queue.put(item), self._loop)
        while not self._stopped.is_set():
            try:
                return future.result(timeout=0.01)
            except TimeoutError:
                continue
        future.cancel()
        raise EOFError

    def _gate(self, name):
        gate = Path(self._control) / name
        while not gate.exists() and not self._stopped.is_set():
            time.sleep(POLL_S)

    def _lines(self):
        """Lines of the source: a file is read by position, as its offset is shared with the client."""
        offset, rest = 0, b""
        while not self._stopped.is_set():
            try:
                block = os.pread(self._fd, 4096, offset)
            except OSError:
                block = os.read(self._fd, 4096)
            if not block:
                break
            offset += len(block)
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
        if rest:
            yield rest

    def _read(self):
        at_s, index = 0.0, 0
        try:
            for text in self._lines():
                try:
                    line = json.loads(text)
                    seconds = float(line.get("seconds", 1.0))
                except (ValueError, AttributeError):
                    self._put(JobError("bad_input", "This is no script."))
                    return
                if "decode_gate" in line:
                    self._gate(line["decode_gate"])
                if "fail" in line:
                    self._put(JobError(line["fail"], "As the script says."))
                    return
                frames = max(1, round(seconds / 0.06))
                self._put(Utterance(index, at_s, at_s + seconds, json.dumps(line).encode(), frames, 1))
                at_s, index = at_s + seconds, index + 1
            if index == 0:
                self._put(JobError("bad_input", "There is no audio in this."))
            else:
                self._put(Decoded(at_s, truncated=False, decode_s=0.001, features_s=0.002, vad_s=0.003))
        except (EOFError, RuntimeError):
            pass
        finally:
            os.close(self._fd)


class FakeFrontend:
    def __init__(self, control):
        self._control = control

    async def start(self):
        if "FAKE_FRONTEND_FAILS" in os.environ:
            raise JobError("internal", "The fake front end does not start.")

    async def close(self):
        pass

    def utterances(self, source_fd, options, *, label, owner=0):
        return FakeRun(source_fd, self._control)

    def snapshot(self):
        return SimpleNamespace(
            children=(), waiting=0, max_per_user=12, crashed=0, timeouts=0, jail=("walls",)
        )
