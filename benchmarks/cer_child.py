"""Runs the demo model over its evaluation set at several precisions, as a child: errors by language.

`python -m benchmarks.cer_child` reads a JSON object on standard input (device, precisions) and writes one to
the file it is told (out). The set is the one of `make accuracy`, synthesised once for all precisions.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from demo import evaluate  # type: ignore[import-not-found] # noqa: E402 - tools/ is a folder of programs
from demo.espeak import EspeakMissingError  # type: ignore[import-not-found] # noqa: E402 - the same
from demo.features import read_cmvn  # type: ignore[import-not-found] # noqa: E402 - the same
from demo.phrases import LANGUAGES  # type: ignore[import-not-found] # noqa: E402 - the same

from sensevoiced.engine.sensevoice import TorchEngine  # noqa: E402 - after the path
from sensevoiced.models import DEMO_DIR  # noqa: E402 - the same

if TYPE_CHECKING:
    from collections.abc import Sequence


class Noting:
    """The product's engine at one precision, whose texts are kept."""

    def __init__(self, device: str, precision: str) -> None:
        """Load the demo model."""
        self._engine = evaluate.ProductEngine("demo")
        self._engine.engine = TorchEngine.load(
            self._engine.model, device=device, precision=precision, threads=0
        )
        self.texts: list[str] = []

    def recognise(self, features: Sequence[Any], language: str, *, itn: bool) -> list[Any]:
        """Recognise as the evaluation asks for it."""
        found: list[Any] = self._engine.recognise(features, language, itn=itn)
        self.texts += [one.text for one in found]
        return found


def main() -> None:
    """Measure every precision, and write what was found."""
    asked = json.load(sys.stdin)
    clips = evaluate.test_clips
    evaluate.test_clips = cache(lambda recipe: list(clips(recipe)))
    shift, scale = read_cmvn(DEMO_DIR / "am.mvn")
    found: dict[str, Any] = {}
    reference: list[str] = []
    for precision in asked["precisions"]:
        noting = Noting(asked["device"], precision)
        try:
            reports = evaluate.measure(noting, shift, scale)
        except EspeakMissingError as error:
            sys.exit(str(error))
        reference = reference or noting.texts
        found[precision] = {
            "conditions": {report.condition: _errors(report.score) for report in reports},
            "identical": sum(a == b for a, b in zip(noting.texts, reference, strict=True)),
            "transcripts": len(reference),
        }
    Path(asked["out"]).write_text(json.dumps(found))


def _errors(score: Any) -> dict[str, list[int]]:
    """Wrong and all characters by language, with and without ITN together."""
    letters = {"en": " letters"}  # words are what English is usually counted in
    names = {x: [f"{x} {form}{letters.get(x, '')}" for form in ("plain", "itn")] for x in LANGUAGES}
    return {
        language: [sum(score.errors[n] for n in keys), sum(score.reference[n] for n in keys)]
        for language, keys in names.items()
    }


if __name__ == "__main__":
    main()
