"""How a Python program runs many commands on a site with the futures it knows."""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from msgspec.structs import replace

from distributio.sdk.client import Client
from distributio.sdk.errors import ClientError
from distributio.wire.native import BatchSubmission, BatchView, JobChoice, JobView, PolicyChoice, Spec

_DECIDED = frozenset({"done", "failed", "cancelled"})


class JobFailed(ClientError):
    """The job did not end well; `job` says how."""

    def __init__(self, job: JobView) -> None:
        how = f"exit code {job.exit_code}" if job.exit_code is not None else job.cause or ", ".join(job.reasons)
        super().__init__(f"Job {job.id} {job.state}: {how}. `distributio logs {job.id}` shows what it printed.")
        self.job = job


class Executor:
    """Commands in containers on lent machines, as futures of `JobView`. One thread watches each batch, however
    many jobs it has."""

    def __init__(self, client: Client, *, policy: PolicyChoice | None = None, batch_name: str = "") -> None:
        self._client = client
        self._policy = policy or PolicyChoice()
        self._batch_name = batch_name
        self._watchers: list[threading.Thread] = []
        self._closed = False

    def submit_command(self, image: str, command: Sequence[str], spec: Spec | None = None) -> "Future[JobView]":
        """One command in one container."""
        return self._submit(image, [list(command)], spec)[0]

    def map_commands(
        self, image: str, commands: Iterable[Sequence[str]], spec: Spec | None = None
    ) -> Iterator[JobView]:
        """Many commands as one batch; their jobs in the same order. The first that failed raises `JobFailed`."""
        futures = self._submit(image, [list(command) for command in commands], spec)
        return (future.result() for future in futures)

    def shutdown(self, wait: bool = True) -> None:
        """Take no more; with `wait`, return when all that was submitted is decided."""
        self._closed = True
        if wait:
            for watcher in self._watchers:
                watcher.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(wait=error is None)

    def _submit(self, image: str, commands: list[list[str]], spec: Spec | None) -> "list[Future[JobView]]":
        if self._closed:
            raise RuntimeError("this executor has been shut down; make a new one")
        if not commands:
            return []
        submission = BatchSubmission(
            spec=replace(spec or Spec(), image=image),
            name=self._batch_name,
            policy=self._policy,
            jobs=[JobChoice(command=command) for command in commands],
        )
        batch = self._client.submit(submission)
        futures: list[Future[JobView]] = [Future() for _ in commands]
        for future in futures:
            future.set_running_or_notify_cancel()
        watcher = threading.Thread(
            target=self._watch, args=(batch, futures), name=f"batch {batch.id} pid {os.getpid()}", daemon=True
        )
        self._watchers.append(watcher)
        watcher.start()
        return futures

    def _watch(self, batch: BatchView, futures: "list[Future[JobView]]") -> None:
        open_jobs = dict(enumerate(futures, start=1))
        seen = 0
        try:
            for view in self._client.watch_batch(batch.id):
                decided = sum(view.counts.get(state, 0) for state in _DECIDED)
                if decided > seen:
                    seen = decided
                    self._settle(batch, open_jobs)
            self._settle(batch, open_jobs)
        except Exception as error:  # whoever waits for a future must hear of it
            for future in open_jobs.values():
                future.set_exception(error)

    def _settle(self, batch: BatchView, open_jobs: "dict[int, Future[JobView]]") -> None:
        for job in self._client.jobs(batch.id):
            if job.state not in _DECIDED or job.position not in open_jobs:
                continue
            future = open_jobs.pop(job.position)
            if job.state == "done":
                future.set_result(job)
            else:
                future.set_exception(JobFailed(job))
