"""What a measurement is, and how a list of them reads: percentiles, goals, and the table of the reference page."""

from collections.abc import Sequence

from msgspec import Struct


class Row(Struct, kw_only=True, omit_defaults=True):
    """One measured thing on one database."""

    name: str
    database: str
    value: float
    unit: str
    p50_ms: float | None = None
    p99_ms: float | None = None
    server_ms: float | None = None  # processor time for one unit
    database_ms: float | None = None
    other_cores: float | None = None  # busy with what is not ours while this was measured
    generator_cores: float | None = None
    server_mb: float | None = None  # resident at the end
    of_ceiling: float | None = None  # share of the bare database's rate
    goals: list["Goal"] = []
    note: str = ""


class Goal(Struct, kw_only=True):
    """What a row should reach. `reached` is the measured figure it is held against."""

    what: str
    bound: float
    reached: float
    at_least: bool = True

    @property
    def is_met(self) -> bool:
        """Whether it does."""
        return self.reached >= self.bound if self.at_least else self.reached <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return (
            f"{self.what} {sign} {figure(self.bound)}: {'met' if self.is_met else f'not met ({figure(self.reached)})'}"
        )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed."""
    if not values:
        raise ValueError("no values: nothing was measured")
    ordered = sorted(values)
    rank = -(-len(ordered) * share // 1)  # rounded up
    return ordered[max(0, min(len(ordered), int(rank)) - 1)]


def figure(value: float) -> str:
    """A number as people read it: three digits that matter, thousands apart."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _cell(value: float | None, digits: str = "") -> str:
    if value is None:
        return ""
    return format(value, digits) if digits else figure(value)


HEADINGS = (
    "What",
    "Database",
    "Measured",
    "p50 / p99 ms",
    "CPU ms server + database",
    "Other cores",
    "Of the ceiling",
    "Goals",
)


def render(rows: Sequence[Row]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|" + " --- |" * len(HEADINGS)]
    for row in rows:
        latency = f"{figure(row.p50_ms)} / {figure(row.p99_ms)}" if row.p50_ms is not None and row.p99_ms else ""
        cpu = _cell(row.server_ms)
        if row.database_ms:
            cpu += f" + {_cell(row.database_ms)}"
        cells = (
            row.name + (f" ({row.note})" if row.note else ""),
            row.database,
            f"{figure(row.value)} {row.unit}",
            latency,
            cpu,
            _cell(row.other_cores),
            f"{row.of_ceiling:.0%}" if row.of_ceiling is not None else "",
            "; ".join(map(str, row.goals)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
