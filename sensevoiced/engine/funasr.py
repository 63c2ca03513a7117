"""The reference engine, over funasr.AutoModel; imports FunASR in load() only, because that takes 10 s.

What FunASR does to its process is undone here: torch's threads, random seeds, root logger, standard output.
"""

from __future__ import annotations

import contextlib
import logging
import random
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from sensevoiced.config import ConfigError
from sensevoiced.engine.checkpoint import load_network
from sensevoiced.engine.cores import Cores
from sensevoiced.engine.device import memory_bytes, pick_device, within_memory
from sensevoiced.engine.reading import Reading, rows_of, warm_up_batches
from sensevoiced.engine.richtext import TAG_FRAMES, Path
from sensevoiced.jobs import EngineInfo, Options, Recognition

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sensevoiced.engine.api import Work
    from sensevoiced.models import AsrModel


class FunasrEngine:
    """SenseVoiceSmall as FunASR runs it, from the same features as our own engine.

    `raw` is FunASR's own text. Scores, text and word times come from its own log-probabilities, seen by a
    hook on its CTC head, because its answer holds none. Options go to each call; utterances of equal options
    share one padded batch.
    """

    def __init__(self, automodel: Any, reading: Reading, info: EngineInfo, cores: Cores) -> None:
        """Take a funasr.AutoModel; `load` makes one."""
        self.info = info
        self._automodel = automodel
        self._reading = reading
        self._cores = cores
        self._device = torch.device(info.device)

    @classmethod
    def load(cls, model: AsrModel, *, device: str, precision: str, threads: int) -> FunasrEngine:
        """Load `model` through funasr.AutoModel, in float32; raises ConfigError in one sentence."""
        place = pick_device(device)
        if precision not in {"auto", "float32"}:
            raise ConfigError(
                f"engine funasr is the reference and runs in float32: choose precision auto, not {precision}."
            )
        reading = Reading.of(model)
        # FunASR serves on with random numbers where a checkpoint lacks a weight: ours says so in one sentence
        # first.
        network = load_network(model, vocabulary=reading.tokenizer.size)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        del network
        with _undone():
            try:
                from funasr import AutoModel  # noqa: PLC0415 - takes 10 s, and only this engine needs it
            except ImportError as error:
                raise ConfigError(
                    "engine funasr needs FunASR: install it with 'pip install sensevoiced[funasr]'."
                ) from error
            automodel = AutoModel(
                model=str(model.path),
                device=str(place),
                ncpu=torch.get_num_threads(),
                disable_update=True,
                disable_pbar=True,
                disable_log=True,
                trust_remote_code=False,
            )
        cores = Cores(threads, learns=place.type == "cpu")
        info = EngineInfo(
            name="funasr",
            model=model.name,
            device=str(place),
            precision="float32",
            parameters=parameters,
            feature_dim=model.frontend.dim,
            backend="funasr.AutoModel",
            threads=cores.most if place.type == "cpu" else 0,
        )
        return cls(automodel, reading, info, cores)

    def warm_up(self) -> None:
        """Run a few lengths, alone and together."""
        for batch in warm_up_batches(self.info.device, self._reading.frame_s, self.info.feature_dim):
            self.run(batch)

    def run(self, batch: Sequence[Work]) -> list[Recognition]:
        """Recognise a batch, results in its order.

        Raises OutOfMemory where the device has too little for it.
        """
        with self._cores.batch(sum(utterance.frames for utterance, _ in batch)):
            return within_memory(lambda: self._recognitions(batch))

    def device_memory_bytes(self) -> tuple[int, int] | None:
        """Give (allocated, total) bytes of the device's memory; None on the CPU."""
        return memory_bytes(self._device)

    def close(self) -> None:
        """Let go of the model; the engine is not used after it."""
        self._automodel = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _recognitions(self, batch: Sequence[Work]) -> list[Recognition]:
        groups: dict[tuple[str, bool], list[int]] = {}
        for i, (_, options) in enumerate(batch):
            groups.setdefault((options.language, options.itn), []).append(i)
        results: dict[int, Recognition] = {}
        for places in groups.values():
            group = [batch[i] for i in places]
            results |= zip(places, self._group(group, group[0][1]), strict=True)
        return [results[i] for i in range(len(batch))]

    def _group(self, group: Sequence[Work], options: Options) -> list[Recognition]:
        features = [rows_of(utterance, self.info.feature_dim) for utterance, _ in group]
        lengths = [TAG_FRAMES + len(rows) for rows in features]
        seen: list[torch.Tensor] = []
        hook = self._automodel.model.ctc.ctc_lo.register_forward_hook(lambda _m, _i, out: seen.append(out))
        try:
            answers = self._automodel.generate(
                input=pad_sequence(features, batch_first=True),
                input_len=torch.tensor([len(rows) for rows in features]),
                data_type="fbank",
                key="utterance",  # without one FunASR draws a name from the process's random numbers
                language=options.language,
                use_itn=options.itn,
            )
        finally:
            hook.remove()
        logits = seen[0].detach().float()
        tags = self._reading.tag_picks(logits[:, :TAG_FRAMES])
        # The same log_softmax as FunASR takes before its argmax: rounding makes ties of neighbours, and they
        # fall as its own do.
        best = logits.log_softmax(dim=-1).argmax(dim=-1).tolist()
        paths = [Path(best[i][:length], tags[i]) for i, length in enumerate(lengths)]
        return [
            replace(result, raw=answer["text"])
            for result, answer in zip(self._reading.recognitions(group, paths), answers, strict=True)
        ]


@contextlib.contextmanager
def _undone() -> Iterator[None]:
    """Put back what FunASR changes in its process: root logger, random seeds, torch's threads.

    Its prints go to stderr.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    threads = torch.get_num_threads()
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state FunASR seeds
    try:
        with torch.random.fork_rng(), contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        torch.set_num_threads(threads)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002 - as above
