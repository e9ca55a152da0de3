"""From a task the ledger sent to what a BOINC client reads: program, files, command line, limits, outputs, deadline.

A container job becomes a task of the site's own container program, its image's layers become sticky files, and what it is to
do travels on the command line. A job of a native app becomes a task of that app.
"""

import base64
import hashlib
import zlib

import msgspec

from distributio.server.assignments import Batches
from distributio.server.boinc_names import CONTAINER_APP, CONTAINER_OUTPUTS, RUNNER, job_name, task_name
from distributio.server.boinc_reports import md5_of
from distributio.server.boinc_state import BoincState, Catalog
from distributio.server.site import Site
from distributio.server.turns import Sent
from distributio.store import boinc
from distributio.store.boinc import Version
from distributio.wire import oci
from distributio.wire.boinc_accounts import PLATFORMS
from distributio.wire.boinc_scheduler import AppVersion, FileInfo, FileRef, OutputFile, Work
from distributio.wire.native import LOG_BYTES, Assignment

MOST_WORD_BYTES = 16_384  # of a job's description on the command line; a longer one travels as a file
ESTIMATE_SECONDS = 600.0  # what a job is thought to take where nothing is known of it
PROGRAM_MEMORY_BYTES = 64 << 20  # for the container program itself
PROGRAM_SECONDS = 3600.0  # for fetching and loading an image, on top of the job's own limit
PROGRAM_DISK_BYTES = 64 << 20
SLACK = 1.5
_LEAST_BOUND_SECONDS = 600.0  # clients replace a bound below two minutes by twelve hours


class CannotSend(Exception):
    """The task cannot be put into a BOINC client's terms; the message says why."""


class Describer:
    """Puts tasks into BOINC's terms. One for each process: what images and inputs are made of is remembered."""

    def __init__(self, site: Site, batches: Batches) -> None:
        self._site = site
        self._batches = batches
        self._images: dict[str, list[str]] = {}

    @property
    def _state(self) -> BoincState:
        return self._site.boinc

    async def work(self, sent: Sent, catalog: Catalog, platforms: list[str], flops: float) -> Work:
        """A task as the client reads it. Raises CannotSend."""
        primary = next((name for name in platforms if name in PLATFORMS), "")
        assignment = await self._batches.assignment(sent, PLATFORMS.get(primary, ""))
        runner = assignment.spec.runner
        if runner == "container":
            return await self._container(sent, assignment, catalog, platforms, flops)
        if runner.startswith(RUNNER):
            return await self._native(sent, assignment, catalog, platforms, flops)
        raise CannotSend(f"a job for the runner {runner} was sent to a BOINC client")

    async def _container(
        self, sent: Sent, assignment: Assignment, catalog: Catalog, platforms: list[str], flops: float
    ) -> Work:
        version = catalog.best(CONTAINER_APP, platforms)
        if version is None:
            raise CannotSend("the site has no container program for this client's platform")
        spec = assignment.spec
        blobs = await self._image(assignment.image_manifest)
        infos = await self._files([*blobs, *(one.digest for one in spec.inputs)], sticky=set(blobs))
        inputs = [FileRef(name=_file_name(digest), open_name=_blob_name(digest)) for digest in infos]
        command, more = await self._description(assignment)
        if more is not None:
            infos[f"sha256:{more.name[2:]}"] = more
            inputs.append(FileRef(name=more.name, open_name="assignment"))
        name = task_name(CONTAINER_APP, assignment.job, sent.attempt, sent.task_id)
        limits = spec.limits
        return Work(
            name=name,
            job=job_name(CONTAINER_APP, assignment.job),
            version=self._version(version, flops, limits.cpus),
            flops_estimate=flops * min(limits.wall_seconds, ESTIMATE_SECONDS),
            flops_bound=flops * (SLACK * limits.wall_seconds + PROGRAM_SECONDS),
            memory_bytes=limits.memory_bytes + PROGRAM_MEMORY_BYTES,
            disk_bytes=limits.disk_bytes + limits.log_bytes + PROGRAM_DISK_BYTES,
            command_line=command,
            inputs=tuple(inputs),
            infos=tuple(infos.values()),
            outputs=self._outputs(name, CONTAINER_OUTPUTS, limits.disk_bytes),
            deadline=int(sent.deadline_at),
        )

    async def _native(
        self, sent: Sent, assignment: Assignment, catalog: Catalog, platforms: list[str], flops: float
    ) -> Work:
        spec = assignment.spec
        app = spec.runner.removeprefix(RUNNER)
        version = catalog.best(app, platforms)
        if version is None:
            raise CannotSend(f"{app} has no build for this client's platform")
        infos = await self._files([one.digest for one in spec.inputs], sticky=set())
        name = task_name(app, assignment.job, sent.attempt, sent.task_id)
        limits = spec.limits
        return Work(
            name=name,
            job=job_name(app, assignment.job),
            version=self._version(version, flops, version.document.cpus),
            flops_estimate=flops * min(limits.wall_seconds, ESTIMATE_SECONDS),
            flops_bound=flops * max(limits.wall_seconds, _LEAST_BOUND_SECONDS),
            memory_bytes=limits.memory_bytes,
            disk_bytes=limits.disk_bytes,
            command_line=command_line(spec.command),
            inputs=tuple(
                FileRef(name=_file_name(one.digest), open_name=one.path.lstrip("/"), copy_file=not one.read_only)
                for one in spec.inputs
            ),
            infos=tuple(infos.values()),
            outputs=self._outputs(name, tuple(catalog.apps[app].outputs), limits.disk_bytes, optional=False),
            deadline=int(sent.deadline_at),
        )

    def _outputs(
        self, task: str, names: tuple[str, ...], most: int, *, optional: bool = True
    ) -> tuple[OutputFile, ...]:
        most = max(min(most * 2, self._site.settings.max_output_bytes), LOG_BYTES)
        return tuple(
            OutputFile(name=self._state.marks.output(task, index), open_name=name, most_bytes=most, optional=optional)
            for index, name in enumerate(names)
        )

    def _version(self, version: Version, flops: float, cpus: float) -> AppVersion:
        files = version.document.files
        # The plan class only tells one number of processors from another: the client knows a version by it.
        plan_class = version.plan_class or ("" if cpus == 1 else f"cpus{cpus:g}".replace(".", "_"))
        return AppVersion(
            app=version.app,
            version=version.version,
            platform=version.platform,
            plan_class=plan_class,
            cpus=cpus,
            flops=flops * max(1.0, cpus),
            command_line=version.document.command_line,
            files=tuple(
                FileRef(
                    name=file.name,
                    open_name="" if file.main_program else file.open_name,
                    main_program=file.main_program,
                    copy_file=file.copy_file,
                )
                for file in files
            ),
            infos=tuple(
                FileInfo(
                    name=file.name,
                    url=self._state.download_url(file.digest),
                    size_bytes=file.size_bytes,
                    md5=file.md5,
                    executable=file.executable,
                    signature=file.signature,
                )
                for file in files
            ),
        )

    async def _image(self, manifest_digest: str) -> list[str]:
        """The digests of an image's pieces, the manifest first."""
        known = self._images.get(manifest_digest)
        if known is not None:
            return known
        if not manifest_digest:
            raise CannotSend("the image has no build for this client's platform")
        try:
            data = await self._site.in_thread(self._site.content.read, manifest_digest, oci.DOCUMENT_BYTES)
        except FileNotFoundError:
            raise CannotSend(f"the image {manifest_digest} is gone from the site") from None
        document = oci.parse_document(data)
        if isinstance(document, oci.Index):
            raise CannotSend(f"the image {manifest_digest} is for several platforms")
        parts = [manifest_digest, document.config.digest, *(layer.digest for layer in document.layers)]
        if len(self._images) > 10_000:
            self._images.clear()
        self._images[manifest_digest] = parts
        return parts

    async def _files(self, digests: list[str], sticky: set[str]) -> dict[str, FileInfo]:
        """What a client must know of content to fetch it, by digest, in order."""
        wanted = list(dict.fromkeys(digests))
        missing = [digest for digest in wanted if digest not in self._state.md5s]
        if missing:
            await self._learn(missing)
        infos: dict[str, FileInfo] = {}
        for digest in wanted:
            md5, size = self._state.md5s[digest]
            infos[digest] = FileInfo(
                name=_file_name(digest),
                url=self._state.download_url(digest),
                size_bytes=size,
                md5=md5,
                sticky=digest in sticky,
            )
        return infos

    async def _learn(self, digests: list[str]) -> None:
        """Find out MD5s that are not known; a large layer is read once in the life of a site."""
        found = await self._site.read(boinc.md5s, digests)
        fresh: dict[str, tuple[str, int]] = {}
        for digest in digests:
            if digest not in found:
                try:
                    fresh[digest] = await self._site.in_thread(md5_of, self._site, digest)
                except FileNotFoundError:
                    raise CannotSend(f"{digest} is gone from the site") from None
        if fresh:
            await self._site.write(boinc.keep_md5s, fresh)
        if len(self._state.md5s) > 200_000:
            self._state.md5s.clear()
        self._state.md5s.update(found | fresh)

    async def _description(self, assignment: Assignment) -> tuple[str, FileInfo | None]:
        """What the container program is told: on its command line, or in a file if that is long."""
        data = zlib.compress(msgspec.json.encode(assignment))
        word = base64.urlsafe_b64encode(data).decode()
        if len(word) <= MOST_WORD_BYTES:
            return f"--assignment={word}", None
        digest = await self._site.in_thread(self._keep, data)
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        info = FileInfo(name=_file_name(digest), url=self._state.download_url(digest), size_bytes=len(data), md5=md5)
        return "--assignment-file=assignment", info

    def _keep(self, data: bytes) -> str:
        with self._site.content.writer() as writer:
            writer.write(data)
            return writer.finish()[0]


def command_line(words: list[str]) -> str:
    """Words as the client splits them: at blanks; a word that begins with a quote goes on to the next one."""
    written = []
    for word in words:
        if any(c in "\r\n\0" for c in word):
            raise CannotSend("a word of the command has a line break in it, which BOINC cannot pass on")
        if word and not any(c.isspace() for c in word) and word[0] not in "'\"":
            written.append(word)
        elif '"' not in word:
            written.append(f'"{word}"')
        elif "'" not in word:
            written.append(f"'{word}'")
        else:
            raise CannotSend("a word of the command has a blank and both kinds of quotes, which BOINC cannot pass on")
    return " ".join(written)


def _file_name(digest: str) -> str:
    return f"f_{digest.removeprefix('sha256:')}"


def _blob_name(digest: str) -> str:
    return f"blobs/{digest.removeprefix('sha256:')}"
