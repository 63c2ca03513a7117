"""What all clients of a soak share: the expected answers, and a conversation that judges what it hears."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from svctl.connection import error_of, pause_s
from svctl.framing import FrameReader, encode
from svctl.wire import MAX_AUDIO_BYTES, MAX_FRAME_BYTES, WireError
from tools.soak.answers import LOST, RIGHT, WRONG, Tally, answer_of, difference

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from types import TracebackType

    from tools.soak.answers import Answer
    from tools.soak.daemon import Daemon
    from tools.soak.material import Ask

    Message = dict[str, Any]

ANSWER_S = 120.0
"""Without an answer for so long an untouched request is lost: a hundred times what the longest one takes."""
LONGEST_PAUSE_S = 2.0
"""Before asking again; the connection would be closed as idle after eight."""
BACKLOG_BYTES = 2**20
"""Of an upload that wait in this process before its next piece is made."""
PIECES = (4_096, 32_768, MAX_AUDIO_BYTES)
TERMINAL = ("done", "error")
CLASSES = ((4.0, "up to 4 s"), (10.0, "4 to 10 s"), (math.inf, "above 10 s"))
"""Lengths of clips whose latencies are told apart."""


@dataclass
class Load:
    """The daemon, what can be asked of it, and how that went."""

    daemon: Daemon
    tally: Tally
    expected: dict[Ask, Answer] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)
    """Set: nothing new is begun."""

    def draw(
        self,
        rng: random.Random,
        count: int = 1,
        *,
        intact: bool = True,
        stream: bool = False,
        plain: bool = False,
    ) -> list[Ask]:
        """Some asks, short ones more often; `plain` leaves options at their defaults."""
        pool = [
            ask
            for ask in self.expected
            if ask.clip.intact == intact and ask.stream == stream and (ask.plain or not plain)
        ]
        return rng.choices(pool, [1 / (2 + ask.clip.seconds) for ask in pool], k=count)

    def pause(self, rng: random.Random, mean_s: float = 0.02) -> None:
        """Think, unless all is over."""
        self.over.wait(rng.expovariate(1 / mean_s))


@dataclass(slots=True)
class Sent:
    """A request on its way."""

    ask: Ask
    descriptor: int
    cancel_at_s: float
    began_s: float = 0.0
    cancelled: bool = False
    events: list[Message] = field(default_factory=list)


class Talk:
    """One connection by the product's own client; every answer that comes over it is judged."""

    def __init__(self, load: Load, kind: str, *, timed: bool = False) -> None:
        """Connect. Raises WireError. `timed` counts its latencies."""
        self._load = load
        self._kind = kind
        self._timed = timed
        self._unfinished: dict[int, Sent] = {}
        self._refused: list[tuple[float, Sent]] = []
        """To be sent again, and when."""
        self.client = load.daemon.connect()

    def __enter__(self) -> Self:
        """Nothing more."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; what has no answer is lost."""
        self.client.close()
        for sent in (*self._unfinished.values(), *(sent for _, sent in self._refused)):
            os.close(sent.descriptor)
            why = "left unfinished" if error is None else str(error)
            if sent.cancelled:
                # It was to be dropped, and the connection ended before the daemon could say so.
                self._load.tally.ended(self._kind, "cancelled, unanswered")
            else:
                self._load.tally.fault(self._kind, LOST, f"{sent.ask}: {why}")

    def ask(self, ask: Ask, rng: random.Random, cancel_after_s: float = math.inf) -> None:
        """Send one request; an upload whole, taking events meanwhile. Raises WireError."""
        descriptor = os.open(ask.clip.path, os.O_RDONLY | os.O_CLOEXEC)
        sent = Sent(ask, descriptor, time.monotonic() + cancel_after_s)
        self._send(sent, rng)

    def finish(self, rng: random.Random) -> None:
        """Take events until all has been answered. Raises WireError, also where nothing comes any more."""
        while self._unfinished or self._refused:
            now_s = time.monotonic()
            for due_s, sent in list(self._refused):
                if due_s <= now_s:
                    self._refused.remove((due_s, sent))
                    self._send(sent, rng)
            self._cancel_due(now_s)
            waits = [due_s for due_s, _ in self._refused]
            for sent in self._unfinished.values():
                if now_s > sent.began_s + ANSWER_S:
                    raise WireError("timeout", f"no answer within {ANSWER_S:g} s")
                waits += [sent.began_s + ANSWER_S] + ([] if sent.cancelled else [sent.cancel_at_s])
            if waits:
                self.pump(max(0.0, min(waits) - now_s))

    def pump(self, timeout_s: float) -> None:
        """Take what comes within the time. Raises WireError when the connection is over."""
        self.client.wait(min(timeout_s, ANSWER_S))
        while (event := self.client.take()) is not None:
            if event["type"] == "error" and event["id"] is None:
                raise error_of(event)
            self._hear(event)

    def _send(self, sent: Sent, rng: random.Random) -> None:
        sent.began_s = time.monotonic()
        ask, label = sent.ask, sent.ask.clip.name
        if not ask.stream:
            if rng.random() < 0.1:
                path = str(ask.clip.path)
                request = self.client.request(
                    "transcribe", source="path", path=path, label=label, **ask.fields
                )
            else:
                request = self.client.request(
                    "transcribe", sent.descriptor, source="fd", label=label, **ask.fields
                )
            self._unfinished[request] = sent
            return
        request = self.client.request("transcribe", source="stream", label=label, **ask.fields)
        self._unfinished[request] = sent
        content, at = ask.clip.path.read_bytes(), 0
        while at < len(content) and request in self._unfinished and not sent.cancelled:
            piece = content[at : at + rng.choice(PIECES)]
            self.client.send({"type": "audio", "id": request, "data": piece})
            at += len(piece)
            self._cancel_due(time.monotonic())
            self.pump(0.0)
            while self.client.backlog_bytes > BACKLOG_BYTES and request in self._unfinished:
                self.pump(ANSWER_S)
        if request in self._unfinished and not sent.cancelled:
            self.client.send({"type": "end", "id": request})

    def _cancel_due(self, now_s: float) -> None:
        for request, sent in self._unfinished.items():
            if now_s >= sent.cancel_at_s and not sent.cancelled:
                sent.cancelled = True
                self.client.send({"type": "cancel", "id": request})

    def _hear(self, event: Message) -> None:
        sent = self._unfinished.get(event["id"])
        if sent is None:
            sentence = f"{event['type']} came for request {event['id']}, which had ended"
            self._load.tally.fault(self._kind, WRONG, sentence)
            return
        if event["type"] != "progress":
            sent.events.append(event)
        if event["type"] in TERMINAL:
            del self._unfinished[event["id"]]
            self._judge(sent)

    def _judge(self, sent: Sent) -> None:
        tally, answer = self._load.tally, answer_of(sent.events)
        retry_after_ms = sent.events[-1].get("retry_after_ms")
        sent.events = []
        code = answer.get("error")
        if code is not None:
            tally.error(code)
        if code == "busy" and not sent.cancelled:
            wait_s = min(pause_s(retry_after_ms), LONGEST_PAUSE_S)
            self._refused.append((time.monotonic() + wait_s, sent))
            return
        os.close(sent.descriptor)
        if sent.cancelled and code in ("cancelled", "busy"):
            tally.ended(self._kind, code)
            return
        found = difference(self._load.expected[sent.ask], answer)
        if found:
            tally.fault(self._kind, WRONG, f"{sent.ask}: {found}")
        else:
            tally.ended(self._kind, RIGHT)
        if self._timed and not sent.cancelled and sent.ask.clip.intact:
            name = next(name for limit_s, name in CLASSES if sent.ask.clip.seconds <= limit_s)
            tally.waited(name, time.monotonic() - sent.began_s)


class Raw:
    """A connection for what the product's own client never does."""

    def __init__(self, path: str) -> None:
        """Connect, and say nothing yet. Raises OSError."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(ANSWER_S)
        self.socket.connect(path)

    def __enter__(self) -> Self:
        """Nothing more."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.socket.close()

    def send(self, *messages: Message) -> None:
        """Send messages; a daemon that has closed is no error here, as `rest` tells why."""
        self.send_bytes(b"".join(map(encode, messages)))

    def send_bytes(self, data: bytes) -> None:
        """Send what may be no message at all."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def rest(self) -> list[Message]:
        """All messages up to the connection's end. Raises TimeoutError, and WireError for nonsense."""
        reader = FrameReader(MAX_FRAME_BYTES)
        with contextlib.suppress(ConnectionError):
            while data := self.socket.recv(2**16):
                reader.feed(data)
        return list(reader.messages())


def take_references(load: Load, asks: Sequence[Ask]) -> None:
    """Have every ask answered alone. Raises WireError where there is no answer, or `busy`."""
    client = load.daemon.connect()
    try:
        for ask in asks:
            with ask.clip.path.open("rb") as file:
                if ask.stream:
                    request = client.request("transcribe", source="stream", **ask.fields)
                    while piece := file.read(MAX_AUDIO_BYTES):
                        client.send({"type": "audio", "id": request, "data": piece})
                    client.send({"type": "end", "id": request})
                else:
                    request = client.request("transcribe", file.fileno(), source="fd", **ask.fields)
                load.expected[ask] = answer_of(_events(load, client, request))
    finally:
        client.close()


def _events(load: Load, client: Any, request: int) -> list[Message]:
    events: list[Message] = []
    until_s = time.monotonic() + ANSWER_S
    while not events or events[-1]["type"] not in TERMINAL:
        event = client.take()
        if event is None:
            if not load.daemon.running or time.monotonic() > until_s:
                raise WireError("unavailable", "the daemon does not answer, though asked alone")
            client.wait(1.0)
        elif event["id"] is None or event.get("retryable"):
            raise error_of(event)
        elif event["id"] == request and event["type"] != "progress":
            events.append(event)
    return events
