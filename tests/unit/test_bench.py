"""What the harness makes of its measurements: percentiles, numbers, goals, the table."""

import io

import pytest
from bench.crowd import make_output
from bench.table import HEADINGS, Goal, Row, figure, percentile, render

from distributio.wire.results_tar import Bounds, verify


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([5.0], 0.99, 5.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([4.0, 1.0, 3.0, 2.0], 0.5, 2.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
        ([float(n) for n in range(1, 101)], 1.0, 100.0),
        ([1.0, 2.0], 0.0, 1.0),
    ],
)
def test_a_percentile_is_a_measured_value(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        percentile([], 0.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.104, "0.1"),
        (1.5, "1.5"),
        (2.0, "2"),
        (12.34, "12.3"),
        (20.0, "20"),
        (100.4, "100"),
        (1234567, "1,234,567"),
    ],
)
def test_numbers_have_the_digits_that_matter(value: float, text: str) -> None:
    assert figure(value) == text


def test_a_goal_is_met_from_its_side() -> None:
    assert Goal(what="jobs/s", bound=500, reached=500).is_met
    assert not Goal(what="jobs/s", bound=500, reached=499).is_met
    assert Goal(what="p99 ms", bound=150, reached=150, at_least=False).is_met
    assert str(Goal(what="p99 ms", bound=150, reached=467, at_least=False)) == "p99 ms ≤ 150: not met (467)"


def test_the_table_has_a_line_for_each_row_and_no_empty_figures() -> None:
    full = Row(
        name="Turns",
        database="PostgreSQL",
        value=2345.6,
        unit="jobs/s",
        p50_ms=12.34,
        p99_ms=99.9,
        server_ms=0.25,
        database_ms=0.125,
        other_cores=0.031,
        of_ceiling=0.178,
        goals=[Goal(what="jobs/s", bound=2000, reached=2345.6)],
        note="warm",
    )
    heading, line, *rows = render([full, Row(name="At rest", database="SQLite", value=90.0, unit="MB")]).splitlines()
    assert heading.count("|") == line.count("|") == len(HEADINGS) + 1
    assert rows == [
        "| Turns (warm) | PostgreSQL | 2,346 jobs/s | 12.3 / 99.9 | 0.25 + 0.12 | 0.03 | 18% | jobs/s ≥ 2,000: met |",
        "| At rest | SQLite | 90 MB |  |  |  |  |  |",
    ]


def test_results_tars_are_what_a_site_accepts() -> None:
    first, second = make_output(1, 10_000), make_output(2, 10_000)
    assert first.digest != second.digest
    summary = verify(io.BytesIO(first.data), Bounds())
    assert (summary.digest, summary.files, summary.size_bytes) == (first.digest, 1, 10_240)
