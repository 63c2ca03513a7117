"""Every setting and every limit of the daemon, frozen, each with unit and reason; standard library only."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class ConfigError(Exception):
    """A setting that cannot be used.

    The message is one sentence that names the setting and the remedy (exit status 78).
    """


DEFAULT_ASR = "iic/SenseVoiceSmall"
DEFAULT_VAD = "iic/speech_fsmn_vad_zh-cn-16k-common-pytorch"

DEVICES = "auto, cpu, cuda or cuda:N"
PRECISIONS: tuple[str, ...] = ("auto", "float32", "bfloat16", "float16", "int8")
ENGINES: tuple[str, ...] = ("torch", "funasr")
LOG_LEVELS: tuple[str, ...] = ("debug", "info", "warning", "error")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class FrontendConfig:
    """Limits of decoding, features and VAD, all enforced in disposable child processes."""

    children: int = field(default_factory=lambda: max(2, min(_cores(), 8)))
    """Children kept warm. One core each; more than the cores would only take turns."""
    max_children: int = 16
    """Ceiling while long files wait on back-pressure: a child costs about 60 MiB, so 16 stay below 1 GiB."""
    grow_after_s: float = 0.25
    """No child has come free for so long while somebody waits: they are held up by long recordings, and one
    more is started. A crowd of short ones is served sooner by those there are: a start costs as much as the
    work on 90 s of audio, on cores that the engine needs."""
    max_children_per_uid: int = 12
    """Three quarters of all: one user's slow streams leave children for the others. Where `max_children` is
    lower, the last child beyond `children` is left to them."""
    idle_child_s: float = 60.0
    """A child above `children` that has had no work for so long is ended."""
    decode_timeout_s: float = 30.0
    """Longest silence of a child that is not held back by us; a hanging decoder or file system is killed
    after it."""
    max_duration_s: float = 24 * 3600.0
    """Counted on output samples while streaming: 1 MiB of constant FLAC can claim 85 h."""
    min_sample_rate_hz: int = 4_000
    max_sample_rate_hz: int = 384_000
    """Telephone to studio; a WAV that claims 1 Hz would be resampled to 16,000 times its size."""
    max_channels: int = 16
    max_spool_bytes: int = 256 * 2**20
    """A streamed container that has to be seekable (MP4 with its index at the end) is held in memory up to
    this size."""
    child_memory_bytes: int = 2 * 2**30
    """RLIMIT_AS of a child; decoders map libraries and buffers well below it."""
    jail: bool = True
    """Children are closed in by Landlock and a seccomp filter (frontend/jail.py). Off is for finding out
    whether decoding fails because of it: a C library may want a system call that the filter does not list."""
    child_cpu_s: int = 3600
    """CPU seconds one file may cost, or each channel of one whose channels are told apart (`split`): 24 h of
    audio need about 350 s at 0.004 s per second."""
    max_end_silence_time: int = 0
    """FSMN-VAD's option under FunASR's name: ms of silence that end a segment. 0 is what FunASR 1.4.16 does
    unasked, a schedule from 2,000 ms downwards as the segment grows."""
    max_utterance_s: float = 30.0
    """SenseVoiceSmall was trained on up to 30 s; attention memory grows with the square."""
    max_whole_s: float = 60.0
    """Longest recording that is taken as one utterance when a request switches VAD off."""
    merge_length_s: float = 15.0
    """Neighbouring segments are joined while the joined length stays below this (FunASR's option of the same
    name)."""
    merge_gap_s: float = 0.5
    """... and only across gaps up to this: a longer pause is a boundary, and silence is never sent to the
    model."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one run of the model may hold; a frame is one LFR frame of 60 ms."""

    max_batch_frames: int = 4_096
    """Frames of all utterances together (about 245 s of speech): bounds the activations to about 200 MiB in
    float32. What memory allows; on a CPU time is shorter, and the next limit smaller."""
    cpu_frames_per_thread: int = 96
    """The same on a CPU, for each thread: nobody's turn comes before a batch has ended, so it holds what
    makes it efficient and no more. Of 5 s clips by 8 clients, the full-size model in float32 on two threads
    answered 21.0 s of audio a second three at a time (128), 20.0 two at a time (96) and 18.8 one by one (64);
    95 % of the answers came within 2.39, 2.24 and 2.24 s."""
    max_batch_attention: int = 4_096 * 512
    """Sum over utterances of frames squared: attention is quadratic in one utterance and linear in their
    number."""
    max_batch_utterances: int = 64
    """Bounds the time until the first result of a batch when all are very short."""
    stuck_after_s: float = 120.0
    """A batch that runs longer stops the watchdog pings, so that systemd restarts the daemon."""
    max_failures_in_a_row: int = 32
    """So many failed utterances without one success mean a broken device: the daemon ends, to be started
    afresh. One that never had the memory it needs does not count, unless it is shorter than two seconds: the
    machine may be small, and whoever sends long ones would end the daemon for all."""


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """Who may ask how much, and how long they may take."""

    max_connections: int = 1_024
    """Each costs a descriptor and some tens of KiB, idle ones too; memcached's default."""
    max_connections_per_uid: int = 512
    """Half of all: one user's runaway script leaves room for the others."""
    max_jobs: int = 256
    """Accepted and unfinished, over all connections; beyond it `busy` with a time to come back."""
    max_jobs_per_uid: int = 128
    """Half of all, as with connections: one user's batch leaves room for the others."""
    max_jobs_per_connection: int = 32
    """Several times what keeps the daemon busy from one client (`svctl` sends 6 at once)."""
    max_queued_audio_s: float = 4 * 3600.0
    max_queued_audio_per_uid_s: float = 3600.0
    """Audio accepted and not yet recognised. A job is charged by its size, or by what was decoded of it where
    that is more: compressed files count for less than they hold until they are decoded. One job always
    fits."""
    max_job_charge_s: float = 600.0
    """Most that one job counts for: jobs take turns, so a ten-hour file delays a short one no more than a
    ten-minute file does."""
    assumed_bytes_per_s: int = 32_000
    """16-bit PCM at 16 kHz: what a byte is charged as before decoding."""
    max_outstanding_utterances: int = 16
    """Utterances of one job at the engine. Jobs take turns there, so this bounds memory (1.1 MiB for 30 s).
    Enough that the next batch is ready when one ends: 16 of 2 s are two batches on two threads, and 16 of
    15 s are one on CUDA."""
    hello_timeout_s: float = 5.0
    """From connecting to a whole hello. Programs say it at once; one that does not hangs, or is only there to
    hold a connection."""
    open_timeout_s: float = 5.0
    """For open and fstat of a source, which a network or FUSE file system may leave without an answer."""
    frame_timeout_s: float = 10.0
    """From a frame's first byte to its last; longer is a client that drips bytes."""
    idle_timeout_s: float = 300.0
    """A connection without a job and without a frame is closed; a stream that pauses is no job: a client that
    stops keeps no place. svctl says something every 5 s while it waits for others: not below 10."""
    max_write_buffer_bytes: int = 4 * 2**20
    """Answers kept for one client that does not read: some 400 segments of 30 s. Above half of it `progress`
    is left out; when it is full the request waits."""
    write_timeout_s: float = 30.0
    """A client that does not read for so long while its buffer is full is dropped."""
    max_upload_buffer_bytes: int = 1 * 2**20
    """Streamed bytes held for the decoder before the connection is no longer read."""
    drain_timeout_s: float = 25.0
    """Accepted jobs may finish for so long after SIGTERM. The end itself takes up to 3.5 s more (CLOSE_S of
    daemon.py, CUT_OFF_S of server.py); both together stay below systemd's TimeoutStopSec of 30 s."""
    backlog: int = 128
    """Connections that the kernel keeps for us to accept (listen(2)): a burst while one turn of the loop
    lasts. Whoever comes on top waits in connect(2)."""


def runtime_socket(environ: Mapping[str, str]) -> Path:
    """Default socket: the user's runtime directory for a user, /run for the system daemon."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime and os.geteuid() != 0:
        return Path(runtime) / "sensevoice" / "api.sock"
    return Path("/run/sensevoice/api.sock")


def default_models_dir(environ: Mapping[str, str]) -> Path:
    """Where fetched models live.

    What the unit says in STATE_DIRECTORY, the machine's for root, the user's own otherwise.
    """
    # Where systemd sets it, several folders are joined with colons; the first is the service's own.
    state = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if state:
        return Path(state) / "models"
    if os.geteuid() == 0:
        return Path("/var/lib/sensevoice/models")
    home = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME", "/")) / ".local" / "state"
    return Path(home) / "sensevoice" / "models"


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """Where what can be computed again is kept.

    What the unit says in CACHE_DIRECTORY, the machine's for root, the user's own otherwise.
    """
    given = environ.get("CACHE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/cache/sensevoice")
    home = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "/")) / ".cache"
    return Path(home) / "sensevoice"


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration of one daemon."""

    socket: Path
    models_dir: Path
    """Where `sensevoiced fetch` puts models, see `default_models_dir`."""
    socket_mode: int = 0o660
    model: str = DEFAULT_ASR
    """`demo`, a folder, or a fetched model's hub name."""
    vad: str = "auto"
    """`auto` (the model's own `vad/` folder or the default FSMN-VAD), a folder, or a fetched model's hub
    name."""
    device: str = "auto"
    precision: str = "auto"
    """`auto` is float16 on CUDA and float32 on a CPU. int8 (CPU only) and bfloat16 are faster and smaller."""
    cache_dir: Path = field(default_factory=lambda: default_cache_dir(os.environ))
    """Where int8 weights are kept, so that they are quantised once; see `default_cache_dir`."""
    engine: str = "torch"
    threads: int = 0
    """Threads of the engine on CPU; 0 means one per core this process may use."""
    log_level: str = "info"
    load_timeout_s: float = 600.0
    """Loading and warm-up may ask systemd for more time for so long: a cold disk is slow, a hanging one never
    ends."""
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    batch: BatchLimits = field(default_factory=BatchLimits)
    serving: ServingConfig = field(default_factory=ServingConfig)
