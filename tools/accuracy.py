"""Prints the demo model's accuracy on held-out voices and unseen combinations: `make accuracy`.

    python tools/accuracy.py            # the shipped model
    python tools/accuracy.py --card     # and write the tables into its model card

Needs libespeak-ng, which makes the test set anew from fixed seeds.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from demo.espeak import EspeakMissingError
from demo.evaluate import run

DEMO = Path(__file__).resolve().parent.parent / "sensevoiced" / "demo"
START, END = "<!-- tables: written by tools/accuracy.py --card -->", "<!-- end of tables -->"


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="`demo` or a model folder")
    parser.add_argument(
        "--card", action="store_true", help="write the tables into the demo model's README.md"
    )
    parser.add_argument("--verbose", action="store_true", help="print what went wrong, clip by clip")
    args = parser.parse_args()
    directory = DEMO if args.model == "demo" else Path(args.model)
    try:
        reports = run(args.model, directory, verbose=args.verbose)
    except EspeakMissingError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    if args.card:
        card = directory / "README.md"
        head, _, rest = card.read_text(encoding="utf-8").partition(START)
        tail = rest.partition(END)[2]
        tables = "\n\n".join(report.table() for report in reports)
        card.write_text(f"{head}{START}\n\n{tables}\n\n{END}{tail}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
