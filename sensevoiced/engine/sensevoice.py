"""Our own engine: SenseVoiceSmall loaded, warmed up, run on batches of utterances; imports no other wing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sensevoiced.config import ConfigError
from sensevoiced.engine import cache, native
from sensevoiced.engine.checkpoint import load_network
from sensevoiced.engine.cores import Cores, give_way
from sensevoiced.engine.device import (
    memory_bytes,
    pick_device,
    pick_precision,
    reserve_memory,
    trim_memory,
    within_memory,
)
from sensevoiced.engine.encoder import LANGUAGE_QUERY, WITH_ITN_QUERY, WITHOUT_ITN_QUERY, SenseVoice
from sensevoiced.engine.fitting import fit
from sensevoiced.engine.precision import choose
from sensevoiced.engine.reading import Reading, rows_of, warm_up_batches
from sensevoiced.engine.richtext import TAG_FRAMES, Path
from sensevoiced.jobs import EngineInfo, Recognition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path as FilePath

    from sensevoiced.engine.api import Work
    from sensevoiced.models import AsrModel

_HEAD_ROWS = 64
"""Rows whose logits exist at once: 64 x 25,055 float32 are 6 MiB, and more rows are no faster."""
_KEPT_BYTES = 8 * 2**20
"""Working memory of compiled layers that waits for the next batch: enough for 15 s in float32."""


class TorchEngine:
    """SenseVoiceSmall on one device. Every method is called on one thread, the engine thread.

    Nothing here locks.
    """

    def __init__(self, network: SenseVoice, reading: Reading, info: EngineInfo, cores: Cores) -> None:
        """Take a network that is on its device and in its precision; `load` makes one."""
        self.info = info
        self._network = network
        self._reading = reading
        self._cores = cores
        self._device = torch.device(info.device)

    @classmethod
    def load(
        cls, model: AsrModel, *, device: str, precision: str, threads: int, cache_dir: FilePath | None = None
    ) -> TorchEngine:
        """Load `model`; `threads` 0 means one per core this process may use.

        8-bit weights are kept in `cache_dir`, where there is one. Raises ConfigError in one sentence.
        """
        place = pick_device(device)
        precision = pick_precision(precision, place)
        give_way()
        cores = Cores(threads, learns=place.type == "cpu")
        reading = Reading.of(model)
        network = load_network(model, vocabulary=reading.tokenizer.size)
        try:
            backend = choose(place, precision, network.dimensions)
        except ValueError as error:
            raise ConfigError(
                "precision int8 needs oneDNN, which this build of torch lacks: choose float32 or bfloat16."
            ) from error
        parameters = sum(parameter.numel() for parameter in network.parameters())
        # Before the move: half the bytes over the bus, and never two whole copies on the device.
        fit(network, backend, cache.file_of(model.weights, cache_dir) if cache_dir else None)
        network.to(place)
        trim_memory()
        info = EngineInfo(
            name="torch",
            model=model.name,
            device=str(place),
            precision=precision,
            parameters=parameters,
            feature_dim=model.frontend.dim,
            backend=backend.name,
            threads=cores.most if place.type == "cpu" else 0,
        )
        return cls(network, reading, info, cores)

    def warm_up(self) -> None:
        """Run a few lengths, alone and together, and take the memory that longer ones need."""
        for batch in warm_up_batches(self.info.device, self._reading.frame_s, self.info.feature_dim):
            self.run(batch)
        if self._device.type == "cpu":
            reserve_memory(self.info.parameters)

    def run(self, batch: Sequence[Work]) -> list[Recognition]:
        """Recognise a batch, results in its order.

        Raises OutOfMemory where the device has too little for it.
        """
        with self._cores.batch(sum(utterance.frames for utterance, _ in batch)):
            paths = within_memory(lambda: self._paths(batch), native.release)
        native.release(beyond=_KEPT_BYTES)
        return self._reading.recognitions(batch, paths)

    def between_layers(self, do: Callable[[], None]) -> None:
        """Have `do` called after each layer of the network; it may call `run`."""
        self._network.encoder.between_layers = do

    def device_memory_bytes(self) -> tuple[int, int] | None:
        """Give (allocated, total) bytes of the device's memory; None on the CPU."""
        return memory_bytes(self._device)

    def close(self) -> None:
        """Let go of the weights; the engine is not used after it."""
        del self._network
        native.release()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _paths(self, batch: Sequence[Work]) -> list[Path]:
        features = [rows_of(utterance, self.info.feature_dim).to(self._device) for utterance, _ in batch]
        queries = [
            (LANGUAGE_QUERY[options.language], WITH_ITN_QUERY if options.itn else WITHOUT_ITN_QUERY)
            for _, options in batch
        ]
        rows, packing = self._network(features, queries)
        best, tag_logits = [], []
        for start, end in packing.spans:
            ids, logits = self._best_ids(rows[start:end])
            best.append(ids)
            tag_logits.append(logits)
        tags = self._reading.tag_picks(torch.stack(tag_logits))
        # One list for all: on a GPU each is a wait for the device.
        ids_of_all = torch.cat(best).tolist()
        return [Path(ids_of_all[start:end], tags[i]) for i, (start, end) in enumerate(packing.spans)]

    def _best_ids(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the best id of every row of one utterance, and the logits of its tag rows in float32.

        Utterance by utterance and in equal blocks, so that nothing depends on the company.
        """
        best: list[torch.Tensor] = []
        tag_logits = rows.new_empty(0)
        for block in torch.split(rows, _HEAD_ROWS):
            logits = self._network.ctc(block)
            if not best:
                tag_logits = logits[:TAG_FRAMES].float()
            best.append(logits.argmax(dim=-1))
        return torch.cat(best), tag_logits
