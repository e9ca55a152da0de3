"""`distributio run`: one job, as docker would run it."""

import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from distributio.cli import config, fetching, order, sending, show, watching
from distributio.cli.docker_like import DockerLike, parsed
from distributio.cli.docker_options import Given
from distributio.cli.exits import ExitCode, Stop
from distributio.cli.show import Output
from distributio.wire.native import JobView

if TYPE_CHECKING:
    from distributio.sdk.client import Client

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(cls=DockerLike, add_help_option=False)
def run(ctx: typer.Context) -> None:
    """Run one command in a container on a lent machine, see its output here, and get its results.

    Everything up to the image is ours, everything after it is the job's. Without -d: the log comes to standard output
    while it runs, what it wrote to /root/shared/results is put into results/BATCH/JOB/, the exit code is the command's.
    """
    given = parsed(ctx)
    wanted = order.from_options(given, os.environ, Path.cwd(), read_text)
    if given.interactive and _has_piped_input():
        show.note("Note: jobs read no standard input; send files with --input.")
    with config.connect(given.url, given.project) as client:
        batch = sending.send(client, wanted)
        job_id = f"{batch.id}.1"
        if given.detach:
            _print_id(client, job_id, Output(given.output))
            return
        job = _watch(client, job_id, given)
        raise typer.Exit(_finish(client, job, given))


def _print_id(client: "Client", job_id: str, output: Output) -> None:
    if output is Output.JSON:
        show.line(show.json_of(client.job(job_id)))
    else:
        show.line(job_id)


def _watch(client: "Client", job_id: str, given: Given) -> JobView:
    log = sys.stdout if given.output == Output.TABLE else sys.stderr
    try:
        with watching.interruptible(f"Job {job_id}", f"distributio logs -f {job_id}"):
            return watching.follow_job(client, job_id, log)
    except watching.Detached:
        show.note(f"Job {job_id} goes on. Follow it: distributio logs -f {job_id}")
    except KeyboardInterrupt:
        client.cancel_job(job_id)
        show.note(f"Job {job_id} is stopped")
    raise typer.Exit(ExitCode.INTERRUPTED)


def _finish(client: "Client", job: JobView, given: Given) -> int:
    if not given.no_results:
        fetching.fetch_all(client, [job], Path(given.results))
    if given.output != Output.TABLE:
        show.one(job, [], Output(given.output), lambda view: view.id)
    if job.state != "done" and (job.exit_code in (None, 0) or job.cause not in ("", "exit-code")):
        show.note(ending(client, job))
    return exit_code(job)


def ending(client: "Client", job: JobView) -> str:
    """Why a job did not end well."""
    return "\n".join(watching.explanation_lines(client.explain(job.id)))


def exit_code(job: JobView) -> int:
    """The command's own exit code; ours where it has none that tells of the failure."""
    if job.state == "done":
        return ExitCode.OK
    return job.exit_code or ExitCode.JOB_FAILED


def read_text(name: str) -> str:
    """A text file of the submitter; - is standard input."""
    try:
        return sys.stdin.read() if name == "-" else Path(name).expanduser().read_text()
    except OSError as error:
        raise Stop(f"{name} cannot be read: {error.strerror}. Check its name and permissions.") from error
    except UnicodeDecodeError as error:
        raise Stop(f"{name} is not text in UTF-8: {error.reason}.") from error


def _has_piped_input() -> bool:
    try:
        kind = os.fstat(0).st_mode
    except OSError:
        return False  # closed
    return stat.S_ISFIFO(kind) or (stat.S_ISREG(kind) and os.fstat(0).st_size > 0)
