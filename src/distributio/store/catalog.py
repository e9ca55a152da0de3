"""Images and input files: what a project has on the site, and what nobody needs any more."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from distributio.store.database import Transaction


class Image(Struct, frozen=True, kw_only=True):
    """An image of a project. `platforms` maps "os/arch" to the manifest's digest."""

    id: int
    project_id: int
    reference: str
    digest: str
    platforms: dict[str, str]
    size_bytes: int
    created_at: float
    jobs_using: int = 0


_IMAGE = "images.id, project_id, reference, digest, platforms, size_bytes, images.created_at"


def _image(row: tuple[Any, ...], jobs_using: int = 0) -> Image:
    return Image(
        id=row[0],
        project_id=row[1],
        reference=row[2],
        digest=row[3],
        platforms=json.loads(row[4]),
        size_bytes=row[5],
        created_at=row[6],
        jobs_using=jobs_using,
    )


def add_image(
    transaction: Transaction,
    project_id: int,
    reference: str,
    digest: str,
    platforms: Mapping[str, str],
    blobs: Iterable[tuple[str, int]],
    now: float,
) -> Image:
    """Remember an imported image with all of its blobs (digest, size). Importing the same again makes it the latest."""
    sizes = dict(blobs)
    transaction.run(
        "INSERT INTO images (project_id, reference, digest, platforms, size_bytes, created_at) "
        "VALUES (:project, :reference, :digest, :platforms, :size, :now) "
        "ON CONFLICT (project_id, reference, digest) DO UPDATE SET "
        "platforms = excluded.platforms, size_bytes = excluded.size_bytes, created_at = excluded.created_at",
        project=project_id,
        reference=reference,
        digest=digest,
        platforms=json.dumps(dict(platforms), sort_keys=True),
        size=sum(sizes.values()),
        now=now,
    )
    row = transaction.one(
        f"SELECT {_IMAGE} FROM images WHERE project_id = :project AND reference = :reference AND digest = :digest",
        project=project_id,
        reference=reference,
        digest=digest,
    )
    assert row is not None
    image = _image(row)
    transaction.insert_many(
        "image_blobs",
        ("image_id", "digest", "size_bytes"),
        [(image.id, blob, size) for blob, size in sizes.items()],
        "ON CONFLICT (image_id, digest) DO NOTHING",
    )
    return image


def image_by_reference(transaction: Transaction, project_id: int, reference: str) -> Image | None:
    """The project's latest import under a name (`repository:tag`), or the one with that digest."""
    row = transaction.one(
        f"SELECT {_IMAGE} FROM images WHERE project_id = :project AND (reference = :reference OR digest = :reference) "
        "ORDER BY images.created_at DESC, images.id DESC LIMIT 1",
        project=project_id,
        reference=reference,
    )
    return _image(row) if row else None


def image_by_id(transaction: Transaction, image_id: int) -> Image | None:
    """One image."""
    row = transaction.one(f"SELECT {_IMAGE} FROM images WHERE id = :id", id=image_id)
    return _image(row) if row else None


def images_of(transaction: Transaction, project_id: int, before: int, most: int) -> list[Image]:
    """A project's images, newest first, with the undecided jobs of each."""
    rows = transaction.rows(
        f"SELECT {_IMAGE}, (SELECT coalesce(sum(waiting + running + checking), 0) FROM batches "
        "WHERE batches.image_id = images.id) "
        "FROM images WHERE project_id = :project AND images.id < :before ORDER BY images.id DESC LIMIT :most",
        project=project_id,
        before=before,
        most=most,
    )
    return [_image(row, int(row[7])) for row in rows]


def jobs_using(transaction: Transaction, image_id: int) -> int:
    """How many undecided jobs run an image."""
    row = transaction.one(
        "SELECT coalesce(sum(waiting + running + checking), 0) FROM batches WHERE image_id = :id", id=image_id
    )
    return int(row[0]) if row else 0


def remove_image(transaction: Transaction, image_id: int) -> int:
    """Forget an image that no undecided job runs; return how many do: it is forgotten if none does. Its blobs go when nothing
    else needs them. Batches that ran it keep what they recorded of it."""
    # A submission that is under way waits here, or this waits for it.
    transaction.rows(f"SELECT 1 FROM images WHERE id = :id {transaction.lock()}", id=image_id)
    using = jobs_using(transaction, image_id)
    if using:
        return using
    transaction.run("UPDATE batches SET image_id = NULL WHERE image_id = :id", id=image_id)
    transaction.run("DELETE FROM image_blobs WHERE image_id = :id", id=image_id)
    transaction.run("DELETE FROM images WHERE id = :id", id=image_id)
    return 0


def hold_image(transaction: Transaction, image_id: int) -> bool:
    """Whether the image is there, and stays until the transaction ends."""
    lock = "FOR KEY SHARE" if transaction.is_postgresql else ""
    return transaction.one(f"SELECT 1 FROM images WHERE id = :id {lock}", id=image_id) is not None


def has_blob(transaction: Transaction, digest: str, *, project_ids: list[int] | None, host_id: int | None) -> bool:
    """Whether an image's blob may be read: by members of a project that has it, or by a host with a task that needs it."""
    if host_id is not None:
        row = transaction.one(
            "SELECT 1 FROM image_blobs JOIN batches ON batches.image_id = image_blobs.image_id "
            "JOIN jobs ON jobs.batch_id = batches.id JOIN tasks ON tasks.job_id = jobs.id "
            "WHERE image_blobs.digest = :digest AND tasks.host_id = :host AND tasks.state = 'in_progress' LIMIT 1",
            digest=digest,
            host=host_id,
        )
        return row is not None
    if project_ids is None:
        return transaction.one("SELECT 1 FROM image_blobs WHERE digest = :digest LIMIT 1", digest=digest) is not None
    row = transaction.one(
        "SELECT 1 FROM image_blobs JOIN images ON images.id = image_id "
        "WHERE image_blobs.digest = :digest AND project_id IN (:projects...) LIMIT 1",
        digest=digest,
        projects=project_ids,
    )
    return row is not None


def host_needs_file(transaction: Transaction, host_id: int, digest: str) -> bool:
    """Whether a host has a task in progress that takes this input."""
    row = transaction.one(
        "SELECT 1 FROM tasks JOIN jobs ON jobs.id = tasks.job_id JOIN batch_files ON batch_files.batch_id = jobs.batch_id "
        "WHERE tasks.host_id = :host AND tasks.state = 'in_progress' AND batch_files.digest = :digest LIMIT 1",
        host=host_id,
        digest=digest,
    )
    return row is not None


def add_file(transaction: Transaction, project_id: int, digest: str, size_bytes: int, now: float) -> None:
    """A project has sent a file; sending it again makes it fresh."""
    transaction.run(
        "INSERT INTO project_files (project_id, digest, size_bytes, created_at) VALUES (:project, :digest, :size, :now) "
        "ON CONFLICT (project_id, digest) DO UPDATE SET created_at = excluded.created_at",
        project=project_id,
        digest=digest,
        size=size_bytes,
        now=now,
    )


def file_size(transaction: Transaction, project_id: int, digest: str) -> int | None:
    """The size of a file the project has sent, or None."""
    row = transaction.one(
        "SELECT size_bytes FROM project_files WHERE project_id = :project AND digest = :digest",
        project=project_id,
        digest=digest,
    )
    return int(row[0]) if row else None


def missing_files(transaction: Transaction, project_id: int, digests: list[str]) -> list[str]:
    """Which of these the project has not sent."""
    known = {
        row[0]
        for row in transaction.rows(
            "SELECT digest FROM project_files WHERE project_id = :project AND digest IN (:digests...)",
            project=project_id,
            digests=digests,
        )
    }
    return [digest for digest in digests if digest not in known]


def forget_unused_files(transaction: Transaction, before: float, most: int) -> int:
    """Drop projects' claims to files that no undecided batch of theirs needs and that are older than an instant."""
    return transaction.run(
        "DELETE FROM project_files WHERE (project_id, digest) IN (SELECT pf.project_id, pf.digest FROM project_files pf "
        "WHERE pf.created_at < :before AND NOT EXISTS (SELECT 1 FROM batch_files bf JOIN batches b ON b.id = bf.batch_id "
        "WHERE bf.digest = pf.digest AND b.project_id = pf.project_id AND b.ended_at IS NULL) LIMIT :most)",
        before=before,
        most=most,
    )


def is_content_needed(transaction: Transaction, digest: str) -> bool:
    """Whether anything refers to this content."""
    row = transaction.one(
        "SELECT 1 FROM project_files WHERE digest = :digest UNION ALL "
        "SELECT 1 FROM image_blobs WHERE digest = :digest UNION ALL "
        "SELECT 1 FROM boinc_version_files WHERE digest = :digest LIMIT 1",
        digest=digest,
    )
    return row is not None
