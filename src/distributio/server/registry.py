"""How the site's images are read: a registry that every engine and every host can pull from, and nobody can push to.

It speaks the reading half of the OCI Distribution API. Blobs are named by their content, so they may be kept for ever
by whoever has them, and an interrupted download goes on with a range. Engines log in with any user name and a
token as the password.
"""

import re
from collections.abc import AsyncIterator, Callable, Iterator
from enum import StrEnum
from typing import BinaryIO

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from distributio.store.files import Content
from distributio.wire import oci

CHUNK = 1 << 20

_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}
_FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable"}


class Access(StrEnum):
    """What may be told to the one who asks."""

    GRANTED = "granted"
    HIDDEN = "hidden"  # known, but this is none of theirs: it does not exist for them
    UNKNOWN = "unknown"  # we do not know who it is


# Who may read what: (request, image name, digest). For the start page both are empty: whether anybody is known.
MayRead = Callable[[Request, str, str], Access]
# The digest an image's tag or digest stands for, or None: (request, image name, tag or digest).
FindManifest = Callable[[Request, str, str], str | None]


class Registry:
    """The endpoints under /v2/. `may_read` and `find_manifest` are called in threads."""

    def __init__(self, content: Content, find_manifest: FindManifest, may_read: MayRead) -> None:
        self._content = content
        self._find_manifest = find_manifest
        self._may_read = may_read

    def routes(self) -> list[Route]:
        """Every endpoint, ready to be mounted at the top."""
        return [
            Route("/v2/", self.start, methods=["GET", "HEAD"]),
            Route("/v2", self.start, methods=["GET", "HEAD"]),
            Route("/v2/{name:path}/manifests/{reference}", self.manifest, methods=["GET", "HEAD"]),
            Route("/v2/{name:path}/blobs/{digest}", self.blob, methods=["GET", "HEAD"]),
            Route("/v2/{rest:path}", self.other, methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]),
        ]

    async def start(self, request: Request) -> Response:
        """GET /v2/: engines ask here whether they have to log in."""
        access = await run_in_threadpool(self._may_read, request, "", "")
        if access is Access.UNKNOWN:
            return _who_are_you()
        return Response(b"{}", media_type="application/json", headers=_VERSION)

    async def other(self, request: Request) -> Response:
        """The rest of the Distribution API: pushing, and lists that nobody needs to pull."""
        if request.method in ("GET", "HEAD"):
            return _problem(404, "UNSUPPORTED", "this registry answers for manifests and blobs only")
        return _problem(405, "UNSUPPORTED", "this registry is read-only; bring images with distributio image import")

    async def manifest(self, request: Request) -> Response:
        """GET /v2/NAME/manifests/TAG_OR_DIGEST"""
        name, reference = request.path_params["name"], request.path_params["reference"]
        digest = await run_in_threadpool(self._find_manifest, request, name, reference)
        access = await run_in_threadpool(self._may_read, request, name, digest or "")
        if access is Access.UNKNOWN:
            return _who_are_you()
        if digest is None or access is Access.HIDDEN:
            return _problem(404, "MANIFEST_UNKNOWN", f"there is no image {name}:{reference} here")
        try:
            data = await run_in_threadpool(self._content.read, digest, oci.DOCUMENT_BYTES)
        except FileNotFoundError:
            return _problem(404, "MANIFEST_UNKNOWN", f"{digest} is gone from this site")
        headers = {**_about(digest), **(_FOR_EVER if oci.is_digest(reference) else {"Cache-Control": "no-cache"})}
        if _is_known(request, digest):
            return Response(status_code=304, headers=headers)
        kind = oci.media_type_of(oci.parse_document(data))
        # Starlette adds a charset to text types only; engines compare this one to the letter.
        return Response(_body(request, data), media_type=kind, headers={**headers, "Content-Length": str(len(data))})

    async def blob(self, request: Request) -> Response:
        """GET /v2/NAME/blobs/DIGEST"""
        name, digest = request.path_params["name"], request.path_params["digest"]
        if not oci.is_digest(digest):
            return _problem(400, "DIGEST_INVALID", "a blob is named by sha256: and 64 hexadecimal digits")
        access = await run_in_threadpool(self._may_read, request, name, digest)
        if access is Access.UNKNOWN:
            return _who_are_you()
        unknown = _problem(404, "BLOB_UNKNOWN", f"{name} has no {digest} here")
        if access is Access.HIDDEN:
            return unknown
        headers = {**_about(digest), **_FOR_EVER, "Accept-Ranges": "bytes"}
        if _is_known(request, digest):
            return Response(status_code=304, headers=headers)
        try:
            size = await run_in_threadpool(self._content.size, digest)
        except FileNotFoundError:
            return unknown
        return await self._bytes(request, digest, size, headers)

    async def _bytes(self, request: Request, digest: str, size: int, headers: dict[str, str]) -> Response:
        span = _span(request, digest, size)
        if span is None:
            answer = _problem(416, "RANGE_INVALID", f"the blob has {size} bytes")
            answer.headers["Content-Range"] = f"bytes */{size}"
            return answer
        start, end = span
        status = 200 if (start, end) == (0, size) else 206
        headers = {**headers, "Content-Length": str(end - start)}
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        if request.method == "HEAD" or start == end:
            return Response(status_code=status, headers=headers, media_type="application/octet-stream")
        body = await self._body_of(digest, start, end)
        return StreamingResponse(body, status, headers, "application/octet-stream")

    async def _body_of(self, digest: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes, read in threads. Opened before the answer begins, so that what is gone by then is an error."""
        if self._content.path(digest) is None:
            return _from_iterator(self._content.stream(digest, start, end))
        return _from_file(await run_in_threadpool(self._content.open, digest), start, end)


async def _from_file(file: BinaryIO, start: int, end: int) -> AsyncIterator[bytes]:
    with file:
        position = start
        while position < end:
            data = await run_in_threadpool(_read, file, position, min(CHUNK, end - position))
            if not data:
                return  # it was cut short under our hands: the length announced tells the reader
            position += len(data)
            yield data


def _read(file: BinaryIO, position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size)


async def _from_iterator(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while data := await run_in_threadpool(next, chunks, b""):
        yield data


def _span(request: Request, digest: str, size: int) -> tuple[int, int] | None:
    """The part that is asked for, as start and end; None if it lies outside. What is not understood asks for all."""
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", request.headers.get("range", "").replace(" ", ""))
    condition = request.headers.get("if-range")
    if not found or not any(found.groups()) or (condition and condition != _tag(digest)):
        return 0, size
    first, last = found.groups()
    if not first:
        wanted = min(int(last), size)
        return (size - wanted, size) if wanted else None
    start = int(first)
    if start >= size or (last and int(last) < start):
        return None
    return start, min(int(last) + 1, size) if last else size


def _tag(digest: str) -> str:
    return f'"{digest}"'


def _about(digest: str) -> dict[str, str]:
    return {**_VERSION, "Docker-Content-Digest": digest, "ETag": _tag(digest), "X-Content-Type-Options": "nosniff"}


def _is_known(request: Request, digest: str) -> bool:
    known = request.headers.get("if-none-match", "")
    return known.strip() == "*" or digest in (word.strip(' "').removeprefix('W/"') for word in known.split(","))


def _body(request: Request, data: bytes) -> bytes:
    return b"" if request.method == "HEAD" else data


def _who_are_you() -> Response:
    answer = _problem(401, "UNAUTHORIZED", "log in with any user name and a token of this site as the password")
    answer.headers["WWW-Authenticate"] = 'Basic realm="Distribut.io: any user name, a token as the password"'
    return answer


def _problem(status: int, code: str, message: str) -> Response:
    body = msgspec.json.encode({"errors": [{"code": code, "message": message, "detail": None}]})
    return Response(body, status, _VERSION, "application/json")
