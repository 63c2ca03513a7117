"""One connection to the daemon: say hello, move frames and descriptors both ways, never blocking on only one.

Never imports asyncio, collections, struct or typing, and select only where there is more to wait for than
the daemon: each costs a noticeable part of a ping.
"""

from __future__ import annotations

import os
import sys
import time

from svctl import __version__, framing, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    from svctl.wire import Message
else:
    try:
        import _socket as socket  # without the enums that socket makes of its constants
    except ImportError:  # an interpreter that is arranged in another way
        import socket

__all__ = ["Connection", "error_of", "overdue", "pause_s", "socket"]

_RECEIVE_BYTES = 64 * 2**10
_INT_BYTES = 4
"""A C int, as SCM_RIGHTS carries descriptors, wherever Linux runs."""
_MIN_RETRY_S, _MAX_RETRY_S = 0.05, 5.0
"""Bounds of one pause before asking again: neither a busy loop nor a sleep past a free slot."""
_CANCEL_FLUSH_S = 1.0
"""How long Ctrl-C may take to tell the daemon; closing the connection says the same."""
KEEP_ALIVE_S = 5.0
"""Between two signs of life while we wait for somebody else: a pager, a microphone, a list of names. Well
below any idle time that a daemon may sensibly be given, as it does not say which (300 s as it is shipped)."""


def pause_s(retry_after_ms: int | None) -> float:
    """How long to wait before asking again: what the daemon said, within bounds.

    Spread by a quarter, so that clients that were refused together do not return together.
    """
    wanted = min(max((retry_after_ms or 0) / 1000, _MIN_RETRY_S), _MAX_RETRY_S)
    return wanted * (0.75 + os.urandom(1)[0] / 510)


class Connection:
    """One connection: requests are pipelined, events are taken in the order in which they were sent."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        """`sock` is connected; it is owned from here on."""
        sock.setblocking(False)
        self.path = path
        self.server = ""
        self.minor = 0
        """The minor version of the protocol that the daemon speaks."""
        self.unfinished: set[int] = set()
        """Ids of transcriptions that have not ended: what Ctrl-C has to cancel."""
        self._socket = sock
        self._reader = framing.FrameReader(wire.MAX_FRAME_BYTES)
        self._outgoing: list[tuple[memoryview, int]] = []
        self._own: list[int] = []
        """Descriptors among them that nobody else closes."""
        self._incoming: list[Message] = []
        self._last_id = 0
        self._ended = False
        self.closing = False
        """The daemon has said that it will end the connection: more requests would be refused."""
        self._cannot_send = False
        self._sent_s = 0.0
        """When something was last sent, on the monotonic clock."""

    def hello(self) -> None:
        """Say which version this side speaks; requests may follow at once."""
        self.send(
            {
                "type": "hello",
                "major": wire.VERSION_MAJOR,
                "minor": wire.VERSION_MINOR,
                "client": f"svctl/{__version__}",
            }
        )

    def welcomed(self) -> bool:
        """Take the daemon's version in; False while it has not come.

        Raises WireError: `unsupported` for another major version, or what the daemon says instead.
        """
        welcome = self._answered(None, "welcome")
        if welcome is None:
            return False
        if welcome["major"] != wire.VERSION_MAJOR:
            raise wire.WireError(
                "unsupported",
                f"The daemon at {self.path} speaks protocol {welcome['major']}.{welcome['minor']} and "
                f"this svctl {wire.VERSION_MAJOR}.{wire.VERSION_MINOR}; install the same version of both.",
            )
        self.server = welcome["server"]
        self.minor = welcome["minor"]
        return True

    def needs(self, what: str, called: str = "") -> None:
        """Raise WireError `unsupported` where the daemon is older than a request, or a field of one.

        `called` is its name for people, where that is another.
        """
        since = wire.SINCE.get(what, 0)
        if self.minor < since:
            major = wire.VERSION_MAJOR
            raise wire.WireError(
                "unsupported",
                f"The daemon at {self.path} ({self.server}) speaks protocol {major}.{self.minor} and this "
                f"svctl {major}.{wire.VERSION_MINOR}; {called or what} came with {major}.{since}: upgrade "
                f"the daemon to the version of this svctl.",
            )

    def send(self, message: Message, descriptor: int = -1) -> None:
        """Queue a message and send what the socket takes.

        `descriptor` travels with the first byte. It stays the caller's to close, at any time.
        """
        if self._cannot_send:
            return
        self._sent_s = time.monotonic()
        self._outgoing.append((memoryview(framing.encode(message)), descriptor))
        self._flush()
        if descriptor >= 0 and self._outgoing and self._outgoing[-1][1] == descriptor:
            # until its turn comes its number may be another file's
            own = os.dup(descriptor)
            self._outgoing[-1] = (self._outgoing[-1][0], own)
            self._own.append(own)

    def request(self, kind: str, descriptor: int = -1, **fields: Any) -> int:
        """Send a request under a fresh id, which it returns."""
        self._last_id += 1
        if kind == "transcribe":
            self.unfinished.add(self._last_id)
        self.send({"type": kind, "id": self._last_id, **fields}, descriptor)
        return self._last_id

    def call(
        self, kind: str, answer: str, *, patience_s: float, answer_s: float = 0.0, asked: int | None = None
    ) -> Message:
        """Ask and wait for the one event that answers; ask again while the daemon says when to come back.

        That ends after `patience_s`; an answer may take `answer_s` even without patience. `asked` is the id
        of the request where it has been sent already. Raises WireError: the daemon's own, or `timeout`.
        """
        deadline = time.monotonic() + patience_s
        while True:
            request = self.request(kind) if asked is None else asked
            asked = None
            try:
                return self.answer(request, answer, max(deadline, time.monotonic() + answer_s))
            except wire.WireError as error:
                wait_s = pause_s(error.retry_after_ms)
                # an error without a request is the connection's: there is nobody left to ask
                again = error.retryable and error.retry_after_ms is not None and error.request is not None
                if not again or time.monotonic() + wait_s > deadline:
                    raise
            time.sleep(wait_s)

    def answer(self, request: int | None, answer: str, deadline: float) -> Message:
        """Wait for one event, dropping others; raises WireError for an error in its place, or `timeout`."""
        while (event := self._answered(request, answer)) is None:
            self.wait(self.left_s(deadline))
        return event

    def _answered(self, request: int | None, answer: str) -> Message | None:
        """The event, if it has come."""
        while (event := self.take()) is not None:
            if event["type"] == "error" and event["id"] in (request, None):
                raise error_of(event)
            if event["type"] == answer and event.get("id") == request:
                return event
        if self._ended:
            raise self.broken()
        return None

    @property
    def backlog_bytes(self) -> int:
        """Bytes queued because the daemon does not read as fast."""
        return sum(len(data) for data, _ in self._outgoing)

    def take(self) -> Message | None:
        """The next event that has arrived, or None."""
        return self._incoming.pop(0) if self._incoming else None

    def wait(self, timeout_s: float | None = None, *, readable: int = -1) -> bool:
        """Move bytes both ways until something happened or the time is over, or a little earlier.

        True says that the other descriptor `readable` is; otherwise there may be events to take. While it
        waits for another it keeps the connection alive. Raises WireError `unavailable` when the connection is
        over and every event that came before has been taken.
        """
        if self._incoming:
            return False
        if self._ended:
            raise self.broken()
        return self._move(timeout_s, readable=readable)

    @property
    def descriptor(self) -> int:
        """The socket, for an event loop that calls `pump` when something happens there."""
        return self._socket.fileno()

    @property
    def ended(self) -> bool:
        """Whether the connection is over; what came before may still be taken."""
        return self._ended

    def left_s(self, deadline: float) -> float:
        """Seconds that the daemon still has to answer; raises WireError `timeout` when there are none."""
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise wire.WireError("timeout", f"The daemon at {self.path} did not answer in time.")
        return left_s

    def broken(self) -> wire.WireError:
        """What to raise when the connection is over."""
        sentence = f"The connection to the daemon at {self.path} broke before it had answered; try again."
        return wire.WireError("unavailable", sentence)

    def pump(self) -> None:
        """Move what can be moved both ways without waiting."""
        if not self._ended:
            self._receive()
        self._flush()

    def wait_writable(self, descriptor: int) -> None:
        """Take events in until the descriptor can be written: the daemon drops clients that do not read.

        It keeps the connection alive, too, however long that takes.
        """
        while not self._move(None, writable=descriptor):
            pass

    def _move(self, timeout_s: float | None, *, readable: int = -1, writable: int = -1) -> bool:
        if readable < 0 and writable < 0 and not self._outgoing:
            self._receive(timeout_s)
            return False
        import select  # noqa: PLC0415 - see the first lines

        if readable >= 0 or writable >= 0:
            timeout_s = self._kept_alive(timeout_s)
        poll = select.poll()
        if not self._ended:
            poll.register(self._socket.fileno(), select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        if readable >= 0:
            poll.register(readable, select.POLLIN)
        if writable >= 0:
            poll.register(writable, select.POLLOUT)
        ready = poll.poll(None if timeout_s is None else max(0, int(timeout_s * 1000) + 1))
        other = False
        for descriptor, mask in ready:
            if descriptor in (readable, writable):
                other = True
                continue
            if mask & (select.POLLIN | select.POLLHUP | select.POLLERR):
                self._receive()
            if mask & select.POLLOUT:
                self._flush()
        return other

    def _kept_alive(self, timeout_s: float | None) -> float:
        """Give a sign of life if one is due, and how long to wait at most until the next one is."""
        left_s = self._sent_s + KEEP_ALIVE_S - time.monotonic()
        if left_s <= 0 and not self._outgoing:  # what the daemon has not read yet is one in itself
            self.request("ping")
        if left_s <= 0:
            left_s = KEEP_ALIVE_S
        return left_s if timeout_s is None else min(left_s, timeout_s)

    def _receive(self, timeout_s: float | None = 0.0) -> None:
        """Take in what is there, waiting for its beginning."""
        self._socket.settimeout(None if timeout_s is None else max(0.0, timeout_s))
        try:
            while not self._ended:
                data = self._socket.recv(_RECEIVE_BYTES)
                if not data:
                    self._ended = self._cannot_send = True
                self._reader.feed(data)
                if len(data) < _RECEIVE_BYTES:
                    break
                self._socket.settimeout(0)
        except (BlockingIOError, TimeoutError):
            pass
        except OSError:
            self._ended = self._cannot_send = True  # reset by a daemon that died: the same as its end
        finally:
            self._socket.settimeout(0)
        for message in self._reader.messages():
            self._accept(message)

    def _accept(self, message: Message) -> None:
        try:
            event = wire.check(message, wire.EVENTS)
        except wire.ProtocolError as error:
            if error.code == "unsupported":
                return  # an event of a newer minor version
            raise
        if event["type"] in ("done", "error"):
            self.unfinished.discard(event["id"])
            if event["id"] is None or event.get("code") == "shutting_down":
                self.closing = True
        self._incoming.append(event)

    def _flush(self) -> None:
        while self._outgoing:
            # taken out before it is sent: a Ctrl-C in between loses a message, but never sends one twice
            data, descriptor = self._outgoing.pop(0)
            rights = [descriptor.to_bytes(_INT_BYTES, sys.byteorder)] if descriptor >= 0 else []
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, right) for right in rights]
            try:
                sent = self._socket.sendmsg([data], ancillary)
            except BlockingIOError:
                self._outgoing.insert(0, (data, descriptor))
                return
            except OSError:
                # the daemon has closed: what it said before is still to be read, and says why
                self._cannot_send = True
                self._outgoing.clear()
                return
            if sent < len(data):
                self._outgoing.insert(0, (data[sent:], -1))
            if descriptor in self._own:
                self._own.remove(descriptor)
                os.close(descriptor)

    def cancel_all(self) -> None:
        """Tell the daemon to drop what this connection still waits for; one that is gone is no error."""
        for request in sorted(self.unfinished):
            self.send({"type": "cancel", "id": request})
        deadline = time.monotonic() + _CANCEL_FLUSH_S
        while self._outgoing and not self._ended and time.monotonic() < deadline:
            self._move(deadline - time.monotonic())

    def hang_up(self) -> None:
        """End it under whoever uses it, who is told as if the daemon had ended it, and has it to close."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the daemon was first

    def close(self) -> None:
        """End the connection; the daemon drops whatever is unfinished."""
        self._ended = self._cannot_send = True
        self._socket.close()
        while self._own:
            os.close(self._own.pop())


def overdue() -> wire.WireError:
    """What to raise when a request's own time is over."""
    return wire.WireError("timeout", "The daemon has not answered in the time that it was given.")


def error_of(event: Message) -> wire.WireError:
    """The exception that an `error` event stands for."""
    return wire.WireError(
        event["code"], event["message"], request=event["id"], retry_after_ms=event["retry_after_ms"]
    )
