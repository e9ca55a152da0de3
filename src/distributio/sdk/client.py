"""What a program can ask of a site: one method for each thing, over the public API and nothing else."""

import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import msgspec

from distributio.sdk import follow, transfers
from distributio.sdk.errors import SiteError
from distributio.sdk.tars import digest_file, pack_folder
from distributio.sdk.transfers import Progress, nothing
from distributio.sdk.transport import LONG_READ_SECONDS, PATIENCE_SECONDS, Transport, problem_of
from distributio.wire.native import (
    BatchSubmission,
    BatchView,
    Explanation,
    HostChange,
    HostChanged,
    HostView,
    ImageImport,
    ImageView,
    Input,
    JobView,
    Leader,
    NewProject,
    NewUser,
    Page,
    PersonChange,
    ProjectChange,
    ProjectView,
    QuotaView,
    Recheck,
    SiteKey,
    SiteStatus,
    TokenView,
    UserView,
    WhoAmI,
)

HAND_OVER_SECONDS = 30.0  # how long after the verdict the record of a job is waited for

_PAGE_SIZE = 500
_NOT_HANDED_OVER = 409

T = TypeVar("T")


class Client:
    """One site, as one person's token sees it. A call returns what was asked for, or raises a `ClientError`."""

    def __init__(
        self,
        url: str,
        token: str = "",
        project: str | None = None,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        self.transport = Transport(url, token, project=project, patience_seconds=patience_seconds, on_retry=on_retry)

    @property
    def url(self) -> str:
        """The site's address."""
        return self.transport.url

    def close(self) -> None:
        """Let go of the connections."""
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- the site and its people --------------------------------------------------------------------------------

    def whoami(self) -> WhoAmI:
        """Who the token speaks for."""
        return self.transport.ask(WhoAmI, "GET", "/api/v1/whoami")

    def status(self) -> SiteStatus:
        """The site in numbers."""
        return self.transport.ask(SiteStatus, "GET", "/api/v1/status")

    def site_key(self) -> SiteKey:
        """The keys that sign the records of results."""
        return self.transport.ask(SiteKey, "GET", "/api/v1/site-key")

    def quota(self) -> QuotaView:
        """What the project may use, and does."""
        return self.transport.ask(QuotaView, "GET", "/api/v1/quota")

    def hosts(self, *, everybody: bool = False) -> Iterator[HostView]:
        """The hosts of this person; for the operator everybody's, if asked."""
        return self._pages(HostView, "/api/v1/hosts", all="1" if everybody else "")

    def host(self, host_id: str) -> HostView:
        """One host, with why it is idle."""
        return self.transport.ask(HostView, "GET", f"/api/v1/hosts/{host_id}")

    def change_host(self, host_id: str, change: HostChange) -> HostChanged:
        """Ban a host, or let it work again. For operators."""
        return self.transport.ask(HostChanged, "PATCH", f"/api/v1/hosts/{host_id}", body=msgspec.json.encode(change))

    def rechecks(self, batch_id: int) -> Iterator[Recheck]:
        """The jobs of a batch that are done again because their host was banned."""
        return self._pages(Recheck, f"/api/v1/batches/{batch_id}/rechecks")

    def leaderboard(self) -> list[Leader]:
        """Who gives most of late."""
        return list(self._pages(Leader, "/api/v1/leaderboard"))

    def show_name(self, shows_name: bool) -> WhoAmI:
        """Let the leaderboard name this person, or not."""
        body = msgspec.json.encode(PersonChange(shows_name=shows_name))
        return self.transport.ask(WhoAmI, "PATCH", "/api/v1/whoami", body=body)

    def tokens(self) -> list[TokenView]:
        """This person's tokens, without their secrets."""
        answer = msgspec.json.decode(self.transport.send("GET", "/api/v1/tokens").content)
        items = answer["items"] if isinstance(answer, dict) else answer
        return msgspec.convert(items, list[TokenView])

    def create_token(self, name: str) -> TokenView:
        """A new token; its secret is in this answer only."""
        return self.transport.ask(TokenView, "POST", "/api/v1/tokens", params={"name": name}, again=False)

    def delete_token(self, token_id: int) -> None:
        """Nobody can use the token any more."""
        self.transport.send("DELETE", f"/api/v1/tokens/{token_id}")

    # --- people and projects, for operators ---------------------------------------------------------------------

    def users(self) -> Iterator[UserView]:
        """Everybody the site knows."""
        return self._pages(UserView, "/api/v1/users")

    def create_user(self, user: NewUser) -> UserView:
        """Make a person known; the answer has their first token."""
        return self.transport.ask(UserView, "POST", "/api/v1/users", body=msgspec.json.encode(user), again=False)

    def projects(self) -> Iterator[ProjectView]:
        """Every project with its members, limits and use."""
        return self._pages(ProjectView, "/api/v1/projects")

    def create_project(self, name: str) -> ProjectView:
        """Make a project."""
        return self.transport.ask(
            ProjectView, "POST", "/api/v1/projects", body=msgspec.json.encode(NewProject(name=name)), again=False
        )

    def change_project(self, name: str, change: ProjectChange) -> ProjectView:
        """Change a project's members, limits or share."""
        return self.transport.ask(
            ProjectView, "PATCH", f"/api/v1/projects/{quote(name, safe='')}", body=msgspec.json.encode(change)
        )

    # --- batches and jobs ---------------------------------------------------------------------------------------

    def submit(self, submission: BatchSubmission, *, key: str = "") -> BatchView:
        """Submit jobs, once: the key makes repeats of this call harmless, on connection loss as in a caller's own loop.
        May take as long as the site needs to fetch the image."""
        return self.transport.ask(
            BatchView,
            "POST",
            "/api/v1/batches",
            body=msgspec.json.encode(submission),
            headers={"Content-Type": "application/json", "Idempotency-Key": key or uuid.uuid4().hex},
            read_seconds=LONG_READ_SECONDS,
        )

    def batches(self, state: str = "") -> Iterator[BatchView]:
        """Batches, newest first; `state` may be "active" or "ended"."""
        return self._pages(BatchView, "/api/v1/batches", state=state)

    def batch(self, batch_id: int) -> BatchView:
        """One batch."""
        return self.transport.ask(BatchView, "GET", f"/api/v1/batches/{batch_id}")

    def jobs(self, batch_id: int | None = None, state: str = "") -> Iterator[JobView]:
        """A batch's jobs in order, or all jobs of the project, newest first."""
        path = "/api/v1/jobs" if batch_id is None else f"/api/v1/batches/{batch_id}/jobs"
        return self._pages(JobView, path, state=state)

    def job(self, job_id: str) -> JobView:
        """One job with its tasks."""
        return self.transport.ask(JobView, "GET", f"/api/v1/jobs/{job_id}")

    def explain(self, job_id: str) -> Explanation:
        """Why a job is where it is."""
        return self.transport.ask(Explanation, "GET", f"/api/v1/jobs/{job_id}/explain")

    def cancel_job(self, job_id: str) -> JobView:
        """The job is not wanted any more. What is decided stays decided."""
        return self.transport.ask(JobView, "POST", f"/api/v1/jobs/{job_id}/cancel")

    def cancel_batch(self, batch_id: int) -> BatchView:
        """None of the batch's jobs is wanted any more."""
        return self.transport.ask(BatchView, "POST", f"/api/v1/batches/{batch_id}/cancel")

    def rerun(self, batch_id: int, only: str = "failed", *, key: str = "") -> BatchView:
        """A new batch of those jobs of this one that failed, or of "all"."""
        return self.transport.ask(
            BatchView,
            "POST",
            f"/api/v1/batches/{batch_id}/rerun",
            params={"only": only},
            headers={"Idempotency-Key": key or uuid.uuid4().hex},
        )

    def log(self, job_id: str, attempt: int | None = None) -> bytes:
        """What the job's command printed, as far as the site keeps it."""
        params = None if attempt is None else {"attempt": attempt}
        return self.transport.send(
            "GET", f"/api/v1/jobs/{job_id}/log", params=params, headers={"Accept": "*/*"}
        ).content

    def follow_log(self, job_id: str) -> Iterator[follow.JobEvent]:
        """The log as it grows and each change of the job, until its end; restarts of the site do not show."""
        return follow.follow_job(self.transport, job_id)

    def watch_batch(self, batch_id: int) -> Iterator[BatchView]:
        """The batch at each of its changes, until it is over."""
        return follow.watch_batch(self.transport, batch_id)

    def wait_job(self, job_id: str) -> JobView:
        """Return the job when it is decided."""
        for event in self.follow_log(job_id):
            if isinstance(event, follow.JobEnded):
                return event.job
        raise AssertionError("a followed job always ends")

    # --- results ------------------------------------------------------------------------------------------------

    def download_results(self, job_id: str, target: Path, progress: Progress = nothing) -> int:
        """Fetch the results tar into this file, on from where an earlier attempt stopped; return its size."""
        return transfers.download(self.transport, f"/api/v1/jobs/{job_id}/results.tar", target, progress)

    def result_record(self, job_id: str, wait_seconds: float = HAND_OVER_SECONDS) -> bytes:
        """The job's result.json: it is there as soon as the job has been handed over, which is waited for."""
        give_up_at = time.monotonic() + wait_seconds
        backoff = self.transport.backoff()
        while True:
            answer = self.transport.send(
                "GET", f"/api/v1/jobs/{job_id}/result.json", accept=frozenset({_NOT_HANDED_OVER})
            )
            if answer.status_code != _NOT_HANDED_OVER:
                return answer.content
            if time.monotonic() > give_up_at or not backoff.pause():
                raise SiteError(problem_of(answer))

    # --- inputs and images --------------------------------------------------------------------------------------

    def upload_input(self, source: Path, path: str, *, read_only: bool = True, progress: Progress = nothing) -> Input:
        """Bring a file or a folder to the site, unless it holds the same bytes already, as an input that will be at
        `path` inside the container."""
        if not source.is_dir():
            content = digest_file(source)
            transfers.upload(self.transport, content, progress)
            return Input(path=path, digest=content.digest, size_bytes=content.size_bytes, read_only=read_only)
        with tempfile.NamedTemporaryFile(prefix="distributio-", suffix=".tar") as packed:
            pack_folder(source, packed)
            packed.flush()
            content = digest_file(Path(packed.name))
            transfers.upload(self.transport, content, progress)
        return Input(
            path=path, digest=content.digest, size_bytes=content.size_bytes, is_folder=True, read_only=read_only
        )

    def images(self) -> Iterator[ImageView]:
        """The project's images."""
        return self._pages(ImageView, "/api/v1/images")

    def import_image(self, reference: str, *, refresh: bool = False) -> ImageView:
        """Have the site fetch an image from its registry; `refresh` looks again even if the tag is known."""
        return self.transport.ask(
            ImageView,
            "POST",
            "/api/v1/images",
            body=msgspec.json.encode(ImageImport(reference=reference, refresh=refresh)),
            headers={"Content-Type": "application/json"},
            read_seconds=LONG_READ_SECONDS,
        )

    def upload_image(
        self, reference: str, pieces: Iterable[bytes], progress: Progress = nothing, total: int = 0
    ) -> ImageView:
        """Bring an image archive (docker save, podman save, OCI) to the site as a stream. An empty reference: the one
        written in the archive."""
        return transfers.upload_archive(self.transport, reference, pieces, progress, total)

    def delete_image(self, image_id: int) -> None:
        """The project no longer has the image; jobs that use it keep it until they are over."""
        self.transport.send("DELETE", f"/api/v1/images/{image_id}")

    # ------------------------------------------------------------------------------------------------------------

    def _pages(self, kind: type[T], path: str, **params: str) -> Iterator[T]:
        wanted: dict[str, str | int] = {name: value for name, value in params.items() if value}
        wanted["limit"] = _PAGE_SIZE
        while True:
            page = self.transport.ask(Page, "GET", path, params=wanted)
            yield from msgspec.convert(page.items, list[kind])  # type: ignore[valid-type]  # a class held in a variable
            if not page.cursor:
                return
            wanted["cursor"] = page.cursor
