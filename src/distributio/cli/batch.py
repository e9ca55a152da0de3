"""`distributio batch`: batches as such."""

from itertools import islice
from typing import Annotated

import typer

from distributio.cli import config, ids, show, watching
from distributio.cli.show import Column, Output, OutputOption, ProjectOption, UrlOption

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__
)

_COLUMNS = (
    Column("BATCH", lambda batch: str(batch.id), right=True),
    Column("NAME", lambda batch: show.shortened(batch.name, 24)),
    Column("STATE", lambda batch: batch.state),
    Column("JOBS", lambda batch: f"{batch.job_count:,}", right=True),
    Column("COUNTS", lambda batch: watching.counted(batch)),
    Column("CREATED", lambda batch: show.ago(batch.created_at)),
    Column("IMAGE", lambda batch: show.shortened(batch.image)),
)


@app.callback()
def batches() -> None:
    """Jobs submitted together. A batch's id also works with inspect, wait, stop, results and rerun."""


@app.command()
def ls(
    active: Annotated[bool, typer.Option("--active", help="Only those that are not over.")] = False,
    most: Annotated[int, typer.Option("-n", "--limit", min=1, help="At most so many.")] = 50,
    url: UrlOption = "",
    project: ProjectOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List batches, newest first."""
    with config.connect(url, project) as client:
        found = list(islice(client.batches("active" if active else ""), most))
    show.many(found, _COLUMNS, output, lambda batch: batch.id, "No batches.")


@app.command()
def rerun(
    batch: Annotated[str, typer.Argument(metavar="BATCH", help="A batch such as 7, or last.")],
    only: Annotated[str, typer.Option("--only", metavar="failed|all", help="Which of its jobs.")] = "failed",
    url: UrlOption = "",
    project: ProjectOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Run jobs of a batch again, as a new batch; print its id."""
    with config.connect(url, project) as client:
        made = client.rerun(ids.batch(client, batch), only)
        config.remember_last(client.url, made.id)
    show.one(made, [("", str(made.id))], output, lambda view: view.id)
