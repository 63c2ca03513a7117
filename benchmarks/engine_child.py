"""Runs the product's engine as a child: tokens of recordings at one precision, alone and in company.

`python -m benchmarks.engine_child` reads a JSON object on standard input (model, vad, device, precision,
files) and writes one to the file it is told (out). What a recording's neighbours in a batch do to it is
counted here, where batches can be chosen.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.speech import NOWHERE, Ear
from sensevoiced.engine import reading
from sensevoiced.engine.sensevoice import TorchEngine
from sensevoiced.jobs import Options, Recognition, Utterance
from sensevoiced.models import find_asr

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TAGS = 4
COMPANY_FRAMES = 1_500
"""Of one batch, 90 s: more would be none of the batches that a daemon runs on a CPU."""
COMPANIES = 2
"""Orders in which all utterances are batched with others."""


@dataclass
class Heard:
    """Notes every path that the engine turns into text, which is where its tokens can be had."""

    ids: list[tuple[int, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Stand in the place of the function that reads a path."""
        names = vars(reading)
        read = names["recognition"]

        def noting(path: Any, *args: Any, **kwargs: Any) -> Recognition:
            blank = kwargs["blank"]
            spoken = [i for i, _ in groupby(path.ids[TAGS:]) if i != blank]
            self.ids.append((*path.ids[:TAGS], *spoken))
            found: Recognition = read(path, *args, **kwargs)
            return found

        names["recognition"] = noting


def main() -> None:
    """Read what is wanted, do it, write what was found."""
    asked = json.load(sys.stdin)
    model = find_asr(asked["model"], NOWHERE)
    ear = Ear(asked["model"], Path(asked["vad"]))
    files = [Path(file) for file in asked["files"]]
    utterances = [(file.name, utterance) for file in files for utterance in ear.utterances(file)]
    engine = TorchEngine.load(model, device=asked["device"], precision=asked["precision"], threads=0)
    heard = Heard()
    alone = [engine.run([(utterance, Options())])[0] for _, utterance in utterances]
    written = [
        {"file": file, "ids": ids, "raw": found.raw}
        for (file, _), ids, found in zip(utterances, heard.ids, alone, strict=True)
    ]
    checked, different = 0, []
    for seed in range(COMPANIES):
        for company in companies([utterance for _, utterance in utterances], seed):
            together = engine.run([(utterances[i][1], Options()) for i in company])
            checked += len(company)
            different += [
                {"file": utterances[i][0], "alone": alone[i].raw, "in company": found.raw, "of": len(company)}
                for i, found in zip(company, together, strict=True)
                if said(found) != said(alone[i])
            ]
    Path(asked["out"]).write_text(
        json.dumps(
            {
                "utterances": written,
                "checked": checked,
                "different": different,
                "precision": engine.info.precision,
                "device": engine.info.device,
            }
        )
    )


def said(found: Recognition) -> tuple[object, ...]:
    """What must not depend on the company: everything but the scores."""
    return found.language, found.emotion, found.event, found.itn, found.text, found.raw, found.words


def companies(utterances: Sequence[Utterance], seed: int) -> Iterator[list[int]]:
    """Every utterance once, in batches of changing size and neighbours."""
    draw = random.Random(seed)
    order = list(range(len(utterances)))
    draw.shuffle(order)
    batch: list[int] = []
    frames, most = 0, draw.randint(2, 16)
    for i in order:
        if batch and (len(batch) == most or frames + utterances[i].frames > COMPANY_FRAMES):
            yield batch
            batch, frames, most = [], 0, draw.randint(2, 16)
        batch.append(i)
        frames += utterances[i].frames
    if batch:
        yield batch


if __name__ == "__main__":
    main()
