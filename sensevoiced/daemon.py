"""Composition root: start, ready, serve, reload, drain, stop; joins the parts and does none of their work."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import resource
import signal
import time
from typing import TYPE_CHECKING, Any

from sensevoiced import __version__, logs, notify, threads
from sensevoiced.backend import Backend
from sensevoiced.config import Config, ConfigError
from sensevoiced.descriptors import HURRY, closing
from sensevoiced.heartbeat import HEARTBEAT_S, Heartbeat
from sensevoiced.jobs import JobError
from sensevoiced.metrics import Metrics
from sensevoiced.serving import listener
from sensevoiced.serving.admission import Admission
from sensevoiced.serving.server import Server
from sensevoiced.serving.source import hanging
from sensevoiced.settings import differences
from svctl.wire import WireError

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from sensevoiced.jobs import Options
    from sensevoiced.parts import Parts
    from sensevoiced.pipeline import Transcription

log = logging.getLogger(__name__)

CLOSE_S = 3.0
"""For the last answers, the children's end and the engine's, all together, once the work is over or given
up."""
HURRY_S = 0.1
"""The same, from the second time on that we are told to stop."""
DRAIN_POLL_S = 0.02
"""How often a stopping daemon looks whether it is done; a few thousand looks in a lifetime need no
signalling."""
WANTED_FILES = 65_536
"""Descriptors: one a connection, one a job, a few a child; the soft limit is often 1,024."""
EX_SOFTWARE = 70

_LIVE = ("log_level", "serving.")
"""Settings that a reload applies; everything else is built into what is running ..."""
_NOT_LIVE = ("backlog", "max_outstanding_utterances")
"""... and so are these two of `serving`: the kernel keeps the one, the backend the other."""
_LOAD_FAILURES = (ImportError, OSError, RuntimeError, ValueError, LookupError, MemoryError)
"""What model files, devices and libraries are known to fail with; others are defects and keep their
traceback."""


class StartError(Exception):
    """The daemon cannot serve; the message is one sentence (exit status 1)."""


class Daemon:
    """One life of the daemon.

    `run` is all of it, and the rest is what sessions ask for (serving's Service).
    """

    def __init__(
        self,
        config: Config,
        parts: Parts,
        *,
        reread: Callable[[], Config],
        environ: MutableMapping[str, str] = os.environ,
    ) -> None:
        """`reread` gives the settings anew.

        Takes systemd's variables out of `environ`, so that no child sees them.
        """
        self._config = config
        self._parts = parts
        self._reread = reread
        self._inherited = notify.inherited(environ)
        self._notifier = notify.Notifier(environ.get("NOTIFY_SOCKET"))
        self._heartbeat = Heartbeat(
            self._notifier, config, model=parts.model, watchdog_s=notify.watchdog_interval_s(environ)
        )
        notify.forget(environ)
        self._metrics = Metrics()
        self._admission = Admission(config.serving, self._rtf)
        self._state = "loading"
        self._began_s = time.monotonic()
        self._ready_after_s: float | None = None
        self._exit_status = 0
        self._last_words = ""
        self._background: set[asyncio.Task[None]] = set()
        self.engine_left_running = False
        """Whether a batch outlives `run`: the process then has to end without waiting for its thread."""
        # Made in `run`, where there is a loop.
        self._backend: Backend
        self._server: Server
        self._ready: asyncio.Event
        self._stop: asyncio.Event
        self._hurry: asyncio.Event
        self._enough: asyncio.Event

    async def run(self) -> int:
        """Serve until told to stop; gives the exit status. Raises ConfigError, ListenError, StartError."""
        self._ready, self._stop = asyncio.Event(), asyncio.Event()
        self._hurry, self._enough = asyncio.Event(), asyncio.Event()
        _raise_file_limit()
        threads.keep_ready()
        # Before there is a socket: a stop that comes this early has to remove it too.
        self._catch_signals()
        try:
            door = self._open_door()
        except (ConfigError, listener.ListenError) as error:
            self._notifier.status(str(error))
            self._notifier.close()
            raise
        try:
            # The socket answers from here on; requests wait for the model, `status` and `ping` do not.
            self._backend = Backend(self._config, self._parts, self._count_audio)
            self._server = Server(door, self, self._admission, self._metrics)
            self._server.start()
            heart = asyncio.create_task(
                self._heartbeat.run(
                    lambda: self._state == "loading",
                    self._backend.batches,
                    self._give_up,
                    self._put_right,
                )
            )
            try:
                await self._load()
                await self._stop.wait()
            finally:
                await self._drain(door)
                asyncio.get_running_loop().call_later(CLOSE_S, self._enough.set)
                await self._server.close(self._enough)
                heart.cancel()
                self.engine_left_running = not await self._backend.close(self._enough)
        finally:
            door.close()
            self._notifier.close()
        log.info("stopped")
        return self._exit_status

    # --- life ---------------------------------------------------------------------------------------------

    def _open_door(self) -> listener.Listener:
        if self._inherited is None:
            raise ConfigError("LISTEN_FDS is not a number of descriptors.")
        if self._inherited:
            door = listener.inherit(self._inherited)
        else:
            serving = self._config.serving
            door = listener.bind(self._config.socket, self._config.socket_mode, serving.backlog)
        log.info("listening at %s%s", door.address, "" if door.own else " (from systemd)")
        return door

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        loop.add_signal_handler(HURRY, lambda: None)

    def _on_stop_signal(self) -> None:
        if self._stop.is_set():
            log.warning("told to stop again: dropping what is not finished")
            self._hurry.set()
            asyncio.get_running_loop().call_later(HURRY_S, self._enough.set)
        self._stop.set()

    def _on_hangup(self) -> None:
        task = asyncio.create_task(self._reload_quietly())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _reload_quietly(self) -> None:
        # A signal has nobody to answer, so what went wrong is for the log alone.
        try:
            await self.reload()
        except WireError as error:
            log.warning("the signal to reload came to nothing: %s", error)

    def _put_right(self) -> None:
        """With every beat of the heart: what may have stopped, or hangs."""
        closing.hurry()
        closing.go_on()
        self._server.go_on()

    async def _load(self) -> None:
        """Load everything, then declare ourselves ready; returns early when told to stop."""
        loading = asyncio.create_task(self._backend.load())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                return
            await loading
        except (ConfigError, JobError, *_LOAD_FAILURES) as error:
            log.debug("loading failed", exc_info=error)
            sentence = str(error)
            if not isinstance(error, (ConfigError, JobError)):
                sentence = f"The model {self._parts.model} cannot be loaded: {type(error).__name__}: {error}"
            self._last_words = sentence
            if isinstance(error, ConfigError):
                raise
            raise StartError(" ".join(sentence.split())) from None
        finally:
            loading.cancel()
            stopping.cancel()
        self._ready_after_s = time.monotonic() - self._began_s
        self._state = "ready"
        self._ready.set()
        log.info("ready after %.1f s: %s", self._ready_after_s, self._summary())
        self._notifier.ready(self._summary())

    def _give_up(self, why: str) -> None:
        if not self._stop.is_set():
            log.error("%s: ending", why)
            self._exit_status = EX_SOFTWARE
            self._stop.set()

    async def _drain(self, door: listener.Listener) -> None:
        """Refuse what is new and let the accepted finish, within the limit and until told to stop again."""
        was_ready = self._state == "ready"
        self._state = "draining"
        self._notifier.stopping(self._last_words or f"Finishing {self._admission.jobs} requests")
        self._server.stop_accepting()
        if door.own:
            door.close()
        if was_ready and self._admission.jobs:
            log.info("stopping: %d requests to finish", self._admission.jobs)
            until_s = time.monotonic() + self._config.serving.drain_timeout_s
            while self._unfinished(until_s):  # noqa: ASYNC110 - see DRAIN_POLL_S
                await asyncio.sleep(DRAIN_POLL_S)

    def _unfinished(self, until_s: float) -> bool:
        return self._admission.jobs > 0 and time.monotonic() < until_s and not self._hurry.is_set()

    # --- what sessions ask for ----------------------------------------------------------------------------

    @property
    def accepting(self) -> bool:
        """False once the daemon is stopping."""
        return self._state != "draining"

    @property
    def model(self) -> str:
        """Name of the model in force."""
        return self._parts.model

    async def ready(self) -> None:
        """Wait until requests can be served."""
        await self._ready.wait()

    def transcribe(self, source_fd: int, options: Options, *, label: str, owner: int) -> Transcription:
        """Start on a file or a pipe for the user `owner`; owns the descriptor from the call on."""
        return self._backend.transcribe(source_fd, options, label=label, owner=owner)

    async def reload(self) -> str:
        """Read the settings again and apply what can be applied while running; gives a sentence about it."""
        if self._state == "loading":
            raise WireError(
                "busy", "The daemon is loading its model.", retry_after_ms=round(HEARTBEAT_S * 1000)
            )
        if self._state == "draining":
            raise WireError("shutting_down", "The daemon is stopping.")
        self._notifier.reloading()
        try:
            return self._apply(self._reread())
        except ConfigError as error:
            raise WireError("config", f"{error} The settings in force stay as they were.") from None
        finally:
            self._notifier.ready(self._summary())

    async def status(self) -> dict[str, Any]:
        """Everything `svctl status` shows."""
        metrics, rtf = self._metrics, self._rtf()
        return {
            "server": f"sensevoiced/{__version__}",
            "pid": os.getpid(),
            "state": self._state,
            "uptime_s": round(time.monotonic() - self._began_s, 3),
            "ready_after_s": None if self._ready_after_s is None else round(self._ready_after_s, 3),
            **await self._backend.status(),
            "queue": {
                "utterances": self._backend.batches().queued_utterances,
                "audio_s": round(self._admission.queued_audio_s, 3),
                "jobs_active": self._admission.jobs,
            },
            "jobs": {
                "done": metrics.jobs_done,
                "failed": metrics.jobs_failed,
                "cancelled": metrics.jobs_cancelled,
                "rejected": metrics.jobs_rejected,
            },
            "audio_s": round(metrics.audio_s, 3),
            "rtf": None if rtf is None else round(rtf, 6),
            "files": {"hanging": len(hanging), "closing": len(closing)},
            "connections": self._admission.connections,
            "clients_rejected": metrics.clients_rejected,
            "connections_closed": dict(metrics.connections_closed),
        }

    # --- small things -------------------------------------------------------------------------------------

    def _apply(self, new: Config) -> str:
        changed = differences(self._config, new)
        fixed = {name: getattr(self._config.serving, name) for name in _NOT_LIVE}
        later = [
            name for name in changed if not name.startswith(_LIVE) or name.removeprefix("serving.") in fixed
        ]
        live = [name for name in changed if name not in later]
        serving = dataclasses.replace(new.serving, **fixed)
        self._admission.limits = serving
        logs.set_level(new.log_level)
        self._config = dataclasses.replace(self._config, serving=serving, log_level=new.log_level)
        said = [f"Applied: {', '.join(live)}." if live else "Nothing to apply."]
        if later:
            said.append(f"A restart is needed for: {', '.join(later)}.")
        sentence = " ".join(said)
        log.info("settings read again: %s", sentence)
        return sentence

    def _summary(self) -> str:
        info = self._backend.info
        return f"{info.model} on {info.device}, {info.precision}, engine {info.name}" if info else "Loading"

    def _count_audio(self, seconds: float) -> None:
        self._metrics.audio_s += seconds

    def _rtf(self) -> float | None:
        audio_s = self._metrics.audio_s
        return self._backend.busy_s() / audio_s if audio_s else None


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
