"""What tasks printed: pieces that came while they ran and with their reports, put together again.

A piece says at which byte of the log it begins. The same piece may come twice, and longer the second time: a host that did not
hear that the first came sends from the same place again, with what was printed since.
"""

from collections import defaultdict
from collections.abc import Iterable

from distributio.store.database import Transaction

Piece = tuple[int, int, bytes]  # task, offset of its first byte, bytes


def keep(transaction: Transaction, pieces: list[Piece]) -> None:
    """Keep pieces, at most one of each task and offset; of two from the same offset the longer."""
    transaction.insert_many(
        "logs",
        ("task_id", "start", "bytes"),
        pieces,
        "ON CONFLICT (task_id, start) DO UPDATE SET bytes = excluded.bytes "
        "WHERE length(excluded.bytes) > length(logs.bytes)",
    )


def read(transaction: Transaction, task_id: int, start: int = 0) -> bytes:
    """A task's log from an offset on, as far as the site has it without a gap."""
    rows = transaction.rows("SELECT start, bytes FROM logs WHERE task_id = :task ORDER BY start", task=task_id)
    return _stitched(rows, start)


def read_many(transaction: Transaction, task_ids: list[int]) -> dict[int, bytes]:
    """The logs of these tasks; those that printed nothing are left out."""
    pieces: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
    for task, begin, data in transaction.rows(
        "SELECT task_id, start, bytes FROM logs WHERE task_id IN (:ids...) ORDER BY task_id, start", ids=task_ids
    ):
        pieces[task].append((begin, data))
    return {task: _stitched(rows, 0) for task, rows in pieces.items()}


def size(transaction: Transaction, task_id: int) -> int:
    """How many bytes of a task's log the site has."""
    row = transaction.one(
        "SELECT start, length(bytes) FROM logs WHERE task_id = :task ORDER BY start DESC LIMIT 1", task=task_id
    )
    return int(row[0]) + int(row[1]) if row else 0


def _stitched(pieces: Iterable[tuple[int, bytes]], start: int) -> bytes:
    """Pieces in order of their offsets as one text from `start` on, up to the first gap; what overlaps counts once."""
    parts = []
    place = start
    for begin, data in pieces:
        end = begin + len(data)
        if end <= place:
            continue
        if begin > place:
            break
        parts.append(bytes(data[place - begin :]))
        place = end
    return b"".join(parts)
