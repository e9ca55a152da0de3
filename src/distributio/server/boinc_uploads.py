"""How BOINC clients bring files: piece by piece into a waiting room, where they stay until their task is reported.

What waits is believed by nobody: it becomes a task's output when its report is recorded (boinc_reports.py). A file is written
at the offset the client says, never over bytes that are here, and is whole when its MD5 is what the client announced.
"""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import structlog

from distributio.server.boinc_http import answer
from distributio.server.boinc_names import TaskName
from distributio.server.boinc_state import BoincState
from distributio.server.host_api import Receive, Scope, Send
from distributio.server.site import Site
from distributio.store import boinc
from distributio.wire import boinc_files
from distributio.wire.boinc_files import AGAIN, DONE, NEVER, BadUpload, SizeQuery, Upload

log = structlog.get_logger("boinc")

SMALL = 1 << 18  # a body up to this size is written without the detour of a thread
_DISK_RESERVE_BYTES = 64 << 20


class Refusal(Exception):
    """What the client is told instead: a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class WaitingRoom:
    """The folder of files that came and belong to no report yet."""

    def __init__(self, state: BoincState) -> None:
        self._state = state
        self.folder: Path = state.waiting_room

    def owner(self, name: str) -> tuple[TaskName, int]:
        """The task and index a name means. Raises Refusal for a name the site never gave."""
        found = self._state.marks.read_output(name)
        if found is None:
            raise Refusal(NEVER, "the site expects no file of this name")
        return found

    def path(self, name: str) -> Path:
        """Where a file stands that is whole. Its name was made by us."""
        return self.folder / name

    def part(self, name: str) -> Path:
        """Where a file stands that is not."""
        return self.folder / f"{name}.part"

    def held(self, name: str) -> int:
        """How many bytes of a file are here."""
        for path in (self.path(name), self.part(name)):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                continue
        return 0

    def drop(self, name: str) -> None:
        """Forget a file."""
        self.path(name).unlink(missing_ok=True)

    def begin(self, upload: Upload) -> BinaryIO | None:
        """Open a file to write on; None if all of it is here. Raises Refusal."""
        if self.path(upload.name).exists():
            return None
        part = self.part(upload.name)
        held = part.stat().st_size if upload.offset else 0
        if upload.offset > held:
            raise Refusal(AGAIN, f"the site holds {held} bytes of it, not {upload.offset}")
        disk = os.statvfs(self.folder)
        if disk.f_bavail * disk.f_frsize < upload.size_bytes - upload.offset + _DISK_RESERVE_BYTES:
            raise Refusal(AGAIN, "the site is out of disk space")
        handle = part.open("r+b" if upload.offset else "wb", buffering=0)
        handle.seek(upload.offset)
        handle.truncate()
        return handle

    def finish(self, upload: Upload, md5: str | None) -> None:
        """All bytes are here: keep them if they are those that were announced. Raises Refusal."""
        part = self.part(upload.name)
        if md5 is None:
            with open(part, "rb") as handle:
                md5 = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if upload.md5 and md5 != upload.md5:
            part.unlink()
            raise Refusal(AGAIN, "the bytes that came have another checksum than announced; they are sent again")
        part.rename(self.path(upload.name))

    def sweep(self, site: Site, before: float) -> None:
        """Drop what came long ago for tasks that are no longer awaited."""
        old: dict[Path, int] = {}
        for path in self.folder.iterdir():
            found = self._state.marks.read_output(path.name.removesuffix(".part"))
            if path.stat().st_mtime < before:
                old[path] = found[0].task_id if found else 0
        with site.database.read() as transaction:
            awaited = boinc.tasks_going_on(transaction, sorted(set(old.values())))
        for path, task in old.items():
            if task not in awaited:
                path.unlink(missing_ok=True)


class UploadEndpoint:
    """POST /boinc/file_upload_handler."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.room = WaitingRoom(site.boinc)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a file, the rest of one, or the question how much of one is here."""
        try:
            reply = await self._take(receive)
        except Refusal as refusal:
            reply = boinc_files.write_answer(refusal.status, str(refusal))
        except BadUpload as error:
            reply = boinc_files.write_answer(NEVER, str(error))
        except OSError as error:
            log.error("an upload failed", error=str(error))
            reply = boinc_files.write_answer(AGAIN, f"the site could not keep it: {error.strerror}")
        except _Cut:
            return
        await answer(send, reply, b"text/plain")

    async def _take(self, receive: Receive) -> bytes:
        head, more = await _next(receive)
        while (said := boinc_files.read_header(head)) is None:
            if not more:
                raise BadUpload("the request ends before its header does")
            chunk, more = await _next(receive)
            head += chunk
        if isinstance(said, SizeQuery):
            self.room.owner(said.name)
            return boinc_files.write_answer(DONE, size_bytes=self.room.held(said.name))
        self.room.owner(said.name)
        if said.size_bytes > self._site.settings.max_output_bytes:
            raise Refusal(NEVER, f"the site takes at most {self._site.settings.max_output_bytes} bytes")
        body = head[said.data_at :]
        if not more and len(body) <= SMALL:
            self._keep_small(said, body)
        else:
            await self._keep_large(said, body, more, receive)
        return boinc_files.write_answer(DONE)

    def _keep_small(self, upload: Upload, body: bytes) -> None:
        handle = self.room.begin(upload)
        if handle is None:
            return
        body = body[: upload.size_bytes - upload.offset]
        with handle:
            handle.write(body)
        if upload.offset + len(body) < upload.size_bytes:
            raise Refusal(AGAIN, "the connection was cut; what came is kept")
        whole = None if upload.offset else hashlib.md5(body, usedforsecurity=False).hexdigest()
        self.room.finish(upload, whole)

    async def _keep_large(self, upload: Upload, body: bytes, more: bool, receive: Receive) -> None:
        in_thread = self._site.in_thread
        handle = await in_thread(self.room.begin, upload)
        left = upload.size_bytes - upload.offset
        pending = [body]
        size = len(body)
        try:
            while more:
                try:
                    chunk, more = await _next(receive)
                except _Cut:
                    more, chunk = False, b""
                pending.append(chunk)
                size += len(chunk)
                if handle is not None and (size >= 1 << 20 or not more):
                    data = b"".join(pending)[:left]
                    await in_thread(handle.write, data)
                    left -= len(data)
                    pending, size = [], 0
            if handle is not None and pending:
                data = b"".join(pending)[:left]
                await in_thread(handle.write, data)
                left -= len(data)
        finally:
            if handle is not None:
                handle.close()
        if handle is None:
            return
        if left:
            raise Refusal(AGAIN, "the connection was cut; what came is kept")
        await in_thread(self.room.finish, upload, None)


class _Cut(Exception):
    """The client has gone."""


async def _next(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] != "http.request":
        raise _Cut
    return message.get("body", b""), bool(message.get("more_body"))
