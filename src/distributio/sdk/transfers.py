"""How bytes go to a site and come from it: by content, never twice, and on from where they stopped."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import httpx2
import msgspec

from distributio.sdk.errors import SiteError, TransferError
from distributio.sdk.tars import Content
from distributio.sdk.transport import LONG_READ_SECONDS, Transport, is_passing, problem_of
from distributio.wire.native import ImageView

Progress = Callable[[int, int], None]  # bytes done, bytes in all (0: not known)

PIECE_BYTES = 8 << 20  # one request of an upload: what is lost at most when a connection breaks

_HELD = frozenset({404})
_OFFSET_OR_DIGEST = frozenset({409, 422})
_START_AGAIN = frozenset({"wrong-offset", "wrong-digest", "digest-mismatch"})
_RANGE_NOT_SATISFIABLE = 416
_PARTIAL = 206
_MOST_STARTS = 3  # a file that changes while it is sent is given up after so many


def nothing(done: int, total: int) -> None:
    """Progress for those who do not look."""


def upload(transport: Transport, content: Content, progress: Progress = nothing) -> bool:
    """See to it that the site holds these bytes. False if it held them already."""
    path = f"/api/v1/files/{content.digest}"
    starts = furthest = 0
    while starts < _MOST_STARTS:
        answer = transport.send("HEAD", path, accept=_HELD)
        if answer.status_code != 404:
            progress(content.size_bytes, content.size_bytes)
            return furthest > 0
        offset = _offset(answer)
        starts = 1 if offset > furthest else starts + 1  # as long as it gets on, a broken connection counts for nothing
        furthest = max(furthest, offset)
        if _send_from(transport, path, content, offset, progress):
            return True
    raise TransferError(
        f"{content.path} did not arrive whole after {_MOST_STARTS} attempts. It may be changing while it is sent: "
        "copy it first, and send the copy."
    )


def _send_from(transport: Transport, path: str, content: Content, offset: int, progress: Progress) -> bool:
    """Send piece after piece. False when the site and we no longer agree on where we are."""
    with content.path.open("rb") as source:
        while True:
            source.seek(offset)
            piece = source.read(PIECE_BYTES)
            answer = transport.send(
                "PUT",
                path,
                body=piece,
                headers={"Upload-Offset": str(offset), "Upload-Length": str(content.size_bytes)},
                accept=_OFFSET_OR_DIGEST,
            )
            if answer.status_code in _OFFSET_OR_DIGEST:
                problem = problem_of(answer)
                if problem.code not in _START_AGAIN:
                    raise SiteError(problem)
                return False
            offset = min(offset + len(piece), content.size_bytes)
            progress(offset, content.size_bytes)
            if answer.status_code in (200, 201):
                return True
            offset = _offset(answer, default=offset)
            if not piece:
                return False


def download(transport: Transport, path: str, target: Path, progress: Progress = nothing) -> int:
    """Fetch into `target`, on from what an earlier attempt left, and put it in place whole. Return its size."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    tag_file = target.with_name(f".{target.name}.tag")  # whose bytes the part holds
    backoff = transport.backoff()
    while True:
        try:
            _fetch(transport, path, part, tag_file, progress, backoff.renew)
            break
        except httpx2.TransportError as error:
            transport.pause_or_raise(backoff, error)
        except SiteError as error:
            if error.status == _RANGE_NOT_SATISFIABLE and part.exists():
                part.unlink()
            elif is_passing(error):
                transport.pause_or_raise(backoff, error)
            else:
                part.unlink(missing_ok=True)
                tag_file.unlink(missing_ok=True)
                raise
    os.replace(part, target)
    tag_file.unlink(missing_ok=True)
    return target.stat().st_size


def _fetch(
    transport: Transport, path: str, part: Path, tag_file: Path, progress: Progress, heard: Callable[[], None]
) -> None:
    """One attempt; what arrived is kept in `part` whatever happens."""
    held, tag = _resumable(part, tag_file)
    headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
    if held:
        headers |= {"Range": f"bytes={held}-", "If-Range": tag}
    with transport.open("GET", path, headers=headers) as response:
        if response.status_code != _PARTIAL:
            held = 0
        new_tag = response.headers.get("ETag", "")
        tag_file.write_text(new_tag if not new_tag.startswith("W/") else "")
        total = held + int(response.headers.get("Content-Length", "0"))
        with part.open("ab" if held else "wb") as output:
            for piece in response.iter_raw():
                output.write(piece)
                held += len(piece)
                heard()
                progress(held, total)
            output.flush()
            os.fsync(output.fileno())


def _resumable(part: Path, tag_file: Path) -> tuple[int, str]:
    # Without the tag of the first answer nobody can say that the rest belongs to the same bytes.
    if not part.exists() or not tag_file.exists():
        return 0, ""
    tag = tag_file.read_text()
    return (part.stat().st_size, tag) if tag else (0, "")


def upload_archive(
    transport: Transport, reference: str, pieces: Iterable[bytes], progress: Progress = nothing, total: int = 0
) -> ImageView:
    """Stream an image archive to the site. It is read once, so a broken connection ends it."""
    transport.send("GET", "/livez")  # a site that restarts is waited for before the only copy of the stream is used up
    answer = transport.send(
        "POST",
        "/api/v1/images/archive",
        body=_counted(pieces, progress, total),
        headers={"Content-Type": "application/x-tar"},
        params={"reference": reference} if reference else None,
        again=False,
        read_seconds=LONG_READ_SECONDS,
    )
    return msgspec.json.decode(answer.content, type=ImageView)


def _counted(pieces: Iterable[bytes], progress: Progress, total: int) -> Iterator[bytes]:
    done = 0
    for piece in pieces:
        yield piece
        done += len(piece)
        progress(done, total)


def _offset(response: httpx2.Response, default: int = 0) -> int:
    return int(response.headers.get("Upload-Offset", default))
