"""How bytes come to a host and leave it: by content, checked, and on from where they stopped."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from distributio.agent.site import Refused, Site, SiteAway

_PIECE_BYTES = 1 << 20
_TRIES_WITHOUT_PROGRESS = 2  # within one call; the caller waits and calls again
_LIES_BELIEVED = 1  # bytes may be spoilt on the way once; twice, the source is wrong

Stop = Callable[[], bool]


class TransferFailed(Exception):
    """These bytes cannot be had or given away; `code` is the cause to report."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Stopped(Exception):
    """The transfer is not wanted any more."""


class _Part:
    """The beginning of a file that is being fetched, hashed as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._hash = hashlib.sha256()
        if path.exists():
            with path.open("rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    self._hash.update(piece)
                    self.size += len(piece)

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()

    def start_over(self) -> None:
        self.path.unlink(missing_ok=True)
        self.size = 0
        self._hash = hashlib.sha256()

    def grow(self, pieces: Iterator[bytes], most_bytes: int, stop: Stop) -> None:
        with self.path.open("ab") as file:
            for piece in pieces:
                if stop():
                    raise Stopped
                if self.size + len(piece) > most_bytes:
                    raise TransferFailed(
                        "digest-mismatch", f"{self.path.stem} is larger than the {most_bytes} bytes announced"
                    )
                file.write(piece)
                self._hash.update(piece)
                self.size += len(piece)
            file.flush()
            os.fsync(file.fileno())


def download(
    site: Site, path: str, target: Path, digest: str, size_bytes: int | None, most_bytes: int, stop: Stop
) -> None:
    """Bring these bytes to `target`, which appears only when they are all there and are what the digest says."""
    part = _Part(target.with_name(target.name + ".part"))
    lies = tries = 0
    while True:
        before = part.size
        try:
            if size_bytes is None or part.size < size_bytes or not size_bytes:
                _continue(site, path, part, most_bytes if size_bytes is None else size_bytes, stop)
        except SiteAway:
            tries = 0 if part.size > before else tries + 1
            if tries >= _TRIES_WITHOUT_PROGRESS:
                raise
            continue
        if part.digest == digest:
            part.path.replace(target)
            return
        if size_bytes is not None and before < part.size < size_bytes:
            continue
        found = part.digest
        part.start_over()
        lies += 1
        if lies > _LIES_BELIEVED:
            raise TransferFailed("digest-mismatch", f"what the site sends for {digest} has the digest {found}")


def _continue(site: Site, path: str, part: _Part, most_bytes: int, stop: Stop) -> None:
    headers = {"Range": f"bytes={part.size}-"} if part.size else {}
    try:
        with site.stream(path, headers) as (answer, pieces):
            if part.size and answer.status_code != 206:
                part.start_over()  # it sends everything from the beginning
            part.grow(pieces, most_bytes, stop)
    except Refused as error:
        if error.status == 416 and part.size:
            part.start_over()
            return
        raise TransferFailed("fetch-refused", f"the site does not give {path} ({error.status}): {error}") from error
    except TransferFailed:
        part.start_over()
        raise


def upload(site: Site, path: str, source: Path, digest: str, stop: Stop) -> None:
    """See to it that the site holds this file."""
    total = source.stat().st_size
    tries = refusals = 0
    offset = -1
    while True:
        if stop():
            raise Stopped
        before = offset
        try:
            offset = held_upstream(site, path, digest, total)
            if offset >= total:
                return
            answer = site.put_file(path, source, offset, _upload_headers(offset, total, digest))
            if answer.status_code != 202:
                return
        except SiteAway:
            tries = 0 if offset > before else tries + 1
            if tries >= _TRIES_WITHOUT_PROGRESS:
                raise
        except Refused as error:
            refusals += 1
            if error.status not in (409, 422) or refusals > 2:
                raise TransferFailed(
                    "upload-refused", f"the site does not take the output ({error.status}): {error}"
                ) from error


def held_upstream(site: Site, path: str, digest: str, total: int) -> int:
    """How many bytes of an upload the site holds already."""
    try:
        site.request("HEAD", path, headers={"Digest": digest})
    except Refused as error:
        offset = error.headers.get("Upload-Offset", "0")
        if error.status != 404 or not offset.isdigit():
            raise
        return int(offset)
    return total


def _upload_headers(offset: int, total: int, digest: str) -> dict[str, str]:
    return {"Upload-Offset": str(offset), "Upload-Length": str(total), "Digest": digest}


def file_digest(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
