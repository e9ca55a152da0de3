"""Queues: which have ready tasks, whose they are, and what their projects have used of late.

A project's share is what its tasks were sent lately, in core-minutes, over its weight, halving every hour. It is kept only
while several projects wait: what one uses when nobody else wants it costs it nothing.
"""

from collections.abc import Iterator

import msgspec

from distributio.lifecycle import dispatch, quota
from distributio.lifecycle.dispatch import Shape, Waiting
from distributio.store.database import Transaction

_shapes: dict[str, Shape] = {}


def waiting(transaction: Transaction, now: float) -> list[Waiting]:
    """All queues with ready tasks, of projects that are enabled."""
    rows = transaction.rows(
        "SELECT queues.id, project_id, shape, ready, weight, share_used, share_at "
        "FROM queues JOIN projects ON projects.id = queues.project_id WHERE ready > 0 AND enabled"
    )
    places = _places(transaction, [row[0] for row in rows]) if len(rows) > 1 else {}
    return [
        Waiting(
            queue_id=queue,
            project_id=project,
            shape=shape_of(shape),
            ready=ready,
            share=quota.decayed(used, at, now) / weight,
            weight=weight,
            place=places.get(queue, (0, 0)),
        )
        for queue, project, shape, ready, weight, used, at in rows
    ]


def _places(transaction: Transaction, queue_ids: list[int]) -> dict[int, tuple[int, int]]:
    """Rank and number of each queue's next task."""
    first = "FROM tasks WHERE state = 'ready' AND queue_id = queues.id ORDER BY rank, tasks.id LIMIT 1"
    rows = transaction.rows(
        f"SELECT id, (SELECT rank {first}), (SELECT tasks.id {first}) FROM queues WHERE id IN (:ids...)", ids=queue_ids
    )
    return {queue: (rank, task) for queue, rank, task in rows if task is not None}


def shape_of(text: str) -> Shape:
    """Decode a shape; there are few, so each is decoded once."""
    shape = _shapes.get(text)
    if shape is None:
        shape = _shapes[text] = msgspec.json.decode(text, type=Shape)
    return shape


def queue_for(transaction: Transaction, project_id: int, shape: Shape) -> int:
    """The project's queue for tasks of this shape, made if it is the first."""
    text = msgspec.json.encode(shape, order="sorted").decode()
    transaction.tell(
        "INSERT INTO queues (project_id, shape) VALUES (:project, :shape) ON CONFLICT (project_id, shape) DO NOTHING",
        project=project_id,
        shape=text,
    )
    row = transaction.one(
        "SELECT id FROM queues WHERE project_id = :project AND shape = :shape", project=project_id, shape=text
    )
    assert row is not None
    return int(row[0])


class Shares:
    """The projects' shares during one turn: who is next, what each is charged."""

    def __init__(self, queues: list[Waiting]) -> None:
        self._queues = queues
        self._share = {queue.project_id: queue.share for queue in queues}
        self._weight = {queue.project_id: queue.weight for queue in queues}
        self._place = {queue.queue_id: queue.place for queue in queues}
        self._charged: set[int] = set()

    def is_alone(self) -> bool:
        """Whether only one queue waits."""
        return len(self._queues) == 1

    def in_turn(self) -> Iterator[Waiting]:
        """Queues in the order they are served now."""
        if len(self._queues) == 1:
            return iter(self._queues)
        now = [
            msgspec.structs.replace(queue, share=self._share[queue.project_id], place=self._place[queue.queue_id])
            for queue in self._queues
        ]
        return dispatch.in_turn(now)

    def charge(self, queue: Waiting, count: int, place: tuple[int, int]) -> None:
        """Tasks of this queue were chosen; `place` is where it goes on. What a project has while no other waits costs it
        nothing."""
        self._place[queue.queue_id] = place
        if len(self._share) > 1:
            self._share[queue.project_id] += count * max(queue.shape.cpus, 0.1) / queue.weight
            self._charged.add(queue.project_id)

    def save(self, transaction: Transaction, now: float) -> None:
        """Remember what was charged."""
        rows = [(self._share[project] * self._weight[project], now, project) for project in sorted(self._charged)]
        transaction.update_many("projects", "id", ("share_used", "share_at"), rows)
