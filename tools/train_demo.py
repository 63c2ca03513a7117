"""Makes the demo model from nothing: a corpus spoken by espeak-ng, trained recogniser and VAD, a report.

    python tools/train_demo.py                      # everything, about an hour and a quarter on 2 cores
    python tools/train_demo.py --train --steps 500  # only this stage

Never imported by the product.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
sys.path.insert(0, str(TOOLS))
os.environ["PYTHONPATH"] = os.pathsep.join([str(TOOLS), os.environ.get("PYTHONPATH", "")])

STEPS = 6200  # optimiser steps of the shipped model
CLIPS = 30_000
DEVELOPMENT_CLIPS = 500
SEED = 20_261


STAGES = {
    "synth": "make the corpus",
    "train": "train the recogniser",
    "vad": "train the VAD",
    "samples": "speak the sample clips",
    "evaluate": "print the tables of make accuracy",
}


def arguments() -> argparse.Namespace:
    """Parse the command line. Without a stage, all stages run."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    for stage, what in STAGES.items():
        parser.add_argument(f"--{stage}", action="store_true", help=what)
    root = TOOLS.parent
    parser.add_argument("--work", type=Path, default=root / "build" / "train_demo", help="corpus and states")
    parser.add_argument("--out", type=Path, default=root / "sensevoiced" / "demo", help="the model's folder")
    parser.add_argument("--clips", type=int, default=CLIPS, help="training clips")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of about 2,400 frames of 60 ms each")
    parser.add_argument("--workers", type=int, default=2, help="processes, for synthesis and training")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--resume", action="store_true", help="go on from the last saved state")
    return parser.parse_args()


def main() -> None:
    """Run the asked stages in their order."""
    args = arguments()
    asked = {stage for stage in STAGES if getattr(args, stage)} or set(STAGES)
    # Imports wait for their stage: torch is slow to load and the synthesis does not need it.
    if "synth" in asked:
        from demo.dataset import synthesise  # noqa: PLC0415

        synthesise(args.work, "development", DEVELOPMENT_CLIPS, args.workers)
        synthesise(args.work, "train", args.clips, args.workers)
    if "train" in asked:
        from demo.train import Settings, train  # noqa: PLC0415

        train(Settings(args.work, args.out, args.steps, args.seed, args.workers, args.resume))
    if "vad" in asked:
        from demo.vad import train_vad  # noqa: PLC0415

        train_vad(args.work, args.out / "vad", args.seed)
    if "samples" in asked:
        from demo.samples import write_samples  # noqa: PLC0415

        write_samples(args.out / "samples")
    if "evaluate" in asked:
        from demo.evaluate import run  # noqa: PLC0415

        run(str(args.out.resolve()), args.out, verbose=False)


if __name__ == "__main__":
    main()
