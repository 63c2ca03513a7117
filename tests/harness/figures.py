"""What a test measured, beside the limit of its row; `record` is pytest's record_property."""

from __future__ import annotations

SLACK = 10
"""Limits in seconds are those of an idle machine. One that builds and tests on two cores takes several times
as long: only far beyond the limit a test fails, and the figure says how far it was."""


def note(record, sentence):
    """Put a figure that no limit belongs to into the table of `make faults`."""
    record("figure", sentence)


def within(record, what, found, limit, unit, *, slack=SLACK):
    """Put a figure into the table of `make faults`, and fail above `slack` times its limit.

    Between the two the row is "above" there, and not "held".
    """
    above = found > limit
    sentence = f"{what}: {found:.3g} {unit} (limit {limit:g} {unit}{', ABOVE' if above else ''})"
    note(record, sentence)
    if above:
        record("above", what)
    assert found <= slack * limit, sentence
