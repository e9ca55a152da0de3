"""`distributio submit`: many jobs at once, from a job file or from a command line with variables."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from distributio.cli import config, fetching, jobfile, order, sending, show, watching
from distributio.cli.docker_like import DockerLikeMany, parsed
from distributio.cli.docker_options import Given
from distributio.cli.exits import ExitCode, Stop
from distributio.cli.order import Order
from distributio.cli.run import read_text
from distributio.cli.show import Column, Output
from distributio.wire.native import BatchView, JobView

if TYPE_CHECKING:
    from distributio.sdk.client import Client

_BESIDE_A_FILE = frozenset({"detach", "url", "project", "results", "no_results", "output", "name", "schema"})
_ROWS_SHOWN = 40  # of a batch's jobs, when it is over; of a larger one only what did not end well

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(cls=DockerLikeMany, add_help_option=False)
def submit(ctx: typer.Context) -> None:
    """Submit many jobs at once, and wait for them.

    Variables fill {name} in the command and in environment variables, and are set as environment variables themselves.
    With several of --array, --each-line and --matrix there is one job for each combination. -d prints the batch's id
    and returns at once. A job file says all of this in TOML; --schema prints what it may say.
    """
    given = parsed(ctx, many=True)
    if given.schema:
        show.line(show.json_of(jobfile.schema()))
        return
    wanted = _order(given)
    with config.connect(given.url, given.project) as client:
        batch = sending.send(client, wanted)
        if given.detach:
            show.one(batch, [("", str(batch.id))], Output(given.output), lambda view: view.id)
            return
        show.note(f"Batch {batch.id}: {batch.job_count:,} job{'s' if batch.job_count != 1 else ''}")
        batch = _watch(client, batch)
        raise typer.Exit(_finish(client, batch, given))


def _order(given: Given) -> Order:
    if not given.image.endswith(".toml"):
        return order.from_options(given, os.environ, Path.cwd(), read_text)
    extra = given.named - _BESIDE_A_FILE
    if extra or given.command:
        what = "a command" if given.command else f"the option for {', '.join(sorted(extra))}"
        raise Stop(f"{given.image} says all about its jobs, so {what} cannot be given beside it. Change the file.")
    file = Path(given.image)
    base = file.expanduser().absolute().parent
    parsed_file = jobfile.parse(read_text(given.image), given.image)
    wanted = jobfile.to_order(parsed_file, base, lambda name: read_text(name if name == "-" else str(base / name)))
    return sending.with_name(wanted, given.name)


def _watch(client: "Client", batch: BatchView) -> BatchView:
    try:
        with watching.interruptible(f"Batch {batch.id}", f"distributio wait {batch.id}"):
            return watching.watch_batch(client, batch)
    except watching.Detached:
        show.note(f"Batch {batch.id} goes on. Wait for it: distributio wait {batch.id}")
    except KeyboardInterrupt:
        client.cancel_batch(batch.id)
        show.note(f"Batch {batch.id} is stopped")
    raise typer.Exit(ExitCode.INTERRUPTED)


def _finish(client: "Client", batch: BatchView, given: Given) -> int:
    jobs = list(client.jobs(batch.id))
    places = {} if given.no_results else fetching.fetch_all(client, jobs, Path(given.results))
    print_outcome(batch, jobs, places, Output(given.output))
    return ExitCode.OK if batch.state == "done" else ExitCode.JOB_FAILED


def print_outcome(batch: BatchView, jobs: list[JobView], places: dict[str, Path], output: Output) -> None:
    """The jobs of a batch that is over; of a large one, those that did not end well."""
    if output is not Output.TABLE:
        show.many(jobs, [], output, lambda job: job.id, "")
        return
    rows = jobs if len(jobs) <= _ROWS_SHOWN else [job for job in jobs if job.state != "done"][:_ROWS_SHOWN]
    names = list(dict.fromkeys(name for job in rows for name in job.variables))
    columns = [
        Column("JOB", lambda job: job.id),
        *(Column(name.upper(), _variable(name)) for name in names),
        Column("STATE", lambda job: job.state),
        Column("EXIT", lambda job: "" if job.exit_code is None else str(job.exit_code), right=True),
        Column("CAUSE", lambda job: job.cause or ", ".join(job.reasons)),
        Column("RESULTS", lambda job: str(places.get(job.id, ""))),
    ]
    if rows:
        show.many(rows, columns, output, lambda job: job.id, "")
    show.note(f"Batch {batch.id}: {watching.counted(batch)}")
    if batch.state != "done" and batch.counts.get("failed"):
        show.note(f"Run what failed again: distributio rerun --failed {batch.id}")


def _variable(name: str) -> Callable[[JobView], str]:
    return lambda job: show.shortened(job.variables.get(name, ""), 24)
