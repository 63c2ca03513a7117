"""Rows F23 and "done means 3": damaged recordings by the thousand, through a running daemon."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import pytest
from harness.daemon import wait_until
from harness.decoding import CHILDREN, DecodingCanary, DecodingDaemon
from harness.mutations import mutants
from harness.wire_client import memfd

from svctl.wire import MAX_AUDIO_BYTES
from tools.fuzz.samples import RATE_HZ, clip, encoded

CHILD_CPU_S = 20
"""A minute of audio costs half a second of it, on whatever machine: so much is only ever a runaway."""
CHILD_MEMORY_BYTES = 1024 * 2**20
MAX_DURATION_S = 120.0
CONNECTIONS, WINDOW = 4, 4
"""Requests in flight at each connection: there is always work for every child."""
ANSWER_S = 300.0
"""For one answer behind fifteen others on a machine that is busy: told apart from one that never comes."""
EXPECTED_CODES = {"bad_input", "too_long"}
"""What a recording can be answered; `timeout`, `busy` or `internal` would be a fault of the daemon here."""
SETTINGS = f"""
[frontend]
children = {CHILDREN}
max_children = {CHILDREN}
max_duration_s = {MAX_DURATION_S}
child_cpu_s = {CHILD_CPU_S}
child_memory_bytes = {CHILD_MEMORY_BYTES}
"""


@dataclass
class Answer:
    name: str
    events: list
    seconds: float

    @property
    def outcome(self):
        last = self.events[-1]
        if last["type"] == "error":
            return last["code"]
        return "truncated" if last["truncated"] else "done"


class Watch:
    """Looks at the daemon's children all the while, and keeps what they must not have."""

    PAUSE_S = 0.05

    def __init__(self, daemon):
        self._daemon = daemon
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.used_s = {}
        """CPU seconds of each child that was ever seen."""
        self.peak_mapped_bytes = self.peak_resident_bytes = 0
        self.wrong = []
        self.looks = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _look(self):
        try:
            with self._daemon.client(timeout_s=ANSWER_S) as client:
                while not self._over.wait(self.PAUSE_S):
                    for child in client.status()["memory"]["children"]:
                        self._examine(child["pid"])
                    self.looks += 1
        except Exception as error:  # noqa: BLE001 - a thread's errors are told by the test
            self.wrong.append(f"the watch ended: {error!r}")

    def _examine(self, pid):
        try:
            limits = (Path("/proc") / str(pid) / "limits").read_text()
            times = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
            status = (Path("/proc") / str(pid) / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return  # it has just ended
        memory = {
            line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Vm")
        }
        if not memory:
            return  # it is ending
        mapped, resident = (int(memory[name]) * 1024 for name in ("VmPeak", "VmHWM"))
        self.peak_mapped_bytes = max(self.peak_mapped_bytes, mapped)
        self.peak_resident_bytes = max(self.peak_resident_bytes, resident)
        used_s = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
        self.used_s[pid] = used_s
        (line,) = (line for line in limits.splitlines() if line.startswith("Max cpu time"))
        allowed = line.split()[3]
        # Armed anew by each job, from what was used until then, in whole seconds.
        if allowed != "unlimited" and not used_s - 2 <= int(allowed) <= used_s + CHILD_CPU_S + 2:
            self.wrong.append(f"child {pid} has used {used_s} s of CPU and may use {allowed} s")


def hand_over(client, request, data, **fields):
    """Ask for a recording that is a file."""
    fd = memfd(data)
    client.transcribe(request, fd, **fields)
    os.close(fd)


def stream(client, request, data, **fields):
    """Ask for a recording that comes over the socket."""
    client.transcribe(request, source="stream", **fields)
    for at in range(0, len(data), MAX_AUDIO_BYTES):
        client.send({"type": "audio", "id": request, "data": data[at : at + MAX_AUDIO_BYTES]})
    client.send({"type": "end", "id": request})


def pour(daemon, damaged):
    """Send all, several at a time: most as files, some as streams, some without VAD; gives every answer."""
    damaged = enumerate(damaged)
    lock, answers, failures = threading.Lock(), [], []

    def take():
        with lock:
            return next(damaged, None)

    def receive(client, waiting):
        number, name, began_s = waiting.popleft()
        answers.append(Answer(name, client.events(number), time.monotonic() - began_s))

    def send_all():
        try:
            with daemon.client(timeout_s=ANSWER_S) as client:
                waiting = collections.deque()
                while (mutant := take()) is not None:
                    number, (name, data) = mutant
                    waiting.append((number, name, time.monotonic()))
                    send = stream if number % 8 == 0 else hand_over
                    send(client, number, data, vad=number % 4 != 1, label=name)
                    if len(waiting) == WINDOW:
                        receive(client, waiting)
                while waiting:
                    receive(client, waiting)
        except Exception as error:  # noqa: BLE001 - a thread's errors are told by the test
            failures.append(repr(error))

    threads = [threading.Thread(target=send_all) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    return answers


def is_complete(answer):
    """Whether an answer is what the protocol promises: segments in order, then one end."""
    *segments, last = answer.events
    if last["type"] == "error":
        return last["message"].endswith(".") and "\n" not in last["message"]
    times = [time_s for segment in segments for time_s in (segment["start"], segment["end"])]
    return (
        [segment["index"] for segment in segments] == list(range(last["segments"]))
        and times == sorted(times)
        and 0 <= last["duration"] <= MAX_DURATION_S
        and last["timings"]["frontend_s"] <= CHILD_CPU_S
    )


def survives(daemon, canary, damaged, record_property):
    """Pour, watch, and hold the daemon to all that it promises of its answers and its children."""
    before = daemon.counters()
    began_s = time.monotonic()
    with Watch(daemon) as watch:
        answers = pour(daemon, damaged)
    took_s = time.monotonic() - began_s
    died, timeouts = (now - then for now, then in zip(daemon.counters(), before, strict=True))
    counts = collections.Counter(answer.outcome for answer in answers)
    lacked_memory = sum("needs more memory" in answer.events[-1].get("message", "") for answer in answers)
    slowest = max(answers, key=lambda answer: answer.seconds)
    shown = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    peaks = (
        f"{watch.peak_resident_bytes / 2**20:.0f} MiB resident, {watch.peak_mapped_bytes / 2**20:.0f} mapped"
    )
    record_property(
        "figure",
        f"{len(answers)} mutated files in {took_s:.0f} s: {shown}; children: {died} died of a file, "
        f"{lacked_memory} ended for lack of memory, {timeouts} timeouts, at most {peaks} "
        f"(limit {CHILD_MEMORY_BYTES / 2**20:.0f}); slowest answer {slowest.seconds:.1f} s ({slowest.name})",
    )
    assert watch.wrong == []
    assert watch.looks > 0
    assert watch.peak_mapped_bytes <= CHILD_MEMORY_BYTES
    assert set(counts) <= {"done", "truncated", *EXPECTED_CODES}, [
        (answer.name, answer.events[-1]) for answer in answers if answer.outcome not in ("done", "truncated")
    ]
    assert [answer.name for answer in answers if not is_complete(answer)] == []
    assert timeouts == 0
    canary.check()
    ended = set(watch.used_s) - {child["pid"] for child in daemon.children()}
    early = [pid for pid in ended if watch.used_s[pid] < CHILD_CPU_S - 2]
    assert len(early) <= died + lacked_memory + timeouts, "a child ends for a reason, or after its CPU budget"
    wait_until(lambda: not [pid for pid in ended if (Path("/proc") / str(pid)).exists()], "children's ends")
    return answers


@pytest.fixture
def daemon(tmp_path):
    """A daemon with real children, whose budgets a runaway would soon reach."""
    daemon = DecodingDaemon(tmp_path / "daemon", settings=SETTINGS)
    yield daemon
    daemon.kill()


def film_with_subtitles():
    """A second of sound with a line of text beside it, in Matroska."""
    titles_file = io.BytesIO(b"1\n00:00:00,000 --> 00:00:00,500\nhello\n")
    with tempfile.NamedTemporaryFile() as file:
        with av.open(titles_file, format="srt") as titles, av.open(file.name, "w", format="matroska") as film:
            sound = film.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
            text = film.add_stream_from_template(titles.streams[0])
            frame = av.AudioFrame.from_ndarray(clip(1.0).reshape(1, -1), format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = RATE_HZ, Fraction(1, RATE_HZ), 0
            for packet in titles.demux():
                if packet.size:
                    packet.stream = text
                    film.mux(packet)
            film.mux(sound.encode(frame))
        return Path(file.name).read_bytes()


def test_f23_a_film_with_subtitles_is_heard(daemon):
    """What the decoder's library needs for text is there before the child is closed in."""
    with daemon.client() as client:
        hand_over(client, 1, film_with_subtitles())
        last = client.events(1)[-1]
    assert (last["type"], last.get("duration")) == ("done", 1.0)
    assert daemon.counters() == (0, 0)


def test_f23_two_hundred_mutated_files(daemon, record_property):
    """Each of 200 damaged recordings made here gets its answer, and no child exceeds its budget."""
    canary = DecodingCanary(daemon)
    damaged = mutants(encoded(clip(1.5)).items(), 200, seed=23)
    assert len(survives(daemon, canary, damaged, record_property)) == 200


@pytest.mark.slow
def test_f23_ten_thousand_mutated_files(daemon, request, record_property):
    """The same of 10,000, made of real recordings too, and of files that are broken as they are.

    Where those are absent, of what is made here alone.
    """
    recordings = [*encoded(clip(3.0)).items()]
    with contextlib.suppress(pytest.skip.Exception):
        folder = request.getfixturevalue("shared_data")
        paths = (path for part in ("audio", "edge") for path in (folder / part).rglob("*") if path.is_file())
        recordings += [(path.name, path.read_bytes()) for path in paths]
    canary = DecodingCanary(daemon)
    answers = survives(daemon, canary, mutants(recordings, 10_000, seed=24), record_property)
    assert len(answers) == 10_000
