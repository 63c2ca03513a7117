"""The table of `make faults`: what a row says where a figure is above its limit but fails no test."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from harness.figures import within

from tools.faults import ROWS, Table


def ran(table, row, *, found=1.0, outcome="passed"):
    """Let the table hear of a test of `row` whose figure, of a limit of 2 s, was `found`."""
    properties = []

    def record(name, value):
        properties.append((name, value))

    if outcome == "passed":
        within(record, "took", found, 2.0, "s")
    report = SimpleNamespace(
        nodeid=f"tests/faults/test_it.py::test_f{row:02}_it",
        when="call",
        failed=outcome == "failed",
        skipped=outcome == "skipped",
        longrepr=("file", 1, "Skipped: no GPU"),
        user_properties=properties,
    )
    table.pytest_runtest_logreport(report)


def lines_of(table):
    """Its lines by their first word."""
    return {line.split(maxsplit=1)[0]: line for line in reversed(table.lines())}


def test_a_row_above_its_figure_is_not_held_and_counted_apart():
    """One figure above its limit makes the row "above", whatever the row's other tests say."""
    table = Table()
    for number in range(1, len(ROWS) + 1):
        ran(table, number)
    assert table.lines()[-1] == "38 of 38 rows held"
    ran(table, 14, found=3.0)
    ran(table, 14)
    assert table.lines()[-1] == "37 of 38 rows held, 1 above its figure"
    ran(table, 17, found=19.0)
    assert table.lines()[-1] == "36 of 38 rows held, 2 above their figure"
    said = lines_of(table)
    assert said["F14"].split()[:3] == ["F14", "above", "3"]
    assert said["F13"].split()[:3] == ["F13", "held", "1"]


def test_a_failed_row_is_not_held_and_one_without_a_passed_test_was_not_run():
    """A failure outweighs a figure; a row of which everything was skipped did not hold anything."""
    table = Table()
    ran(table, 1, found=3.0)
    ran(table, 1, outcome="failed")
    ran(table, 2, outcome="skipped")
    said = lines_of(table)
    assert said["F01"].startswith("F01  NOT HELD")
    assert said["F02"].startswith("F02  not run")
    assert table.lines()[-1] == "0 of 38 rows held"


def test_ten_times_the_limit_fails_the_test():
    """Beyond what a busy machine explains the figure is a failure, and is recorded all the same."""
    recorded = []
    with pytest.raises(AssertionError, match="ABOVE"):
        within(lambda name, value: recorded.append((name, value)), "took", 20.1, 2.0, "s")
    assert [name for name, _ in recorded] == ["figure", "above"]
