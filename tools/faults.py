"""`make faults`: runs the abuse tests and prints one row an id: whether it held, and its figures.

A figure above its row's limit, on a machine that had other work, fails no test below ten times the limit
(tests/harness/figures.py). Its row is "above" and not "held".
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, field

import pytest

FOLDERS = ("tests/faults", "tests/system")
ROWS = [f"F{number:02}" for number in range(1, 39)]
_NAMED = re.compile(r"\btest_f(\d\d)_")
FIGURE = "figure"
"""What a test gives to record_property for the table."""
ABOVE = "above"
"""... and what beside it for a figure that is above its row's limit."""


@dataclass
class Row:
    """What the tests of one id came to."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    above: bool = False
    """Whether a figure is above the row's limit."""

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.failed:
            return "NOT HELD"
        if self.passed:
            return "above" if self.above else "held"
        return "not run"


class Table:
    """A pytest plugin that gathers rows."""

    def __init__(self) -> None:
        """Begin with all ids, so that one without a test shows."""
        self.rows = {name: Row() for name in ROWS}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one phase of one test."""
        found = _NAMED.search(report.nodeid)
        row = self.rows.get(f"F{found[1]}") if found else None
        if row is None:
            return
        if report.failed:
            row.failed.append(f"{report.nodeid.split('::')[-1]} ({report.when})")
        elif report.skipped:
            row.skipped.append(str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else "skipped")
        elif report.when == "call":
            row.passed += 1
        if report.when == "call":
            row.figures += [str(value) for name, value in report.user_properties if name == FIGURE]
            row.above = row.above or any(name == ABOVE for name, _ in report.user_properties)

    def lines(self) -> list[str]:
        """The table, and below it what failed."""
        found = [f"{'id':<5}{'verdict':<10}{'tests':>5}  figures"]
        for name, row in self.rows.items():
            skipped = f"{len(row.skipped)} skipped: {row.skipped[0]}" if row.skipped else ""
            said = [*dict.fromkeys(row.figures), *([skipped] if skipped else [])] or [""]
            found.append(f"{name:<5}{row.verdict:<10}{row.passed:>5}  {said[0]}")
            found += [f"{'':22}{further}" for further in said[1:]]
        for name, row in self.rows.items():
            found += [f"{name} failed in {test}" for test in row.failed]
        verdicts = [row.verdict for row in self.rows.values()]
        above = verdicts.count("above")
        what = f", {above} above {'its' if above == 1 else 'their'} figure" if above else ""
        return [*found, f"{verdicts.count('held')} of {len(verdicts)} rows held{what}"]


def main() -> int:
    """Run, print, and give pytest's status: figures above their limit do not change it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slow", action="store_true", help="the long ones too")
    parser.add_argument("more", nargs="*", help="for pytest, after --")
    args = parser.parse_args()
    table = Table()
    marker = ["-m", "slow or not slow"] if args.slow else []
    status = pytest.main(["-q", *marker, "-k", "test_f", *FOLDERS, *args.more], plugins=[table])
    sys.stdout.write("\n" + "\n".join(table.lines()) + "\n")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
