"""Small results tars that hosts upload on their own: all that wait are checked and made durable together.

One reading of the database says which of them are awaited, one sync of the disk keeps them all: under load the cost of each
is shared, and when idle an upload waits for nobody. Larger ones and continued ones go the way of every upload, through
files_api.
"""

import asyncio
import collections
import re
from collections.abc import Sequence

from msgspec import Struct

from distributio.server import host_api, problems
from distributio.server.problems import Refused
from distributio.server.site import Site
from distributio.store.database import Transaction
from distributio.store.files import DigestMismatch, output_key
from distributio.wire.native import INLINE_OUTPUT_BYTES
from distributio.wire.tar_blocks import BadResults

MOST_AT_ONCE = 256
WORKERS = 2  # while one waits for the disk the other checks what came since
_PATH = re.compile(r"^/api/v1/host/tasks/(\d{1,18})/output$")
_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")


class _Upload(Struct):
    task: int
    host: int
    digest: str
    data: bytes
    kept: "asyncio.Future[None]"


class SmallUploads:
    """PUT /api/v1/host/tasks/{task}/output, where the whole tar comes at once and is small. Lives on the event loop."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._waiting: collections.deque[_Upload] = collections.deque()
        self._workers: set[asyncio.Task[None]] = set()

    def is_for(self, scope: host_api.Scope) -> bool:
        """Whether this request is one of them."""
        if scope["method"] != "PUT" or not _PATH.match(scope["path"]):
            return False
        length = host_api.header(scope, b"content-length")
        total = host_api.header(scope, b"upload-length") or length
        return (
            length == total
            and len(length) <= 6
            and length.isdigit()
            and 0 < int(length) <= INLINE_OUTPUT_BYTES
            and host_api.header(scope, b"upload-offset") in ("", "0")
            and _DIGEST.match(host_api.header(scope, b"digest")) is not None
        )

    async def __call__(self, scope: host_api.Scope, receive: host_api.Receive, send: host_api.Send) -> None:
        """Serve one upload."""
        try:
            host = await host_api.authenticate(self._site, host_api.header(scope, b"authorization"))
            found = _PATH.match(scope["path"])
            assert found is not None
            data = await host_api.read_body(receive, INLINE_OUTPUT_BYTES)
            await self._keep(int(found[1]), host.id, host_api.header(scope, b"digest"), data)
        except Exception as error:
            await problems.response(error)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 201, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def _keep(self, task: int, host: int, digest: str, data: bytes) -> None:
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Upload(task, host, digest, data, kept))
        if len(self._workers) < WORKERS:
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        await kept

    async def _work(self) -> None:
        while self._waiting:
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_AT_ONCE))]
            try:
                refusals = await self._site.in_thread(_keep_all, self._site, taken)
            except Exception as error:
                refusals = [error] * len(taken)
            for upload, refusal in zip(taken, refusals, strict=True):
                if upload.kept.done():
                    continue  # its host has gone
                if refusal is None:
                    upload.kept.set_result(None)
                else:
                    upload.kept.set_exception(refusal)


def _keep_all(site: Site, uploads: Sequence[_Upload]) -> list[Exception | None]:
    """Keep what is right; answer with what is wrong with each."""
    with site.database.read() as transaction:
        hosts = _hosts_of(transaction, [upload.task for upload in uploads])
    refusals = [_refusal(upload, hosts.get(upload.task)) for upload in uploads]
    right = {
        output_key(upload.task, upload.digest): upload.data
        for upload, refusal in zip(uploads, refusals, strict=True)
        if refusal is None
    }
    site.files.put_many(list(right.items()))
    return refusals


def _hosts_of(transaction: Transaction, tasks: list[int]) -> dict[int, int]:
    rows = transaction.rows("SELECT id, host_id FROM tasks WHERE id IN (:ids...) AND state = 'in_progress'", ids=tasks)
    return dict(rows)


def _refusal(upload: _Upload, host: int | None) -> Exception | None:
    if host != upload.host:
        return Refused(404, "not-found", f"task {upload.task} is not in progress on this host")
    try:
        host_api.check_output(upload.data, upload.digest)
    except DigestMismatch as error:
        return error
    except BadResults as error:
        return Refused(422, "bad-output", str(error))
    return None
