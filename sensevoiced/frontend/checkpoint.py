"""Reads tensors out of a torch.save() file into numpy arrays.

Must never import torch, nor run what a pickle asks for.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from math import prod
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

MAX_PICKLE_BYTES = 16 * 2**20
"""The pickle holds names and shapes only: 917 tensors of SenseVoiceSmall need 110 KB."""

_DTYPES: Mapping[str, type[np.generic]] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
}
_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which trainers put the state dict, when they save more than that."""


class CheckpointError(ValueError):
    """The file is not a checkpoint that holds plain tensors; the message is one sentence."""


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Read every tensor of a zip checkpoint (torch.save since 1.6) by its state-dict name.

    Only tensor rebuilding is honoured: any other global named by the pickle is refused before it is looked
    up, so a crafted file cannot run code. Raises CheckpointError; OSError when the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            tree = _Tensors(archive).load()
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path} is not a checkpoint in torch's zip format (torch 1.6 or later)"
        ) from error
    except (pickle.UnpicklingError, KeyError, IndexError, TypeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is not a plain checkpoint: {error}") from error
    for name in _WRAPPERS:
        if isinstance(tree, dict) and isinstance(tree.get(name), dict):
            tree = tree[name]
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} holds no state dict")
    return {str(name): value for name, value in tree.items() if isinstance(value, np.ndarray)}


class _Tensors(pickle.Unpickler):
    """An unpickler that knows tensors and ordered dicts, and nothing else."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError("it has no data.pkl")
        if archive.getinfo(names[0]).file_size > MAX_PICKLE_BYTES:
            raise ValueError("its data.pkl is too large")
        self._prefix = names[0].removesuffix("data.pkl")
        self._order = "<"
        if self._prefix + "byteorder" in archive.namelist():
            self._order = ">" if archive.read(self._prefix + "byteorder").strip() == b"big" else "<"
        self._file: IO[bytes] = archive.open(names[0])
        super().__init__(self._file)

    def load(self) -> Any:
        with self._file:
            return super().load()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> NDArray[Any]:
        kind, dtype, key, _device, count = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"it refers to a {kind}")
        data = self._archive.read(f"{self._prefix}data/{key}")
        return np.frombuffer(data, np.dtype(dtype).newbyteorder(self._order), int(count))


def _rebuild(
    storage: NDArray[Any], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> NDArray[Any]:
    """Give a view of a storage as torch's _rebuild_tensor_v2 does, checked against the storage's end."""
    if any(n < 0 for n in (offset, *size, *stride)) or len(size) != len(stride):
        raise ValueError("a tensor has a negative size")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if prod(size) and last >= storage.size:
        raise ValueError("a tensor reaches beyond its storage")
    item = storage.itemsize
    view = np.lib.stride_tricks.as_strided(storage[offset:], size, tuple(step * item for step in stride))
    return np.ascontiguousarray(view.astype(storage.dtype.newbyteorder("=")))
