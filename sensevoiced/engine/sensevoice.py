"""Our own engine: SenseVoiceSmall loaded, warmed up, run on batches of utterances; imports no other wing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sensevoiced.engine.checkpoint import load_network
from sensevoiced.engine.device import memory_bytes, pick_device, pick_precision, set_threads, within_memory
from sensevoiced.engine.encoder import LANGUAGE_QUERY, WITH_ITN_QUERY, WITHOUT_ITN_QUERY, SenseVoice
from sensevoiced.engine.linear import backend, replace_linears
from sensevoiced.engine.reading import Reading, rows_of, warm_up_batches
from sensevoiced.engine.richtext import TAG_FRAMES, Path
from sensevoiced.jobs import EngineInfo, Recognition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sensevoiced.engine.api import Work
    from sensevoiced.models import AsrModel

_HEAD_ROWS = 512
"""Rows whose logits exist at once: 512 x 25,055 float32 are 49 MiB, where a whole batch would need eight
times that."""


class TorchEngine:
    """SenseVoiceSmall on one device. Every method is called on one thread, the engine thread.

    Nothing here locks.
    """

    def __init__(self, network: SenseVoice, reading: Reading, info: EngineInfo) -> None:
        """Take a network that is on its device and in its precision; `load` makes one."""
        self.info = info
        self._network = network
        self._reading = reading
        self._device = torch.device(info.device)

    @classmethod
    def load(cls, model: AsrModel, *, device: str, precision: str, threads: int) -> TorchEngine:
        """Load `model`; `threads` 0 means one per core this process may use.

        Raises ConfigError in one sentence.
        """
        place = pick_device(device)
        dtype, precision_name = pick_precision(precision, place)
        set_threads(threads)
        reading = Reading.of(model)
        network = load_network(model, vocabulary=reading.tokenizer.size)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        # Cast before the move: half the bytes over the bus, and never two whole copies on the device.
        replace_linears(network.encoder, backend(place, dtype))
        # The head is float32 at every precision: with 8 or 11 bits of mantissa the best two of 25,055 logits
        # are often equal.
        replace_linears(network.ctc, backend(place, torch.float32))
        network.to(place)
        info = EngineInfo(
            name="torch",
            model=model.name,
            device=str(place),
            precision=precision_name,
            parameters=parameters,
            feature_dim=model.frontend.dim,
        )
        return cls(network, reading, info)

    def warm_up(self) -> None:
        """Run a few lengths, alone and together."""
        for batch in warm_up_batches(self._reading.frame_s, self.info.feature_dim):
            self.run(batch)

    def run(self, batch: Sequence[Work]) -> list[Recognition]:
        """Recognise a batch, results in its order.

        Raises OutOfMemory where the device has too little for it.
        """
        return self._reading.recognitions(batch, within_memory(lambda: self._paths(batch)))

    def device_memory_bytes(self) -> tuple[int, int] | None:
        """Give (allocated, total) bytes of the device's memory; None on the CPU."""
        return memory_bytes(self._device)

    def close(self) -> None:
        """Let go of the weights; the engine is not used after it."""
        self._network = self._network.to("meta")
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
        tag_rows = (packing.starts[:, None] + torch.arange(TAG_FRAMES, device=self._device)).flatten()
        best, tag_logits = self._best_ids(rows, tag_rows)
        tags = self._reading.tag_picks(tag_logits.view(len(batch), TAG_FRAMES, -1))
        ids = best.tolist()
        return [Path(ids[start:end], tags[i]) for i, (start, end) in enumerate(packing.spans)]

    def _best_ids(self, rows: torch.Tensor, tag_rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the best id of every row, and the logits of `tag_rows`, a block of logits at a time.

        The tag rows go first, so that they all lie in the first block.
        """
        is_speech = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        is_speech[tag_rows] = False
        order = torch.cat((tag_rows, is_speech.nonzero().flatten()))
        best = torch.empty(len(rows), dtype=torch.long, device=rows.device)
        tag_logits = rows.new_empty(0)
        step = max(_HEAD_ROWS, len(tag_rows))
        for start in range(0, len(order), step):
            block = order[start : start + step]
            logits = self._network.ctc(rows[block])
            best[block] = logits.argmax(dim=-1)
            if start == 0:
                tag_logits = logits[: len(tag_rows)].float()
        return best, tag_logits
