"""Owns the demo model's report: a test set from fixed seeds, recognised by the product's engine.

The test voices are heard here and in the sample clips only; the texts are those that training left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from demo.clips import EMOTIONS, Clip, Recipe, draw_clip
from demo.espeak import TEST_VARIANTS
from demo.features import LFR_N, fbank, read_cmvn, stack
from demo.metrics import Recognised, Score, Truth
from demo.phrases import LANGUAGES, SPACED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

SEED = 3_000_000  # of the first test clip
SPEECH_CLIPS = 108  # in each language
EVENT_CLIPS, SILENT_CLIPS = 60, 60
BATCH = 16
FRAME_S = 0.01 * LFR_N

SPEECH = Recipe(
    TEST_VARIANTS, unseen=True, event_alone=0.0, nospeech=0.0, noise=0.5, snr_db=(15.0, 35.0),
    reverb=0.1, telephone=0.0, clipping=0.0,
)  # fmt: skip
HEAVY = replace(SPEECH, noise=1.0, snr_db=(3.0, 12.0), reverb=0.5, telephone=0.4, clipping=0.1)
CONDITIONS = {"light noise": SPEECH, "heavy noise, reverberation, telephone line": HEAVY}


class Recogniser(Protocol):
    """Whatever turns features into tags and text."""

    def recognise(self, features: list[NDArray[np.float32]], language: str, *, itn: bool) -> list[Recognised]:
        """Recognise arrays [frames, 560] after CMVN, answers in their order."""


class ProductEngine:
    """The engine that the daemon runs, on the CPU in float32."""

    def __init__(self, model: str) -> None:
        """Load `demo` or a model folder."""
        from sensevoiced.engine.sensevoice import TorchEngine  # noqa: PLC0415 - torch is slow to import
        from sensevoiced.models import find_asr  # noqa: PLC0415

        self.model = find_asr(model, Path("/nonexistent"))
        self.engine = TorchEngine.load(self.model, device="cpu", precision="float32", threads=0)

    def recognise(self, features: list[NDArray[np.float32]], language: str, *, itn: bool) -> list[Recognised]:
        """Recognise arrays [frames, 560] after CMVN, answers in their order."""
        from sensevoiced.jobs import Options, Utterance  # noqa: PLC0415

        answers: list[Recognised] = []
        for start in range(0, len(features), BATCH):
            work = [
                (
                    Utterance(i, 0.0, len(x) * FRAME_S, x.tobytes(), len(x), x.shape[1]),
                    Options(language, itn=itn),
                )
                for i, x in enumerate(features[start : start + BATCH])
            ]
            for found in self.engine.run(work):
                itn_tag = "withitn" if found.itn else "woitn"
                answers.append(Recognised(found.language, found.emotion, found.event, itn_tag, found.text))
        return answers


def test_clips(recipe: Recipe) -> Iterator[Clip]:
    """Make the test set under `recipe`: speech in each language, events alone, and noise or silence alone."""
    seed = SEED
    for language in LANGUAGES:
        for _ in range(SPEECH_CLIPS):
            yield draw_clip(recipe, seed, language)
            seed += 1
    for count, kind in (
        (EVENT_CLIPS, replace(recipe, event_alone=1.0)),
        (SILENT_CLIPS, replace(recipe, nospeech=1.0)),
    ):
        for _ in range(count):
            yield draw_clip(kind, seed)
            seed += 1


@dataclass(frozen=True, slots=True)
class Report:
    """The scores under one condition."""

    condition: str
    score: Score
    wrong: list[str]

    def table(self) -> str:
        """A Markdown table of every figure."""
        score = self.score
        rows = [f"**{self.condition}**", "", "| | without ITN | with ITN |", "|---|---|---|"]
        for language in LANGUAGES:
            kind = "WER" if language == "en" else "CER"
            rows.append(
                f"| {kind} {language} | {score.error(f'{language} plain'):.1f} % "
                f"| {score.error(f'{language} itn'):.1f} % |"
            )
            if language == "en":
                letters = [f"{score.error(f'{language} {form} letters'):.1f} %" for form in ("plain", "itn")]
                rows.append(f"| CER {language} | {letters[0]} | {letters[1]} |")
        rows += ["", "| | right |", "|---|---|"]
        order = (*LANGUAGES, "nospeech", "withitn", "woitn", *EMOTIONS, "Speech", "BGM")
        for name in ("language", "itn", "emotion", "event"):
            rows.append(f"| **{name}** | {score.tag(name):.1f} % of {score.asked[name]} |")
            parts = [k.split()[1] for k in score.asked if k.startswith(f"{name} ")]
            parts.sort(key=lambda part: order.index(part) if part in order else len(order))
            counts = (f"{p} {score.right[f'{name} {p}']}/{score.asked[f'{name} {p}']}" for p in parts)
            rows.append(f"| | {', '.join(counts)} |")
            if name == "language":
                asked = sum(score.asked[f"language {language}"] for language in LANGUAGES)
                right = sum(score.right[f"language {language}"] for language in LANGUAGES)
                rows.append(f"| language, where somebody speaks | {100 * right / asked:.1f} % of {asked} |")
        rows.append(f"| text where nothing is said | {score.false_text} of {score.silent} |")
        return "\n".join(rows)


def measure(recogniser: Recogniser, shift: NDArray[np.float32], scale: NDArray[np.float32]) -> list[Report]:
    """Recognise the test set under every condition, each clip without and with ITN, language `auto`."""
    reports = []
    for condition, recipe in CONDITIONS.items():
        clips = list(test_clips(recipe))
        features = [(stack(fbank(clip.samples)) + shift) * scale for clip in clips]
        score, wrong = Score(), []
        for itn in (False, True):
            for clip, got in zip(clips, recogniser.recognise(features, "auto", itn=itn), strict=True):
                truth = _truth(clip, itn=itn)
                score.add(truth, got)
                if not itn and _differs(truth, got):
                    wrong.append(f"{truth.language} {truth.emotion} {truth.event} {truth.text!r}: {got}")
        reports.append(Report(condition, score, wrong))
    return reports


def _truth(clip: Clip, *, itn: bool) -> Truth:
    text = "" if clip.sentence is None else clip.sentence.with_itn if itn else clip.sentence.without_itn
    return Truth(clip.language, clip.emotion, clip.event, text, itn)


def _differs(truth: Truth, got: Recognised) -> bool:
    space = " " if truth.language in SPACED else ""
    return truth.text.replace(" ", space) != got.text or truth.language != got.language


def run(model: str, directory: Path, *, verbose: bool) -> Sequence[Report]:
    """Measure the model in `directory` (named `model` to the product) and print its tables."""
    shift, scale = read_cmvn(directory / "am.mvn")
    reports = measure(ProductEngine(model), shift, scale)
    for report in reports:
        print(report.table(), end="\n\n", flush=True)
        if verbose:
            print("\n".join(report.wrong), flush=True)
    return reports
