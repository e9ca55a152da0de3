"""What a person sees while a job or a batch is waited for, and what Ctrl-C means then."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

from distributio.cli import show
from distributio.cli.quantities import seconds_text
from distributio.wire.native import BatchView, Explanation, JobView

if TYPE_CHECKING:
    from distributio.sdk.client import Client

STATES = ("done", "checking", "running", "waiting", "failed", "cancelled")

_FIRST_EXPLANATION_SECONDS = 2.0
_NEXT_EXPLANATION_SECONDS = 10.0
_LINE_SECONDS = 5.0  # between two lines of a batch's progress where there is no terminal
_REASONS_SHOWN = 3


class Detached(Exception):
    """The person has left; the job goes on."""


def follow_job(client: "Client", job_id: str, log: IO[str]) -> JobView:
    """Copy a job's log as it grows, say why while it waits, and return the job when it is decided."""
    from distributio.sdk.follow import JobChanged, JobEnded, LogText

    waiting = _WaitingNotes(client, job_id)
    waiting.start()
    try:
        for event in client.follow_log(job_id):
            if isinstance(event, LogText):
                log.write(event.text)
                log.flush()
            elif isinstance(event, JobChanged):
                waiting.hear(event.job.state)
            elif isinstance(event, JobEnded):
                return event.job
    finally:
        waiting.finish()
    raise AssertionError("a followed job always ends")


class _WaitingNotes(threading.Thread):
    """Says on standard error why a job is still waiting: soon after it was submitted, then when the reason changes."""

    def __init__(self, client: "Client", job_id: str) -> None:
        super().__init__(name=f"explain {job_id}", daemon=True)
        self._client = client
        self._job_id = job_id
        self._over = threading.Event()
        self._waiting = True
        self._said = ""

    def hear(self, state: str) -> None:
        """The job is in this state now."""
        self._waiting = state == "waiting"
        if self._said and state == "running":
            show.note(f"Job {self._job_id} is running")
            self._said = ""

    def finish(self) -> None:
        """There is nothing more to explain."""
        self._over.set()

    def run(self) -> None:
        pause = _FIRST_EXPLANATION_SECONDS
        while not self._over.wait(pause):
            pause = _NEXT_EXPLANATION_SECONDS
            if self._waiting and not self._explain():
                return

    def _explain(self) -> bool:
        from distributio.sdk.errors import ClientError

        try:
            why = self._client.explain(self._job_id)
        except ClientError:
            return False  # the log stream meets the same trouble, and reports it
        text = "\n".join(explanation_lines(why))
        if text != self._said and self._waiting and not self._over.is_set():
            self._said = text
            show.note(text)
        return True


def explanation_lines(why: Explanation) -> list[str]:
    """Why a job is where it is, in a few lines."""
    summary = why.summary or why.state
    lines = [f"Job {why.job}: {summary}"]
    batch = why.job.partition(".")[0]
    for reason in why.because[:_REASONS_SHOWN]:
        times = f" ({reason.count}×)" if reason.count > 1 else ""
        if reason.sentence and reason.sentence.lower() not in summary.lower():
            lines.append(f"  {reason.sentence}{times}")
        if reason.advice and reason.advice not in summary:
            advice = re.sub(r"(`[^`]*) JOB\b", rf"\1 {why.job}", reason.advice)
            lines.append("  → " + re.sub(r"(`[^`]*) BATCH\b", rf"\1 {batch}", advice))
    return lines


def watch_batch(client: "Client", batch: BatchView) -> BatchView:
    """Show a batch's progress until it is over; return it as it ended."""
    if batch.state != "active":
        return batch
    shown = _bars(batch) if sys.stderr.isatty() else _lines(batch)
    with shown as show_it:
        for view in client.watch_batch(batch.id):
            show_it(view)
            batch = view
    return batch


def counted(batch: BatchView) -> str:
    """How many jobs are where."""
    return ", ".join(f"{batch.counts[state]:,} {state}" for state in STATES if batch.counts.get(state))


def decided(batch: BatchView) -> int:
    """How many jobs are over."""
    return sum(batch.counts.get(state, 0) for state in ("done", "failed", "cancelled"))


@contextmanager
def _bars(batch: BatchView) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("Batch {task.fields[batch]}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(counted(batch), total=batch.job_count, completed=decided(batch), batch=str(batch.id))
        yield lambda view: bars.update(task, description=counted(view), completed=decided(view))


@contextmanager
def _lines(batch: BatchView) -> Iterator[Any]:
    begun = time.monotonic()
    said_at, said = begun - _LINE_SECONDS, ""

    def show_it(view: BatchView) -> None:
        nonlocal said_at, said
        now, text = time.monotonic(), counted(view)
        if text != said and now - said_at >= _LINE_SECONDS and view.state == "active":
            said_at, said = now, text
            show.note(f"Batch {view.id}: {text}{_remaining(view, now - begun)}")

    yield show_it


def _remaining(batch: BatchView, elapsed: float) -> str:
    over = decided(batch)
    if not over or over == batch.job_count:
        return ""
    return f", about {seconds_text(elapsed / over * (batch.job_count - over))} left"


@contextmanager
def interruptible(what: str, follow: str) -> Iterator[None]:
    """Ctrl-C once says what can be done; twice raises KeyboardInterrupt; Ctrl-\\ raises Detached."""
    pressed = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        # Not through sys.stderr: a handler may run in the middle of one of its writes.
        os.write(2, f"\n{what} goes on. Ctrl-C again stops it; Ctrl-\\ leaves it running (then: {follow})\n".encode())

    def leave(number: int, frame: FrameType | None) -> None:
        raise Detached

    before = {signal.SIGINT: signal.signal(signal.SIGINT, interrupt)}
    if hasattr(signal, "SIGQUIT"):
        before[signal.SIGQUIT] = signal.signal(signal.SIGQUIT, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
