"""Device, precision, threads, and what happens when memory is full; imports torch only."""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING, TypeVar

import torch

from sensevoiced.config import PRECISIONS, ConfigError
from sensevoiced.engine.api import DeviceLost, OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Callable

_ALLOCATION_FAILURES = (
    "can't allocate memory",
    "std::bad_alloc",
    "could not create a primitive",
    "could not execute a primitive",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",
    "HOST_ALLOCATION_FAILED",
)
"""How plain RuntimeErrors say it: torch's allocator on the CPU, its C++ elsewhere, oneDNN, the CUDA
runtime, cuBLAS, cuDNN 8 and 9. oneDNN gives no reason; but what it cannot do at all shows at the start."""
_PARAMETERS_A_BYTE = 3
"""What the activations of a 30 s utterance and the libraries' own room come to, in any precision: 60 MiB at
234 M parameters, nothing to speak of for the demo model."""
_MOST_BYTES = 60 * 2**20
"""More than 64 MiB in one stretch would be given back."""
_PIECE_BYTES = 2**20
_TEACHES_BYTES = 2**25 - 2**13
_T = TypeVar("_T")


def pick_device(device: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device that is there; ConfigError where it is not."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda:0" if count else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        place = torch.device("meta")
    if place.type not in {"cpu", "cuda"}:
        raise ConfigError(f"device {device!r} is unknown: choose auto, cpu, cuda or cuda:N.")
    if place.type == "cuda" and (place.index or 0) >= count:
        raise ConfigError(
            f"device {device} is not there: torch sees {count} CUDA devices here; choose auto or cpu."
        )
    return torch.device("cuda", place.index or 0) if place.type == "cuda" else torch.device("cpu")


def pick_precision(precision: str, place: torch.device) -> str:
    """Turn `auto` into what the device does well, and refuse what it cannot do.

    On a CPU `auto` is float32: what 8 or 16 bits do to a model's texts has to be measured on that model.
    """
    if precision == "auto":
        precision = "float16" if place.type == "cuda" else "float32"
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is unknown: choose one of {', '.join(PRECISIONS)}.")
    if precision == "float16" and place.type == "cpu":
        raise ConfigError(
            "precision float16 needs a CUDA device: on the CPU choose float32, bfloat16 or int8."
        )
    if precision == "int8" and place.type != "cpu":
        raise ConfigError("precision int8 is for the CPU: on a CUDA device choose float16.")
    return precision


def within_memory(work: Callable[[], _T], release: Callable[[], None] = lambda: None) -> _T:
    """Do `work`; where the device's memory does not suffice, free what it held and raise OutOfMemory.

    `release` lets go of what is kept for the next batch.

    Raises DeviceLost where the device does not answer any more.
    """
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not _lacks_memory(error):
            _check_device(error)
            raise
        reason = str(error)
    # Outside the except block: while the exception was in scope, its traceback held the batch's tensors.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    release()
    trim_memory()
    raise OutOfMemory(reason)


def _check_device(error: Exception) -> None:
    """Raise DeviceLost where the device fails at doing nothing.

    So it is told from an error of one batch: after an illegal access, a failed assertion or a hardware fault
    every call in this process gets the same error (cudaErrorIllegalAddress and its kind in the CUDA runtime
    API's list of errors).
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch says no types
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        raise DeviceLost(str(error)) from error


def _lacks_memory(error: Exception) -> bool:
    """Tell torch's own exception for the device, Python's, and what libraries below torch raise."""
    # torch.OutOfMemoryError is the same class under a name that torch 2.4 does not have yet.
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in _ALLOCATION_FAILURES)


def trim_memory() -> None:
    """Give memory that loading, or a batch that did not fit, has freed back to the system: glibc only.

    glibc keeps it for later: after a first start in 8 bits several hundred MiB that nothing needs again.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def reserve_memory(parameters: int) -> None:
    """Take the memory that batches of a model need from the system now, and keep it: glibc only.

    A batch would fetch it page by page, the first long one most of it, and what the process holds would grow
    for a hundred requests. Freeing the first block teaches glibc to keep what is freed (the dynamic mmap
    threshold of mallopt(3), 32 MiB at most); the others then stay. To be called after the warm-up: what that
    keeps would lie behind the free memory otherwise, and what comes later behind both.
    """
    wanted = min(parameters // _PARAMETERS_A_BYTE, _MOST_BYTES)
    # Where there is less, batches are divided, and the daemon serves as well as it can.
    with contextlib.suppress(RuntimeError, MemoryError):
        torch.empty(_TEACHES_BYTES, dtype=torch.uint8)
        pieces = [torch.zeros(_PIECE_BYTES, dtype=torch.uint8) for _ in range(wanted // _PIECE_BYTES)]
        pieces.clear()


def memory_bytes(device: torch.device) -> tuple[int, int] | None:
    """Give (allocated, total) bytes of a CUDA device; None for the CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
