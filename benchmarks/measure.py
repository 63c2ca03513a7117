"""Owns what the kernel says of processes and of the machine; starts nothing and judges nothing."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
"""Resolution of CPU times in /proc."""
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "avx_vnni", "asimd", "bf16")
"""Instruction sets that decide how fast a matrix product is."""
PACKAGES = (
    *("torch", "numpy", "funasr", "sherpa-onnx", "onnxruntime", "fastapi", "uvicorn", "torchaudio"),
    *("kaldi-native-fbank", "av", "soundfile", "msgpack"),
)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of some processes together, from smaps_rollup(5) and status(5) below /proc."""

    rss: int
    pss: int
    """A page that n processes share counts 1/n in each, so that a sum counts nothing twice."""
    anonymous: int
    mapped: int
    """Resident pages of files: what the kernel can drop and read again."""
    peak: int
    """Highest RSS of each so far, summed."""


def memory(pids: list[int]) -> Memory:
    """Add up what processes hold; one that has ended counts nothing."""
    total = dict.fromkeys(("Rss", "Pss", "Anonymous", "VmHWM", "RssFile", "RssShmem"), 0)
    for pid in pids:
        for name in ("smaps_rollup", "status"):
            with contextlib.suppress(OSError):
                for key, kib in re.findall(r"^(\w+):\s+(\d+) kB", _read(pid, name), re.MULTILINE):
                    if key in total:
                        total[key] += int(kib) * 1024
    return Memory(
        rss=total["Rss"],
        pss=total["Pss"],
        anonymous=total["Anonymous"],
        mapped=total["RssFile"] + total["RssShmem"],
        peak=total["VmHWM"],
    )


def family(pid: int) -> list[int]:
    """A process and all its descendants, as they are now."""
    try:
        root = psutil.Process(pid)
        return [pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def cpu_s(pids: list[int]) -> float:
    """CPU seconds, user and system, that living processes have used."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            spent = psutil.Process(pid).cpu_times()
            total += spent.user + spent.system
    return total


def machine_facts(peers: Path) -> dict[str, Any]:
    """What a reader needs to compare: processor, memory, versions. `peers` is their environment's folder."""
    cpu = _cpuinfo()
    found = set(cpu.get("flags", cpu.get("Features", "")).split())
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS if flag in found],
        "ram_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "gpu": _gpus(),
        "ours": _versions(metadata.distributions()),
        "peers": _versions(
            metadata.distributions(path=[str(p) for p in peers.glob("lib/python*/site-packages")])
        ),
    }


def load() -> dict[str, Any]:
    """How busy the machine is: load averages, and the share of time that something waited for a CPU (PSI)."""
    pressure = ""
    with contextlib.suppress(OSError):
        pressure = Path("/proc/pressure/cpu").read_text().splitlines()[0]
    waiting = re.search(r"avg60=([\d.]+)", pressure)
    return {
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "cpu_pressure_60s_percent": float(waiting[1]) if waiting else None,
        "available_gib": round(psutil.virtual_memory().available / 2**30, 1),
    }


def _read(pid: int, name: str) -> str:
    return (Path("/proc") / str(pid) / name).read_text()


def _cpuinfo() -> dict[str, str]:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {}


def _gpus() -> list[str]:
    return [
        (path / "information").read_text().splitlines()[0].partition(":")[2].strip()
        for path in Path("/proc/driver/nvidia/gpus").glob("*")
    ]


def _versions(distributions: Any) -> dict[str, str]:
    found = {d.metadata["Name"].lower(): d.version for d in distributions if d.metadata["Name"]}
    return {name: found[name] for name in PACKAGES if name in found}
