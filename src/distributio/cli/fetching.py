"""Where results are put on this machine, and what is said about them."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from distributio.cli import progress, show, sitekeys
from distributio.cli.exits import Stop
from distributio.cli.quantities import size_text
from distributio.wire.native import JobView

if TYPE_CHECKING:
    from distributio.sdk.client import Client

TAR = "results.tar"
RECORD = "result.json"


def folder_of(job: JobView, base: Path) -> Path:
    """BASE/BATCH/JOB."""
    return base / str(job.batch) / job.id


def fetch(client: "Client", job: JobView, base: Path) -> int:
    """Put a job's results tar and its record in place; return the size of the tar."""
    folder = folder_of(job, base)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        record = client.result_record(job.id)  # waits until the job is handed over: its tar is there then, too
        with progress.bar(f"Results of {job.id}", 0) as shown:
            size = client.download_results(job.id, folder / TAR, shown)
        part = folder / f".{RECORD}.part"
        part.write_bytes(record)
        part.replace(folder / RECORD)
    except OSError as error:
        raise Stop(
            f"Results of job {job.id} cannot be written to {folder}: {error.strerror}. Choose another folder."
        ) from error
    return size


def fetch_all(client: "Client", jobs: Iterable[JobView], base: Path) -> dict[str, Path]:
    """Put the results of these jobs in place, those that have any; return where."""
    places: dict[str, Path] = {}
    total = 0
    for job in jobs:
        if job.has_results:
            total += fetch(client, job, base)
            places[job.id] = folder_of(job, base)
    if places:
        sitekeys.remember_first(client)  # so that they can be verified later, offline
    if len(places) == 1:
        show.note(f"Results: {next(iter(places.values())) / TAR} ({size_text(total)})")
    elif places:
        show.note(f"Results of {len(places):,} jobs: {base}/BATCH/JOB/{TAR} ({size_text(total)})")
    return places
