"""Which batch or job a person means by 7, 7.3, last or last.3."""

from typing import TYPE_CHECKING

from msgspec import Struct

from distributio.cli import config
from distributio.cli.exits import Stop

if TYPE_CHECKING:
    from distributio.sdk.client import Client

LAST = "last"


class Target(Struct, frozen=True):
    """A batch, or one job of it."""

    batch: int
    position: int | None = None

    @property
    def job(self) -> str:
        """The job's id; only where a position is known."""
        return f"{self.batch}.{self.position}"

    def __str__(self) -> str:
        return str(self.batch) if self.position is None else self.job


def target(client: "Client", text: str) -> Target:
    """Understand an id."""
    first, dot, second = text.partition(".")
    batch = _last_batch(client) if first == LAST else _number(first, text)
    return Target(batch, _number(second, text) if dot else None)


def job(client: "Client", text: str) -> Target:
    """Understand an id that must mean one job: a batch of one job means that job."""
    meant = target(client, text)
    if meant.position is not None:
        return meant
    count = client.batch(meant.batch).job_count
    if count != 1:
        raise Stop(f"Batch {meant.batch} has {count:,} jobs. Say which: {meant.batch}.1 to {meant.batch}.{count}.")
    return Target(meant.batch, 1)


def batch(client: "Client", text: str) -> int:
    """Understand an id that must mean a batch."""
    meant = target(client, text)
    if meant.position is not None:
        raise Stop(f"{text} is one job. Name its batch: {meant.batch}.")
    return meant.batch


def _last_batch(client: "Client") -> int:
    known = config.last(client.url)
    if known is None:
        raise Stop(
            f"Nothing has been submitted from here to {client.url} yet. Name the id: `distributio ps -a` lists them."
        )
    return known


def _number(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise Stop(f"{whole!r} is not an id. Write a batch such as 7, a job such as 7.3, or last.")
    return int(text)
