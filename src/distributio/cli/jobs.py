"""Commands about jobs and batches that exist: see them, follow them, wait for them, stop them, fetch their results."""

import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distributio.cli import config, fetching, ids, show, watching
from distributio.cli.exits import ExitCode, Stop
from distributio.cli.quantities import seconds_text, size_text
from distributio.cli.show import Column, Output, OutputOption, ProjectOption, UrlOption
from distributio.wire.native import BatchView, JobView, TaskView

if TYPE_CHECKING:
    from distributio.sdk.client import Client

_UNDECIDED = "waiting,running,checking"

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job such as 7.3, or last.")]
TargetArgument = Annotated[
    str, typer.Argument(metavar="JOB|BATCH", help="A job such as 7.3, a batch such as 7, or last.")
]
TargetsArgument = Annotated[
    list[str], typer.Argument(metavar="JOB|BATCH...", help="Jobs such as 7.3, batches such as 7, or last.")
]

_JOB_COLUMNS = (
    Column("JOB", lambda job: job.id),
    Column("NAME", lambda job: show.shortened(job.name, 24)),
    Column("STATE", lambda job: job.state),
    Column("EXIT", lambda job: "" if job.exit_code is None else str(job.exit_code), right=True),
    Column("CREATED", lambda job: show.ago(job.created_at)),
    Column("COMMAND", lambda job: show.shortened(" ".join(job.command))),
    Column("CAUSE", lambda job: job.cause or ", ".join(job.reasons)),
)

_TASK_COLUMNS = (
    Column("COPY", lambda task: str(task.attempt)),
    Column("STATE", lambda task: task.state.replace("_", " ")),
    Column("OUTCOME", lambda task: "" if task.outcome == "none" else task.outcome.replace("_", " ")),
    Column("CHECK", lambda task: task.validity.replace("_", " ")),
    Column("HOST", lambda task: task.host or ""),
    Column("EXIT", lambda task: "" if task.exit_code is None else str(task.exit_code), right=True),
    Column("TIME", lambda task: seconds_text(task.wall_seconds) if task.wall_seconds else "", right=True),
    Column("MEMORY", lambda task: size_text(task.memory_bytes) if task.memory_bytes else "", right=True),
    Column("CAUSE", lambda task: task.cause or _doing(task)),
)


def ps(
    everything: Annotated[bool, typer.Option("-a", "--all", help="Those that are over, too.")] = False,
    batch: Annotated[str, typer.Option("--batch", metavar="BATCH", help="Only jobs of this batch, in order.")] = "",
    most: Annotated[int, typer.Option("-n", "--limit", min=1, help="At most so many.")] = 100,
    url: UrlOption = "",
    project: ProjectOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List jobs: those that are not over, newest first."""
    with config.connect(url, project) as client:
        within = ids.batch(client, batch) if batch else None
        found = list(islice(client.jobs(within, "" if everything else _UNDECIDED), most + 1))
    nothing = (
        "No jobs." if everything else "No jobs are waiting or running. `distributio ps -a` lists those that are over."
    )
    show.many(found[:most], _JOB_COLUMNS, output, lambda job: job.id, nothing)
    if len(found) > most:
        show.note(f"There are more than {most}; -n lists more.")


def logs(
    job: JobArgument,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on as the log grows, until the job is over.")
    ] = False,
    attempt: Annotated[int | None, typer.Option("--copy", min=0, help="The log of this copy of the job.")] = None,
    url: UrlOption = "",
    project: ProjectOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Print what a job's command printed, as far as the site keeps it."""
    with config.connect(url, project) as client:
        job_id = ids.job(client, job).job
        if follow:
            _follow_log(client, job_id, output)
            return
        text = client.log(job_id, attempt)
    if output is Output.JSON:
        show.line(show.json_of({"job": job_id, "log": text.decode(errors="replace")}))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()


def _follow_log(client: "Client", job_id: str, output: Output) -> None:
    log = sys.stdout if output is not Output.JSON else sys.stderr
    job = watching.follow_job(client, job_id, log)
    if output is Output.JSON:
        show.line(show.json_of(job))
    elif job.state != "done":
        show.note(f"Job {job.id}: {how_it_ended(job)}")


def inspect(
    target: TargetArgument, url: UrlOption = "", project: ProjectOption = "", output: OutputOption = Output.TABLE
) -> None:
    """Show all about a job and its copies, or about a batch."""
    with config.connect(url, project) as client:
        meant = ids.target(client, target)
        if meant.position is None:
            batch = client.batch(meant.batch)
            show.one(batch, batch_facts(batch), output, lambda view: view.id)
            return
        job = client.job(meant.job)
    show.one(job, _job_facts(job), output, lambda view: view.id)
    if output is Output.TABLE and job.tasks:
        show.line("")
        show.table([[column.cell(task) for column in _TASK_COLUMNS] for task in job.tasks], _TASK_COLUMNS)


def wait(
    targets: TargetsArgument, url: UrlOption = "", project: ProjectOption = "", output: OutputOption = Output.TABLE
) -> None:
    """Wait until jobs and batches are over. The exit code is 0 if all are done, 5 if some are not."""
    views: list[JobView | BatchView] = []
    with config.connect(url, project) as client:
        for meant in [ids.target(client, text) for text in targets]:
            if meant.position is None:
                views.append(watching.watch_batch(client, client.batch(meant.batch)))
            else:
                views.append(client.wait_job(meant.job))
    columns = (
        Column("ID", lambda view: str(view.id)),
        Column("STATE", lambda view: view.state),
        Column("RESULT", lambda view: how_it_ended(view) if isinstance(view, JobView) else watching.counted(view)),
    )
    show.many(views, columns, output, lambda view: view.id, "")
    if any(view.state != "done" for view in views):
        raise typer.Exit(ExitCode.JOB_FAILED)


def stop(
    targets: TargetsArgument, url: UrlOption = "", project: ProjectOption = "", output: OutputOption = Output.TABLE
) -> None:
    """Stop jobs and batches. What is decided stays decided."""
    views: list[JobView | BatchView] = []
    with config.connect(url, project) as client:
        for meant in [ids.target(client, text) for text in targets]:
            views.append(client.cancel_batch(meant.batch) if meant.position is None else client.cancel_job(meant.job))
    columns = (Column("ID", lambda view: str(view.id)), Column("STATE", lambda view: view.state))
    show.many(views, columns, output, lambda view: view.id, "")


def rerun(
    batch: Annotated[str, typer.Argument(metavar="BATCH", help="A batch such as 7, or last.")],
    failed: Annotated[bool, typer.Option("--failed", help="The jobs that failed or were stopped.")] = False,
    url: UrlOption = "",
    project: ProjectOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Run those jobs of a batch again that failed, as a new batch; print its id."""
    if not failed:
        raise Stop("Say which jobs: `distributio rerun --failed BATCH` runs those again that failed.")
    with config.connect(url, project) as client:
        made = client.rerun(ids.batch(client, batch))
        config.remember_last(client.url, made.id)
    show.one(made, [("", str(made.id))], output, lambda view: view.id)


def results(
    targets: TargetsArgument,
    folder: Annotated[Path, typer.Option("-C", "--directory", metavar="DIR", help="Where to: DIR/BATCH/JOB/.")] = Path(
        "results"
    ),
    url: UrlOption = "",
    project: ProjectOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Fetch results.tar and result.json of jobs, or of every job of a batch, into DIR/BATCH/JOB/."""
    with config.connect(url, project) as client:
        wanted: list[JobView] = []
        for meant in [ids.target(client, text) for text in targets]:
            wanted += list(client.jobs(meant.batch)) if meant.position is None else [client.job(meant.job)]
        places = fetching.fetch_all(client, wanted, folder)
    if output is Output.JSON:
        show.line(show.json_of({job: str(place) for job, place in places.items()}))
    elif output is Output.ID:
        for job_id in places:
            show.line(job_id)
    if not places:
        states = ", ".join(sorted({job.state for job in wanted}))
        show.note(f"There are no results: these jobs are {states}, and wrote nothing to /root/shared/results so far.")


def explain(
    job: JobArgument, url: UrlOption = "", project: ProjectOption = "", output: OutputOption = Output.TABLE
) -> None:
    """Say why a job waits, runs or failed, and what you can do about it."""
    with config.connect(url, project) as client:
        why = client.explain(ids.job(client, job).job)
    if output is Output.TABLE:
        for text in watching.explanation_lines(why):
            show.line(text)
    else:
        show.one(why, [], output, lambda view: view.job)


def how_it_ended(job: JobView) -> str:
    """The end of a job in a few words."""
    code = "" if job.exit_code is None else f"exit code {job.exit_code}"
    cause = job.cause or ", ".join(job.reasons)
    return ", ".join(filter(None, [job.state if job.state != "done" else "", code, cause.replace("_", " ")]))


def batch_facts(batch: BatchView) -> list[tuple[str, str]]:
    """What people read of a batch."""
    return [
        ("batch", str(batch.id)),
        ("name", show.clean(batch.name)),
        ("state", batch.state),
        ("project", batch.project),
        ("user", batch.user),
        ("created", show.ago(batch.created_at)),
        ("ended", show.ago(batch.ended_at)),
        ("jobs", f"{batch.job_count:,}: {watching.counted(batch)}"),
        ("image", batch.image),
        ("digest", batch.image_digest),
        ("command", show.shortened(" ".join(batch.spec.command), 200)),
        ("priority", str(batch.priority) if batch.priority else ""),
        ("labels", show.clean(", ".join(f"{name}={value}" for name, value in batch.labels.items()))),
    ]


def _job_facts(job: JobView) -> list[tuple[str, str]]:
    return [
        ("job", job.id),
        ("name", show.clean(job.name)),
        ("state", job.state),
        ("project", job.project),
        ("exit code", "" if job.exit_code is None else str(job.exit_code)),
        ("cause", job.cause or ", ".join(job.reasons)),
        ("created", show.ago(job.created_at)),
        ("decided", show.ago(job.decided_at)),
        ("command", show.shortened(" ".join(job.command), 200)),
        ("variables", show.clean(", ".join(f"{name}={value}" for name, value in job.variables.items()))),
        ("results", f"distributio results {job.id}" if job.has_results else ""),
    ]


def _doing(task: TaskView) -> str:
    share = f" {task.progress:.0%}" if task.progress is not None else ""
    return f"{task.phase}{share}".strip()
