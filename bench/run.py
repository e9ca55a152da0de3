"""Measure a site on this machine, on both databases, against the bare databases and the goals; write down what came out."""

import argparse
import contextlib
import datetime
import os
import platform
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `python bench/run.py`

import msgspec

from bench import ceiling, processes, rows, sites
from bench.crowd import Crowd
from bench.rows import MB, Bench
from bench.table import Goal, Row, render

HOSTS = 1_000
IDLE_MB = 120
ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/reference/performance.md"
FIGURES = ROOT / "bench/latest.json"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--short", action="store_true", help="about a minute: fewer jobs, shorter rows")
    parser.add_argument("--only", action="append", choices=list(rows.ROWS), help="only these rows; may be repeated")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), help="only this database")
    parser.add_argument("--seconds", type=float, help="how long each row of rates runs")
    parser.add_argument("--output", type=Path, help="write the figures here, and leave the reference page as it is")
    arguments = parser.parse_args()
    started = time.time()
    try:
        found = measure(arguments)
    except sites.CannotMeasure as error:
        print(f"bench: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    table = render(found)
    print(f"\n{table}\n{time.time() - started:.0f} seconds")
    write(arguments, found, table)


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows that are asked for."""
    found: list[Row] = []
    if arguments.database != "postgresql":
        found += _measure_site(arguments, None)
    if arguments.database != "sqlite":
        with sites.postgresql() as cluster:
            found += _measure_site(arguments, cluster)
    return found


def _measure_site(arguments: argparse.Namespace, cluster: sites.Cluster | None) -> list[Row]:
    seconds = arguments.seconds or (1.0 if arguments.short else 5.0)
    kind = "PostgreSQL" if cluster is not None else "SQLite"
    bare = ceiling.postgresql_lives(cluster, seconds) if cluster is not None else ceiling.sqlite_lives(seconds)
    found = [Row(name="Bare database, 100 jobs a commit", database=kind, value=bare, unit="lives/s")]
    print(f"  {kind:10s} bare lives of 100 jobs a commit: {bare:.0f}/s", flush=True)
    names = arguments.only or list(rows.ROWS)
    # A fresh site for each group: what one leaves behind does not weigh on the next.
    for number, name in enumerate(names):
        with sites.site(cluster, f"site{number}") as site:
            if number == 0:
                found.append(_idle(site))
            bench = Bench(
                site=site,
                crowd=Crowd(site, HOSTS if not arguments.short else 200),
                seconds=seconds,
                scale=0.1 if arguments.short else 1.0,
                ceiling=bare,
                rows=[],
            )
            rows.ROWS[name](bench)
            found += bench.rows
    return found


def _idle(site: sites.Site) -> Row:
    time.sleep(1.0)
    megabytes = processes.resident_bytes(site.process) / MB
    goal = Goal(what="MB", bound=IDLE_MB, reached=megabytes, at_least=False)
    return Row(name="Server at rest", database=site.kind, value=megabytes, unit="MB resident", goals=[goal])


def machine() -> dict[str, Any]:
    """What these figures were measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    return {
        "cores": os.cpu_count(),
        "processor": model,
        "memory_gib": round(memory, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def write(arguments: argparse.Namespace, found: list[Row], table: str) -> None:
    """Keep the figures; a whole run also renews the table in the reference page."""
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    figures = {"date": when, "machine": machine(), "rows": msgspec.to_builtins(found)}
    is_whole = not (arguments.short or arguments.only or arguments.database or arguments.output)
    target = arguments.output or (FIGURES if is_whole else None)
    if target is not None:
        target.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")
    if is_whole:
        facts = machine()
        said = (
            f"Measured {when} on {facts['cores']} cores ({facts['processor']}), {facts['memory_gib']:g} GiB, Linux "
            f"{facts['kernel']}, Python {facts['python']}, SQLite {facts['sqlite']}; load average at the end "
            f"{os.getloadavg()[0]:.1f}.\n\n"
        )
        text = PAGE.read_text()
        head, _, rest = text.partition(BEGIN)
        _, _, tail = rest.partition(END)
        PAGE.write_text(f"{head}{BEGIN}\n\n{said}{table}\n{END}{tail}")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
