"""Files by content: input files that people send, and what hosts fetch and bring."""

import re
import time

from starlette.responses import Response

from distributio.server import host_api
from distributio.server.problems import Refused, not_found
from distributio.server.routes import FAR, Answer, Call, body_of
from distributio.server.serving import Part, check_storage, file_response, number_in
from distributio.store import catalog
from distributio.store.files import DigestMismatch, content_key, output_key
from distributio.wire.native import LOG_BYTES, LogAnswer
from distributio.wire.results_tar import Bounds, verify
from distributio.wire.tar_blocks import BadResults

_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")


def _digest(text: str) -> str:
    if not _DIGEST.match(text):
        raise Refused(422, "bad-request", f"{text[:90]!r} is not a digest: sha256: and 64 hexadecimal digits")
    return text


# --- people's input files ---------------------------------------------------------------------------------------


async def head_file(call: Call) -> Response:
    """Whether the project has sent a file, or how much of it."""
    project_id = call.project_id("member")
    digest = _digest(call.path("digest"))
    size = await call.site.read(catalog.file_size, project_id, digest)
    if size is not None and await call.site.in_thread(call.site.content.has, digest):
        return Response(headers={"Content-Length": str(size)})
    held = await call.site.in_thread(_part(call, project_id, digest).offset)
    return Response(status_code=404, headers={"Upload-Offset": str(held)})


def _part(call: Call, project_id: int, digest: str) -> Part:
    return Part(call.site, f"file-{project_id}-{digest.removeprefix('sha256:')}")


async def put_file(call: Call) -> Response:
    """Send a file, whole or the rest of it."""
    site = call.site
    project_id = call.project_id("member")
    digest = _digest(call.path("digest"))
    part = _part(call, project_id, digest)
    total = number_in(call.request, "upload-length", number_in(call.request, "content-length", 0))
    await check_storage(site, project_id, total)
    held = await part.take(call.request, total, site.settings.max_file_bytes)
    if held < total:
        return Response(status_code=202, headers={"Upload-Offset": str(held)})
    await site.in_thread(part.check, digest)

    def keep() -> None:
        if not site.content.has(digest):
            with part.open() as handle:
                site.files.put(content_key(digest), handle)

    await site.in_thread(keep)
    await site.write(catalog.add_file, project_id, digest, total, time.time())
    await site.in_thread(keep)  # content that was here before the claim may have been swept away just then
    await site.in_thread(part.drop)
    return Response(status_code=201)


# --- hosts ------------------------------------------------------------------------------------------------------


async def host_file(call: Call) -> Response:
    """An input of a task this host has in progress."""
    digest = _digest(call.path("digest"))
    if not await call.site.read(catalog.host_needs_file, call.host.id, digest):
        raise not_found(f"file {digest} for a task of yours")
    return await file_response(call, content_key(digest), "application/octet-stream")


async def _held_task(call: Call) -> host_api.HeldTask:
    task_id = call.number("task")
    held = await call.site.read(host_api.held_task, task_id, call.host.id)
    if held is None:
        raise Refused(404, "not-found", f"task {task_id} is not in progress on this host")
    return held


async def host_log(call: Call) -> Answer:
    """Append to the log of a running task."""
    task = await _held_task(call)
    offset = call.count("offset", 0, FAR)
    data = await body_of(call.request, LOG_BYTES)
    size = await call.site.write(host_api.append_log, task.id, offset, data)
    call.site.hub.notify_log(task.id)
    return LogAnswer(size_bytes=size)


def _output_part(call: Call, task_id: int, digest: str) -> Part:
    return Part(call.site, f"output-{task_id}-{digest.removeprefix('sha256:')}")


async def head_output(call: Call) -> Response:
    """How much of a task's results tar the site has."""
    task = await _held_task(call)
    digest = _digest(call.request.headers.get("digest", ""))
    if await call.site.in_thread(call.site.files.exists, output_key(task.id, digest)):
        return Response()
    held = await call.site.in_thread(_output_part(call, task.id, digest).offset)
    return Response(status_code=404, headers={"Upload-Offset": str(held)})


async def put_output(call: Call) -> Response:
    """Bring a task's results tar, whole or the rest of it. It is kept only if it is a proper one."""
    site = call.site
    task = await _held_task(call)
    digest = _digest(call.request.headers.get("digest", ""))
    part = _output_part(call, task.id, digest)
    total = number_in(call.request, "upload-length", number_in(call.request, "content-length", 0))
    held = await part.take(call.request, total, site.settings.max_output_bytes)
    if held < total:
        return Response(status_code=202, headers={"Upload-Offset": str(held)})

    def keep() -> None:
        with part.open() as handle:
            try:
                found = verify(handle, Bounds(content_bytes=site.settings.max_output_bytes)).digest
            except BadResults as error:
                part.check(digest)
                part.drop()
                raise Refused(422, "bad-output", str(error)) from error
            if found != digest:
                part.drop()
                raise DigestMismatch(f"expected {digest}, but the bytes are {found}: send them again from the start")
            handle.seek(0)
            site.files.put(output_key(task.id, digest), handle)
        part.drop()

    await site.in_thread(keep)
    return Response(status_code=201)
