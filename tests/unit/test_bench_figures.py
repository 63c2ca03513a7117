"""The benchmark's statistics and tables, which no machine has a part in."""

import json

import pytest

from benchmarks.records import Records, percentile, ratio, slope_per_100
from benchmarks.table import (
    WIDTH,
    Table,
    columns,
    failures,
    least_target,
    mebibytes,
    seconds,
    significant,
    target,
    targets_table,
)
from benchmarks.workloads import clip, memory, precision, restart, several


def test_a_percentile_lies_between_the_two_nearest_ranks():
    """As numpy computes it by default."""
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([1.0, 2.0], 95) == pytest.approx(1.95)
    assert percentile([7.0], 95) == 7.0


def test_a_ratio_of_something_missing_is_missing():
    """Nothing is compared with a contender that did not run."""
    assert ratio(3.0, 2.0) == 1.5
    assert ratio(None, 2.0) is None
    assert ratio(3.0, None) is None


def test_a_steady_climb_shows_as_its_slope():
    """Two a sample are two hundred in a hundred; noise around a level is none."""
    assert slope_per_100([2.0 * i for i in range(50)]) == pytest.approx(200)
    assert slope_per_100([1.0, 1.0, 1.0]) == 0
    assert slope_per_100([5.0]) == 0


def test_records_keep_every_sample_and_give_medians():
    """The JSON holds what the tables were made of."""
    records = Records()
    records.add("clip", "ours", "5 s", [3.0, 1.0, 2.0])
    records.add("clip", "ours", "nothing", [])
    records.fail("clip", "stock", "it is\n  not installed")
    assert records.value("clip", "ours", "5 s") == 2.0
    assert records.get("clip", "ours", "nothing") is None
    assert records.contenders("clip") == ["ours"]
    written = json.loads(json.dumps(records.to_json()))
    assert written["records"][0]["values"] == [3.0, 1.0, 2.0]
    assert written["failures"] == [
        {"workload": "clip", "contender": "stock", "sentence": "it is not installed"}
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0004567, "0.457 ms"),
        (0.0456, "45.6 ms"),
        (0.1, "0.100 s"),
        (12.345, "12.3 s"),
        (3725.0, "3,725 s"),
    ],
)
def test_durations_have_three_digits_and_a_unit_that_suits_them(value, text):
    """Milliseconds below a tenth of a second."""
    assert seconds(value) == text


def test_small_numbers_keep_three_digits():
    """Also below one."""
    assert [significant(x) for x in (0, 0.0234, 0.00234, 1.5, 98.76, 1234.5)] == [
        "0", "0.023", "0.0023", "1.50", "98.8", "1,234",
    ]  # fmt: skip
    assert mebibytes(3 * 2**20) == "3 MiB"


def test_columns_of_a_table_line_up_also_behind_wide_characters():
    """A terminal shows a Chinese character in two columns."""
    text = Table("t", ("name", "value"), (("中文", "1.5 s"), ("longer name", "10 s"))).markdown()
    lines = [line for line in text.split("\n") if line.startswith("|")]
    assert len({columns(line) for line in lines}) == 1
    assert lines[1].startswith("| ---")
    assert lines[1].endswith("-: |")
    assert lines[3] == "| longer name |  10 s |"


def test_notes_are_wrapped_to_the_page():
    """110 columns."""
    text = Table("t", (), (), ("word " * 100,)).markdown()
    assert max(map(len, text.split("\n"))) <= WIDTH


def test_a_contender_without_figures_is_a_row_and_a_sentence():
    """Once, however often it failed in the same way."""
    records = Records()
    for _ in range(3):
        records.fail("clip", "stock", "it crashed")
    rows, sentences = failures(records.failed("clip"), ("", "a", "b"))
    assert rows == [("stock", "none", "")]
    assert sentences == ["stock: not measured: it crashed"]


def test_an_aim_is_held_not_held_or_not_measured():
    """A missing figure is never held."""
    aims = [
        target(6, "small", 1.4, most=1.5),
        target(4, "large", 1.6, most=1.5),
        least_target(1, "fast", 1.7, least=1.7),
        least_target(1, "missing", None, least=1.7),
    ]
    assert [aim.verdict for aim in aims] == ["held", "NOT HELD", "held", "not measured"]
    assert [row[0] for row in targets_table(aims).rows] == ["1", "1", "4", "6"]


def test_every_workload_says_not_measured_of_an_empty_run():
    """No table and no aim stumbles over what is missing, and none of it counts as held."""
    from benchmarks.plan import WORKLOADS

    records = Records()
    for workload in WORKLOADS:
        for table in workload.tables(records):
            assert table.markdown()
        assert all(aim.held is None for aim in workload.targets(records))


def test_the_clip_aims_compare_medians_of_the_15_s_clip():
    """Faster than stock by the ratio of their times; the same text counts clip by clip."""
    records = Records()
    for name, value in (("stock", 1.6), ("ours-float32", 0.8), ("sherpa-fp32", 1.0), ("ours-int8", 0.5)):
        records.add("clip", name, "15 s", [value, value, 99.0])
    records.add("clip", "ours-float32", clip.SAME, [True, False])
    aims = clip.targets(records)
    assert [(aim.found, aim.held) for aim in aims] == [
        ("2.00 x", True),
        ("1 of 2 clips", False),
        ("1.25 x", True),
        ("3.20 x", False),
        ("-", None),
    ]


def test_errors_lower_a_throughput():
    """What was not answered does not count as done."""
    from benchmarks.contender import Burst

    records = Records()
    bursts = [Burst(2.0, (0.5, 0.5, 0.5), ("refused",))]
    several._note(records, "service-1", 8, bursts, 20.0)
    assert records.value("clients", "service-1", f"8 {several.RATE}") == 7.5
    assert records.value("clients", "service-1", f"8 {several.ERRORS}") == 1
    assert several.steady("x", 1.11).held is False
    assert several.steady("x", 0.95).held is True


def test_memory_is_judged_from_before_the_first_request():
    """A rise at the beginning is a rise."""
    records = Records()
    steps = [2**20 * x for x in (600, *([640] * 50))]
    records.add("memory", "ours-int8", memory.DRIFT, steps, unit="bytes")
    records.add("memory", "ours-int8", f"{memory.AFTER}: rss", [700 * 2**20], unit="bytes")
    verdicts = {aim.aim: aim.verdict for aim in memory.targets(records)}
    assert verdicts["500 requests move it by <= 30 MiB, ours-int8"] == "NOT HELD"
    assert verdicts["resident after 500 requests, ours-int8 (<= 750 MiB)"] == "held"


def test_token_agreement_counts_edits_and_recordings():
    """One token of four replaced in one of two recordings."""
    one = [{"file": "a", "ids": [1, 2, 3]}, {"file": "b", "ids": [4]}]
    two = [{"file": "a", "ids": [1, 9, 3]}, {"file": "b", "ids": [4]}]
    assert precision.agreement(one, two) == (0.75, 1, 2)
    assert precision.distance([1, 2, 3], [2, 3, 4]) == 2


@pytest.mark.parametrize(("line", "pause"), [("RestartSec=2", 2.0), ("RestartSec=250ms", 0.25), ("", 0.1)])
def test_the_restart_pause_is_read_from_the_unit(line, pause):
    """As systemd.time(7) writes it."""
    assert restart.pause_s(f"[Service]\nRestart=on-failure\n{line}\n") == pause
