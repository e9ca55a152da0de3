"""Images of projects: imported once, pinned by digest, served to the hosts whose tasks run them."""

import asyncio
import base64
import binascii
import threading
import time
from collections.abc import AsyncIterator, Iterator

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from distributio.server.importer import Imported, import_archive, import_from_registry
from distributio.server.intake import ImageError
from distributio.server.problems import Refused, not_found
from distributio.server.registry import Access
from distributio.server.routes import FAR, Answer, Call, json_response
from distributio.server.serving import check_storage
from distributio.server.site import Site
from distributio.server.upstream import Registries
from distributio.store import accounts, catalog
from distributio.store.catalog import Image
from distributio.store.database import Transaction
from distributio.wire import oci
from distributio.wire.native import ImageImport, ImageView, Page

# How an importer's refusals are told: status and code of the table of reasons.
_REFUSALS = {
    "image-name": (422, "bad-image"),
    "image-unreachable": (502, "image-unreachable"),
    "image-not-found": (422, "unknown-image"),
    "image-denied": (422, "image-refused"),
    "image-rate-limited": (502, "image-unreachable"),
    "image-damaged": (422, "bad-image"),
    "image-refused": (422, "image-refused"),
}


def view_of(image: Image) -> ImageView:
    """An image as people see it."""
    return ImageView(
        id=image.id,
        reference=image.reference,
        digest=image.digest,
        platforms=image.platforms,
        size_bytes=image.size_bytes,
        created_at=image.created_at,
        jobs_using=image.jobs_using,
    )


def canonical_name(reference: str) -> str:
    """How an image's name is kept, so that `python:alpine` and `docker.io/library/python:alpine` are one. Raises Refused."""
    try:
        return str(oci.parse_reference(reference))
    except oci.OciError as error:
        raise Refused(422, "bad-image", str(error)) from error


async def resolve(call: Call, project_id: int, reference: str) -> Image:
    """The project's image of that name, imported from its registry if the project has none yet. Raises Refused."""
    name = reference if oci.is_digest(reference) else canonical_name(reference)
    found = await call.site.read(catalog.image_by_reference, project_id, name)
    if found is not None:
        return found
    if oci.is_digest(reference):
        raise Refused(422, "unknown-image", f"the project has no image {reference}")
    return await _import(call.site, project_id, name)


def _registries(site: Site) -> Registries:
    mirror = site.settings.registry_mirror
    return Registries(mirrors={"docker.io": mirror} if mirror else {})


async def _import(site: Site, project_id: int, name: str) -> Image:
    try:
        imported = await site.importing(
            import_from_registry,
            site.content,
            name,
            platforms=site.settings.import_platforms,
            registries=_registries(site),
        )
    except ImageError as error:
        raise _refusal(error) from error
    return await _keep_within_limits(site, project_id, name, imported)


def _refusal(error: ImageError) -> Refused:
    status, code = _REFUSALS.get(error.code, (422, "image-refused"))
    return Refused(status, code, str(error))


async def _keep_within_limits(site: Site, project_id: int, name: str, imported: Imported) -> Image:
    """Remember an image that was brought in, unless the project may not store that much."""
    known = await site.read(catalog.image_by_reference, project_id, imported.digest)
    if known is None:
        await check_storage(site, project_id, sum(blob.size for blob in imported.blobs))
    return await site.write(_keep, project_id, name, imported)


def _keep(transaction: Transaction, project_id: int, name: str, imported: Imported) -> Image:
    return catalog.add_image(
        transaction,
        project_id,
        name,
        imported.digest,
        {platform: each.manifest_digest for platform, each in imported.platforms.items()},
        [(blob.digest, blob.size) for blob in imported.blobs],
        time.time(),
    )


class RegistryAccess:
    """Who may read which image: hosts what their tasks run, people what their projects have. Called in threads."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def find_manifest(self, request: Request, name: str, reference: str) -> str | None:
        """The digest a tag of `PROJECT/REPOSITORY` stands for; a digest stands for itself."""
        if oci.is_digest(reference):
            return reference
        project, _, repository = name.partition("/")
        caller = self._caller(request)
        if caller is None or project not in caller.projects or not repository:
            return None
        try:
            wanted = str(oci.parse_reference(f"{repository}:{reference}"))
        except oci.OciError:
            return None
        with self._site.database.read() as transaction:
            found = catalog.image_by_reference(transaction, caller.projects[project], wanted)
        return found.digest if found else None

    def may_read(self, request: Request, name: str, digest: str) -> Access:
        """Whether the asker may have this blob."""
        authorization = request.headers.get("authorization", "")
        scheme, user, secret = _credentials(authorization)
        with self._site.database.read() as transaction:
            host = accounts.host_by_public_id(transaction, user) if scheme in ("host", "basic") else None
            if host is not None and accounts.is_hash_of(secret, host.key_hash):
                host_id, projects = host.id, None
            else:
                caller = accounts.caller_by_token(transaction, secret) if secret else None
                if caller is None or (caller.expires_at is not None and caller.expires_at <= time.time()):
                    return Access.UNKNOWN
                host_id = None
                projects = None if caller.is_operator else list(caller.projects.values())
            if not digest:
                return Access.GRANTED
            has = catalog.has_blob(transaction, digest, project_ids=projects, host_id=host_id)
        return Access.GRANTED if has else Access.HIDDEN

    def _caller(self, request: Request) -> accounts.Caller | None:
        _, _, secret = _credentials(request.headers.get("authorization", ""))
        with self._site.database.read() as transaction:
            return accounts.caller_by_token(transaction, secret) if secret else None


def _credentials(authorization: str) -> tuple[str, str, str]:
    """Scheme, user and secret of `Host ID:KEY`, `Basic` with either kind of secret, or `Bearer TOKEN`."""
    scheme, _, rest = authorization.partition(" ")
    scheme = scheme.lower()
    if scheme == "bearer":
        return scheme, "", rest.strip()
    if scheme == "basic":
        try:
            rest = base64.b64decode(rest, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return "", "", ""
    elif scheme != "host":
        return "", "", ""
    user, _, secret = rest.partition(":")
    return scheme, user, secret


async def list_images(call: Call) -> Page:
    """A project's images, newest first."""
    most = call.limit()
    found = await call.site.read(catalog.images_of, call.project_id(), call.count("cursor", FAR, FAR), most)
    return Page(items=[view_of(each) for each in found], cursor=str(found[-1].id) if len(found) == most else None)


async def import_image(call: Call) -> Answer:
    """Fetch an image from its registry, if the project does not have it or is asked to look again."""
    wanted: ImageImport = call.body
    project_id = call.project_id("member")
    name = canonical_name(wanted.reference)
    found = None if wanted.refresh else await call.site.read(catalog.image_by_reference, project_id, name)
    return json_response(view_of(found or await _import(call.site, project_id, name)), 201)


async def import_archive_of(call: Call) -> Answer:
    """Import an image from what `docker save` or `podman save` wrote, as it streams in."""
    site = call.site
    project_id = call.project_id("member")
    reference = call.query("reference")
    name = canonical_name(reference) if reference else ""
    pipe = _Pipe(asyncio.get_running_loop())
    work = site.importing(import_archive, site.content, pipe.chunks(), name)
    try:
        await pipe.fill(call.request.stream(), work)
    except ClientDisconnect:
        pipe.cut()
    except BaseException:
        pipe.cut()
        work.cancel()
        raise
    try:
        imported = await work
    except ImageError as error:
        raise _refusal(error) from error
    finally:
        pipe.cut()
    kept = await _keep_within_limits(site, project_id, name or canonical_name(imported.reference), imported)
    return json_response(view_of(kept), 201)


class _Pipe:
    """Carries a request's body from the event loop to a thread, a few chunks at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._room = asyncio.Semaphore(8)
        self._chunks: list[bytes | None] = []
        self._some = threading.Condition()
        self._is_cut = False

    async def fill(self, stream: AsyncIterator[bytes], reader: "asyncio.Future[Imported]") -> None:
        """Take the whole body, no faster than it is read; stop early if the reader has."""
        reader.add_done_callback(lambda _: self._room.release())
        async for chunk in stream:
            await self._room.acquire()
            if reader.done():
                return
            self._put(chunk)
        self._put(None)

    def _put(self, chunk: bytes | None) -> None:
        with self._some:
            self._chunks.append(chunk)
            self._some.notify()

    def cut(self) -> None:
        """Nothing more will come."""
        with self._some:
            self._is_cut = True
            self._some.notify()

    def chunks(self) -> Iterator[bytes]:
        """What came, in the thread. Raises ImageError if the connection was cut."""
        while True:
            with self._some:
                self._some.wait_for(lambda: self._chunks or self._is_cut)
                if not self._chunks:
                    raise ImageError("image-damaged", "the connection was cut before the archive's end; send it again")
                chunk = self._chunks.pop(0)
            if chunk is None:
                return
            self._loop.call_soon_threadsafe(self._room.release)
            yield chunk


async def remove_image(call: Call) -> Response:
    """Forget an image that no undecided job runs."""
    image = await call.site.read(catalog.image_by_id, call.number("image"))
    if image is None:
        raise not_found(f"image {call.path('image')}")
    call.require(image.project_id, "member", f"image {image.id}")
    using = await call.site.write(catalog.remove_image, image.id)
    if using:
        raise Refused(409, "image-in-use", f"{using} jobs that are not decided run {image.reference}")
    return Response(status_code=204)
