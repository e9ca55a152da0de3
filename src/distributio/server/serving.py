"""Bytes out and in: answers with Range from any store, and uploads that can be continued."""

import fcntl
import hashlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from io import BufferedReader, FileIO
from pathlib import Path

from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response, StreamingResponse

from distributio.server.problems import Refused, not_found
from distributio.server.routes import Call, whole_number
from distributio.server.site import Site
from distributio.store import accounts
from distributio.store.files import DigestMismatch

_RANGE = re.compile(r"^bytes=(\d+)-(\d*)$")


async def file_response(call: Call, key: str, media_type: str, headers: dict[str, str] | None = None) -> Response:
    """Whatever stands under a key, with Range. Raises Refused if nothing does."""
    site = call.site
    headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox", **(headers or {})}
    path = site.files.path_of(key)
    if path is not None:
        if not await site.in_thread(path.is_file):
            raise not_found("file")
        return FileResponse(path, media_type=media_type, headers=headers)
    try:
        size = await site.in_thread(site.files.size_of, key)
    except FileNotFoundError:
        raise not_found("file") from None
    start, end, status = 0, size, 200
    asked = _RANGE.match(call.request.headers.get("range", ""))
    if asked:
        start = int(asked[1])
        end = min(size, int(asked[2]) + 1) if asked[2] else size
        if start >= size:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
        status = 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers |= {"Content-Length": str(end - start), "Accept-Ranges": "bytes"}
    if call.request.method == "HEAD":
        return Response(status_code=status, media_type=media_type, headers=headers)
    body = _in_threads(site, site.files.stream_key(key, start, end))
    return StreamingResponse(body, status, headers, media_type)


async def _in_threads(site: Site, chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (chunk := await site.in_thread(next, chunks, None)) is not None:
        yield chunk


async def check_storage(site: Site, project_id: int, more: int) -> None:
    """Refuse bytes that would pass the project's limit of storage."""
    limit = (await site.read(accounts.limits_of, project_id)).get("storage_bytes")
    if limit is None:
        return
    used = (await site.read(accounts.usage_of, project_id))["storage_bytes"]
    if used + more > limit:
        raise Refused(
            403, "quota-exceeded", f"{more} bytes more than the {used} stored would pass the limit of {limit}"
        )


class Part:
    """An upload that may come in pieces: its bytes so far stand in a file of the scratch folder."""

    def __init__(self, site: Site, name: str) -> None:
        self._site = site
        self.path: Path = site.scratch / f"{name}.part"

    def offset(self) -> int:
        """How many bytes are here."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    async def take(self, request: Request, total: int, most: int) -> int:
        """Append a request's body at its `Upload-Offset`; return how many bytes are here then. A cut connection keeps what
        came. Raises Refused for a wrong offset or too many bytes."""
        if total > most:
            raise Refused(413, "too-large", f"{total} bytes are more than the {most} that are allowed")
        held = await self._site.in_thread(self.offset)
        offset = number_in(request, "upload-offset", 0)
        if offset != held:
            raise wrong_offset(held)
        handle = await self._site.in_thread(open, self.path, "ab", 0)
        try:
            return await self._append(handle, request, held, total)
        finally:
            await self._site.in_thread(handle.close)

    async def _append(self, handle: FileIO, request: Request, held: int, total: int) -> int:
        pending: list[bytes] = []
        size = 0
        try:
            async for chunk in request.stream():
                pending.append(chunk)
                size += len(chunk)
                if held + size > total:
                    raise Refused(422, "too-large", f"more bytes came than the {total} that were announced")
                if size >= 1 << 20:
                    held = await self._site.in_thread(_extend, handle, held, pending)
                    size, pending = 0, []
        except ClientDisconnect:
            await self._site.in_thread(_extend, handle, held, pending)
            raise Refused(400, "bad-request", "the connection was cut; what came is kept") from None
        return await self._site.in_thread(_extend, handle, held, pending)

    def check(self, digest: str) -> None:
        """Compare the whole with its digest. Raises DigestMismatch, and the bytes are dropped."""
        with self.open() as handle:
            found = f"sha256:{hashlib.file_digest(handle, 'sha256').hexdigest()}"
        if found != digest:
            self.drop()
            raise DigestMismatch(f"expected {digest}, but the bytes are {found}: send them again from the start")

    def open(self) -> BufferedReader:
        """The bytes so far. Raises Refused if another request has taken them away."""
        try:
            return open(self.path, "rb")
        except FileNotFoundError:
            raise wrong_offset(0) from None

    def drop(self) -> None:
        """Forget the bytes."""
        self.path.unlink(missing_ok=True)


def _extend(handle: FileIO, held: int, pieces: list[bytes]) -> int:
    """Append to an upload, if it is as long as it was; return its length. Of two requests that bring the same bytes at the
    same time, of one process or of two, the first goes on and the other is told where the upload stands."""
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        found = os.fstat(handle.fileno()).st_size
        if found != held or os.fstat(handle.fileno()).st_nlink == 0:
            raise wrong_offset(found)
        data = memoryview(b"".join(pieces))
        while data:
            written = handle.write(data)
            data, held = data[written:], held + written
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)
    return held


def wrong_offset(held: int) -> Refused:
    """The refusal that says where an upload stands."""
    refused = Refused(409, "wrong-offset", f"the site has {held} bytes: go on from there")
    refused.headers["Upload-Offset"] = str(held)
    return refused


def number_in(request: Request, name: str, default: int) -> int:
    """A number in a header."""
    text = request.headers.get(name, str(default))
    number = whole_number(text)
    if number is None:
        raise Refused(422, "bad-request", f"the header {name} is {text[:40]!r}, which is not a number")
    return number
