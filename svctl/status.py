"""The daemon's status as a table for people; a pure function that never fails on a fact that is not there."""

from __future__ import annotations

from svctl.terminal import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

_UNKNOWN = "-"
_LACKS = {"model": "model being loaded", "process": "no process free", "share": "user's share in use"}
"""Why a request does not begin, in words."""


def table(status: Mapping[str, Any]) -> str:
    """One `name  value` line per fact; what this daemon does not report, or does not know yet, is `-`."""
    facts = _Facts(status)
    memory, queue, jobs, batches, frontend = (
        _Facts(status.get(name) or {}) for name in ("memory", "queue", "jobs", "batches", "frontend")
    )
    children = (status.get("memory") or {}).get("children") or []
    busy = sum(bool(child.get("busy")) for child in children)
    rss = f"{memory.mib('daemon_rss_bytes')} daemon, {memory.mib('children_rss_bytes')} front end"
    backend = f" ({status['backend']})" if status.get("backend") else ""
    lost = f"{frontend.text('crashed')} crashed, {frontend.text('timeouts')} timed out"
    if waiting := (status.get("frontend") or {}).get("waiting"):
        most = f"a user has {frontend.text('max_per_user')} at most"
        lost = f"{_count(waiting, 'request waits', 'requests wait')} for one ({most}), {lost}"
    jail = (status.get("frontend") or {}).get("jail")
    rows = [
        ("daemon", f"{facts.text('server')}, pid {facts.text('pid')}, {facts.text('state')}"),
        ("model", facts.text("model") + facts.aside("parameters", facts.millions, "{} parameters")),
        ("vad", facts.text("vad")),
        ("engine", f"{facts.text('engine')} on {facts.text('device')}, {facts.text('precision')}{backend}"),
        ("threads", facts.text("threads")),
        (
            "uptime",
            facts.duration("uptime_s") + facts.aside("ready_after_s", facts.duration, "ready after {}"),
        ),
        ("memory", rss),
        ("front end", f"{_count(len(children), 'process', 'processes')}, {busy} busy, {lost}"),
    ]
    if jail or (jail is not None and status.get("state") == "ready"):  # none yet is not none
        rows.append(("closed in", f"by {' and '.join(map(str, jail)) or 'nothing but limits'}"))
    if memory.text("gpu_allocated_bytes") != _UNKNOWN:
        rows.append(("gpu memory", f"{memory.mib('gpu_allocated_bytes')} of {memory.mib('gpu_total_bytes')}"))
    active = f"{queue.text('jobs_active')} active jobs, {queue.text('utterances')} utterances, "
    most = f"{batches.text('max_frames')} frames of 60 ms, {batches.text('max_utterances')} utterances"
    audio = f"{facts.duration('audio_s')} recognised in {facts.duration('engine_busy_s')}"
    rows += [
        ("queue", f"{active}{queue.duration('audio_s')} of audio"),
        (
            "jobs",
            ", ".join(f"{jobs.text(name)} {name}" for name in ("done", "failed", "cancelled", "rejected")),
        ),
        (
            "batches",
            f"{batches.text('count')} of {batches.number('mean_size', 1)} utterances; at most {most}",
        ),
        ("audio", f"{audio} (RTF {facts.number('rtf', 4)})"),
        ("clients", f"{facts.text('connections')} connected, {facts.text('clients_rejected')} turned away"),
    ]
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:<{width}}  {printable(value)}\n" for name, value in rows)


def jobs(found: Sequence[Mapping[str, Any]]) -> str:
    """A line for each unfinished request, oldest first; names last, because they may be long."""

    def state(one: _Facts) -> str:
        waits_for = one.text("waits_for")
        return one.text("state") + (f", {_LACKS[waits_for]}" if waits_for in _LACKS else "")

    rows: list[tuple[str, ...]] = [("JOB", "USER", "STATE", "AGE", "READ", "DONE", "FILE")]
    for one in map(_Facts, found):
        times = (one.duration(name) for name in ("age_s", "decoded_s", "recognised_s"))
        rows.append((one.text("job"), _user(one), state(one), *times, one.text("label") or _UNKNOWN))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "".join(
        "  ".join(
            [*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), printable(row[-1])]
        )
        + "\n"
        for row in rows
    )


def models(names: Sequence[str], loaded: str | None) -> str:
    """A line for each model; a star and a word mark the one that is loaded."""
    return "".join(
        f"{'*' if name == loaded else ' '} {printable(name)}{' (loaded)' if name == loaded else ''}\n"
        for name in names
    )


def _user(facts: _Facts) -> str:
    """The user's name where this machine knows it."""
    import pwd  # noqa: PLC0415 - only `ps` names users

    try:
        return pwd.getpwuid(int(facts.text("uid"))).pw_name
    except (KeyError, ValueError, OverflowError):
        return facts.text("uid")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


class _Facts:
    """A mapping whose values can be shown without asking whether they are there."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def text(self, name: str) -> str:
        value = self._values.get(name)
        return _UNKNOWN if value is None else str(value)

    def number(self, name: str, digits: int) -> str:
        value = self._values.get(name)
        return _UNKNOWN if value is None else f"{value:.{digits}f}"

    def mib(self, name: str) -> str:
        value = self._values.get(name)
        return _UNKNOWN if value is None else f"{value / 2**20:.0f} MiB"

    def millions(self, name: str) -> str:
        value = self._values.get(name)
        return _UNKNOWN if value is None else f"{value / 1e6:.1f} M"

    def aside(self, name: str, shown: Callable[[str], str], sentence: str) -> str:
        """What stands in brackets behind another fact; nothing where it is not known."""
        return "" if self._values.get(name) is None else f" ({sentence.format(shown(name))})"

    def duration(self, name: str) -> str:
        value = self._values.get(name)
        if value is None:
            return _UNKNOWN
        minutes, seconds = divmod(int(value), 60)
        if not minutes:
            return f"{value:.1f} s"
        hours, minutes = divmod(minutes, 60)
        days, hours = divmod(hours, 24)
        parts = ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"))
        first = next(position for position, (amount, _) in enumerate(parts) if amount)
        return " ".join(f"{amount} {unit}" for amount, unit in parts[first : first + 2])
