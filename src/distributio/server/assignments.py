"""From a task the ledger sent to the assignment its host reads: what to run, from which image, until when."""

import msgspec
from msgspec import Struct

from distributio.server.site import Site
from distributio.server.turns import Sent
from distributio.store.database import Transaction
from distributio.store.views import fill
from distributio.wire.native import Assignment, JobChoice, Spec


class Running(Struct, frozen=True, kw_only=True):
    """What all assignments of one batch share. Never changes once the batch exists."""

    project: str
    spec: Spec
    reference: str
    platforms: dict[str, str]


class Batches:
    """Remembers batches that hosts are working on."""

    def __init__(self, site: Site, most: int = 20_000) -> None:
        self._site = site
        self._known: dict[int, Running] = {}
        self._most = most

    async def assignment(self, sent: Sent, platform: str) -> Assignment:
        """The assignment for a host of this platform."""
        running = self._known.get(sent.batch_id)
        if running is None:
            running = await self._site.read(_running, sent.batch_id)
            if len(self._known) >= self._most:
                self._known.clear()
            self._known[sent.batch_id] = running
        choice = msgspec.json.decode(sent.choice, type=JobChoice) if sent.choice else None
        return Assignment(
            task=sent.task_id,
            job=f"{sent.batch_id}.{sent.position}",
            project=running.project,
            spec=fill(running.spec, choice),
            image_name=f"{running.project}/{running.reference}" if running.reference else "",
            image_manifest=running.platforms.get(platform, ""),
            deadline_at=sent.deadline_at,
        )


def _running(transaction: Transaction, batch_id: int) -> Running:
    row = transaction.one(
        "SELECT projects.name, batches.spec, images.reference, images.platforms FROM batches "
        "JOIN projects ON projects.id = batches.project_id LEFT JOIN images ON images.id = batches.image_id "
        "WHERE batches.id = :id",
        id=batch_id,
    )
    assert row is not None
    reference = (row[2] or "").partition("@")[0]
    repository, colon, tag = reference.rpartition(":")
    return Running(
        project=row[0],
        spec=msgspec.json.decode(row[1], type=Spec),
        reference=repository if colon and "/" not in tag else reference,
        platforms=msgspec.json.decode(row[3]) if row[3] else {},
    )
