"""How an image becomes the site's own: from a registry, or from an archive that somebody sends.

Either way every blob is checked against its digest, stored once, and read again to see what it unpacks to. Blobs are
stored before anything refers to them: after an import that failed some may be left, which the next try uses and the
deleter takes in time.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from msgspec import Struct

from distributio.server.archives import Archive, spool
from distributio.server.intake import Bounds, ImageError, Unpacked, damaged, keep, measure
from distributio.server.saved import FromArchive
from distributio.server.upstream import Registries, Upstream
from distributio.store.files import Content, DigestMismatch
from distributio.wire import oci

DEFAULT_PLATFORMS = ("linux/amd64", "linux/arm64")

Progress = Callable[[int, int], None]  # bytes held, bytes in all


class PlatformImage(Struct, frozen=True, kw_only=True):
    """An image as one kind of machine runs it. `layers` are lowest first, `diff_ids` their digests when unpacked."""

    manifest_digest: str
    config_digest: str
    layers: list[oci.Descriptor]
    diff_ids: list[str]
    size_bytes: int  # to fetch
    unpacked_bytes: int  # 0: not known
    entrypoint: list[str]
    cmd: list[str]
    environment: list[str]
    workdir: str
    user: str


class Imported(Struct, frozen=True, kw_only=True):
    """An image the site now holds. `digest` is its index's, or its manifest's where it is for one platform only."""

    reference: str
    digest: str
    media_type: str
    platforms: dict[str, PlatformImage]
    blobs: list[oci.Descriptor]  # all that belongs to it, documents included
    size_bytes: int
    warnings: list[str]


class _Source(Protocol):
    """Where pieces of an image come from."""

    def document(self, part: oci.Descriptor) -> bytes:
        """The bytes of a manifest, unchecked."""

    def blob(self, part: oci.Descriptor) -> Iterator[bytes]:
        """The bytes of another piece, unchecked."""

    def has(self, digest: str) -> bool:
        """False if the piece certainly cannot be had."""


def no_progress(held: int, total: int) -> None:
    """For callers who do not watch."""


# --- from a registry --------------------------------------------------------------------------------------------


def import_from_registry(
    content: Content,
    name: str,
    *,
    platforms: Sequence[str] | None = DEFAULT_PLATFORMS,
    registries: Registries | None = None,
    bounds: Bounds | None = None,
    progress: Progress = no_progress,
    wait: Callable[[float], None] = time.sleep,
) -> Imported:
    """Fetch what the site lacks of an image. Of several platforms those asked for are taken; None takes all."""
    reference = _reference(name)
    with Upstream(reference, registries or Registries(), wait) as upstream:
        top = upstream.manifest(reference.pointer)
        if reference.digest:
            _check(top, reference.digest)
        intake = _Intake(content, _FromRegistry(upstream), bounds or Bounds(), progress)
        return intake.take(reference, top, platforms)


class _FromRegistry:
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def document(self, part: oci.Descriptor) -> bytes:
        return self._upstream.manifest(part.digest)

    def blob(self, part: oci.Descriptor) -> Iterator[bytes]:
        return self._upstream.blob(part)

    def has(self, digest: str) -> bool:
        return True


# --- from an archive --------------------------------------------------------------------------------------------


def import_archive(
    content: Content,
    chunks: Iterable[bytes],
    name: str = "",
    *,
    platforms: Sequence[str] | None = None,
    bounds: Bounds | None = None,
    progress: Progress = no_progress,
) -> Imported:
    """Take an image out of what docker save, podman save or a builder wrote, as a tar or gzipped. Without a name it is
    called what the archive calls it; with one, an archive of several images must have one of that name."""
    bounds = bounds or Bounds()
    with spool(chunks, content.scratch, bounds) as file:
        archive = Archive(file, bounds)
        source = FromArchive(content, archive)
        with _told():
            reference, top = source.choose(_reference(name) if name else None)
        return _Intake(content, source, bounds, progress).take(reference, top, platforms)


# --- both -------------------------------------------------------------------------------------------------------


class _Intake:
    """Takes an image piece by piece, each checked before it counts."""

    def __init__(self, content: Content, source: _Source, bounds: Bounds, progress: Progress) -> None:
        self._content = content
        self._source = source
        self._bounds = bounds
        self._progress = progress
        self._documents: dict[str, bytes] = {}
        self._measured: dict[str, Unpacked | None] = {}
        self._warnings: dict[str, None] = {}  # in order, each once

    def take(self, reference: oci.Reference, top: bytes, wanted: Sequence[str] | None) -> Imported:
        """Store the image of this manifest or index."""
        with _told():
            document = oci.parse_document(top)
        part = oci.describe(top, oci.media_type_of(document))
        manifests = (
            self._manifests(reference, document, wanted) if isinstance(document, oci.Index) else {"": (part, document)}
        )
        for _, manifest in manifests.values():
            self._judge(reference, oci.check_manifest(manifest))
        blobs = {part.digest: part}
        for entry, manifest in manifests.values():
            blobs |= {piece.digest: piece for piece in (entry, manifest.config, *manifest.layers)}
        self._documents[part.digest] = top
        self._fetch(reference, list(blobs.values()))
        platforms = dict(self._examined(reference, *item) for item in manifests.items())
        return Imported(
            reference=str(reference),
            digest=part.digest,
            media_type=part.media_type,
            platforms=platforms,
            blobs=list(blobs.values()),
            size_bytes=sum(piece.size for piece in blobs.values()),
            warnings=list(self._warnings),
        )

    def _manifests(
        self, reference: oci.Reference, index: oci.Index, wanted: Sequence[str] | None
    ) -> dict[str, tuple[oci.Descriptor, oci.Manifest]]:
        """The manifests to take, by platform."""
        offered = oci.choose_manifests(index, None)
        runnable = [name for name in offered if name.startswith("linux/")]
        chosen = oci.choose_manifests(index, runnable if wanted is None else wanted, self._source.has)
        if not chosen:
            has = ", ".join(offered) or "none that is named"
            asked = f"not for {', '.join(wanted)}" if wanted else "of which none can be had here"
            raise ImageError(
                "image-refused", f"{reference.short} is for the platforms {has}, {asked}. Ask for another."
            )
        if wanted not in (None, DEFAULT_PLATFORMS):
            missing = [name for name in wanted or () if oci.best_platform(chosen, name) is None]
            self._warnings |= {f"It is not for {name}; hosts of that kind cannot run it.": None for name in missing}
        manifests = {}
        for name, part in chosen.items():
            data = self._content.read(part.digest) if self._content.has(part.digest) else self._source.document(part)
            self._documents[part.digest] = _check(data, part.digest)
            with _told():
                manifest = oci.parse_document(data)
            if isinstance(manifest, oci.Index):
                raise ImageError(
                    "image-refused", f"{reference.short}: its index has an index for {name}. Push it flat."
                )
            if self._is_whole(manifest):
                manifests[name] = (part, manifest)
        if not manifests:
            raise ImageError("image-refused", f"The archive lacks pieces of {reference.short}. Save it again.")
        return manifests

    def _is_whole(self, manifest: oci.Manifest) -> bool:
        return all(self._source.has(piece.digest) for piece in (manifest.config, *manifest.layers))

    def _fetch(self, reference: oci.Reference, blobs: list[oci.Descriptor]) -> None:
        total = sum(piece.size for piece in blobs)
        if total > self._bounds.image_bytes:
            raise ImageError(
                "image-refused",
                f"{reference.short} is {total} bytes; this site takes at most {self._bounds.image_bytes}."
                " Use a smaller base image, or ask for fewer platforms.",
            )
        done = 0
        self._progress(done, total)
        for piece in blobs:
            if not self._content.has(piece.digest):
                held = self._documents.get(piece.digest)
                chunks = self._source.blob(piece) if held is None else [held]
                keep(self._content, self._counted(chunks, done, total), piece, "Blob")
            elif self._content.size(piece.digest) != piece.size:
                raise damaged("Blob", piece, f"it is said to have {piece.size} bytes and has another size")
            done += piece.size
            self._progress(done, total)

    def _counted(self, chunks: Iterable[bytes], done: int, total: int) -> Iterator[bytes]:
        for chunk in chunks:
            done += len(chunk)
            yield chunk
            self._progress(min(done, total), total)

    def _examined(
        self, reference: oci.Reference, name: str, found: tuple[oci.Descriptor, oci.Manifest]
    ) -> tuple[str, PlatformImage]:
        """What the image is for one platform, after every check."""
        part, manifest = found
        if manifest.config.size > oci.CONFIG_BYTES:
            raise ImageError("image-refused", f"{reference.short}: its config is too large to be one.")
        with _told():
            config = oci.parse_config(self._content.read(manifest.config.digest, oci.CONFIG_BYTES))
        self._judge(reference, oci.check_config(config, len(manifest.layers)))
        own = config.platform.name
        if name and name != own:
            self._warnings[f"It is listed for {name} and calls itself {own}; it may not run there."] = None
        unpacked = self._unpacked(reference, manifest, config)
        execution = config.execution
        return name or own, PlatformImage(
            manifest_digest=part.digest,
            config_digest=manifest.config.digest,
            layers=manifest.layers,
            diff_ids=config.rootfs.diff_ids,
            size_bytes=part.size + manifest.config.size + sum(layer.size for layer in manifest.layers),
            unpacked_bytes=unpacked,
            entrypoint=oci.command_words(execution.entrypoint),
            cmd=oci.command_words(execution.cmd),
            environment=execution.env or [],
            workdir=execution.working_dir or "",
            user=execution.user or "",
        )

    def _unpacked(self, reference: oci.Reference, manifest: oci.Manifest, config: oci.Config) -> int:
        """How large the layers are when unpacked; 0 if that is not known for all."""
        total = 0
        is_known = True
        for layer, diff_id in zip(manifest.layers, config.rootfs.diff_ids, strict=True):
            if layer.digest not in self._measured:
                self._measured[layer.digest] = measure(self._content, layer, self._bounds.unpacked_bytes)
            size = self._measured[layer.digest]
            if size is None:
                is_known = False
                continue
            if size.diff_id != diff_id:
                raise ImageError(
                    "image-damaged",
                    f"{reference.short}: layer {layer.digest} unpacks to {size.diff_id}, and the config says {diff_id}."
                    " No engine would run it; save or push the image again.",
                )
            total += size.size_bytes
            if total > self._bounds.unpacked_bytes:
                raise ImageError(
                    "image-refused",
                    f"{reference.short} unpacks to more than the {self._bounds.unpacked_bytes} bytes this site takes.",
                )
        if not is_known:
            self._warnings["How large it is when unpacked is not known, because of its zstd layers."] = None
        return total if is_known else 0

    def _judge(self, reference: oci.Reference, findings: oci.Findings) -> None:
        if findings.refusals:
            raise ImageError("image-refused", f"{reference.short} cannot be used. {' '.join(findings.refusals)}")
        self._warnings |= dict.fromkeys(findings.warnings)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What the formats refuse is the image's fault."""
    try:
        yield
    except oci.OciError as problem:
        raise ImageError("image-refused", f"The image is refused: {problem}") from problem
    except DigestMismatch as problem:
        raise ImageError("image-damaged", f"The image is damaged: {problem}") from problem


def _check(data: bytes, digest: str) -> bytes:
    try:
        return oci.check_bytes(data, digest, "the manifest")
    except oci.OciError as problem:
        raise ImageError("image-damaged", str(problem)) from problem


def _reference(name: str) -> oci.Reference:
    try:
        return oci.parse_reference(name)
    except oci.OciError as problem:
        raise ImageError("image-name", str(problem)) from problem
