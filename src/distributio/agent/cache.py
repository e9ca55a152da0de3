"""Which images and inputs are on this host: brought when needed, shared by all tasks, the least recently used forgotten first."""

import logging
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from distributio.agent.folder import Folder
from distributio.agent.runners.contract import Image, Runner, RunnerError
from distributio.agent.site import Site
from distributio.agent.transfers import Stop, TransferFailed, download
from distributio.wire import oci
from distributio.wire.native import Assignment

_MOST_LAYER_BYTES = 64 << 30

log = logging.getLogger(__name__)


class _Kept(Struct, frozen=True):
    """An image in the cache, with the blobs it needs."""

    path: Path
    digest: str
    blobs: frozenset[str]
    used_at: float


class Cache:
    """The bytes tasks need. Safe to use from several threads; each blob is fetched once."""

    def __init__(self, folder: Folder, site: Site, runners: Sequence[Runner]) -> None:
        self._folder = folder
        self._site = site
        self._runners = runners
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._prepared: set[tuple[str, str]] = set()

    def has_all(self, assignment: Assignment, runner: Runner) -> bool:
        """Whether the task can start without fetching anything. Cheap: asked before every start."""
        spec = assignment.spec
        image = assignment.image_manifest
        return (not image or (runner.name, image) in self._prepared) and all(
            self.blob_path(one.digest).exists() for one in spec.inputs
        )

    def bring(self, assignment: Assignment, runner: Runner, stop: Stop) -> None:
        """Fetch what the task needs and is not here, check it, and have the runner prepare the image."""
        for one in assignment.spec.inputs:
            self._bring_blob(f"/api/v1/host/files/{one.digest}", one.digest, one.size_bytes, one.size_bytes, stop)
        if assignment.image_manifest:
            with self._locks[assignment.image_manifest]:
                self._bring_image(assignment.image_name, assignment.image_manifest, runner, stop)

    def inputs(self, assignment: Assignment) -> dict[str, Path]:
        """Where the task's inputs are, noted as used now."""
        paths = {one.digest: self.blob_path(one.digest) for one in assignment.spec.inputs}
        for path in paths.values():
            os.utime(path)
        return paths

    def blob_path(self, digest: str) -> Path:
        """Where the blob is, or would be."""
        return self._folder.blobs / digest.removeprefix("sha256:")

    def trim(self, limit_bytes: int, in_use: Iterable[Assignment]) -> None:
        """Forget what was not used for longest until the rest is within the limit. What held tasks need stays."""
        needed = list(in_use)
        images = {one.image_manifest for one in needed}
        inputs = {file.digest for one in needed for file in one.spec.inputs}
        kept = self._kept_images()
        of_images = frozenset[str]().union(*(one.blobs for one in kept))
        sizes = {"sha256:" + path.name: path.stat().st_size for path in self._folder.blobs.iterdir() if not path.suffix}
        files = [
            _Kept(self.blob_path(d), d, frozenset({d}), _used(self.blob_path(d))) for d in sizes.keys() - of_images
        ]
        total = sum(sizes.values())
        for one in sorted([*kept, *files], key=lambda one: one.used_at):
            if total <= limit_bytes:
                return
            if one.digest in images or one.digest in inputs:
                continue
            others = [other for other in kept if other is not one]
            still = inputs.union(*(other.blobs for other in others))
            try:
                self._forget(one, still)
            except RunnerError as error:
                log.warning("%s stays for now: %s", one.digest, error)
                continue
            kept = others
            total -= sum(sizes.pop(digest, 0) for digest in one.blobs - still)

    def _bring_image(self, name: str, digest: str, runner: Runner, stop: Stop) -> None:
        layout = self._folder.layouts / digest.removeprefix("sha256:")
        if not runner.has_image(digest):
            manifest_path = self._bring_blob(f"/v2/{name}/manifests/{digest}", digest, None, oci.DOCUMENT_BYTES, stop)
            manifest = _read_manifest(manifest_path)
            for part in (manifest.config, *manifest.layers):
                if part.size > _MOST_LAYER_BYTES:
                    raise TransferFailed("image-too-large", f"{part.digest} of {name} says it has {part.size} bytes")
                self._bring_blob(f"/v2/{name}/blobs/{part.digest}", part.digest, part.size, part.size, stop)
            self._lay_out(layout, digest, manifest_path, manifest)
            runner.prepare(Image(manifest_digest=digest, layout=layout))
        if layout.exists():
            os.utime(layout)
        self._prepared.add((runner.name, digest))

    def _bring_blob(self, path: str, digest: str, size_bytes: int | None, most_bytes: int, stop: Stop) -> Path:
        target = self.blob_path(digest)
        with self._locks[digest + "/bytes"]:
            if not target.exists():
                download(self._site, path, target, digest, size_bytes, most_bytes, stop)
            os.utime(target)
        return target

    def _lay_out(self, layout: Path, digest: str, manifest_path: Path, manifest: oci.Manifest) -> None:
        """An OCI image layout of one image; the blobs are shared with all others."""
        layout.mkdir(exist_ok=True)
        blobs = layout / "blobs"
        if not blobs.is_symlink():
            blobs.symlink_to(os.path.relpath(self._folder.blobs.parent, layout), target_is_directory=True)
        (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        described = oci.Descriptor(
            media_type=oci.media_type_of(manifest), digest=digest, size=manifest_path.stat().st_size
        )
        (layout / "index.json").write_bytes(oci.encode(oci.make_index([described])))

    def _kept_images(self) -> list[_Kept]:
        kept = []
        for layout in self._folder.layouts.iterdir():
            digest = "sha256:" + layout.name
            manifest_path = self.blob_path(digest)
            blobs = {digest}
            if manifest_path.exists():
                manifest = _read_manifest(manifest_path)
                blobs |= {manifest.config.digest, *(layer.digest for layer in manifest.layers)}
            kept.append(_Kept(layout, digest, frozenset(blobs), _used(layout)))
        return kept

    def _forget(self, one: _Kept, still_needed: Collection[str]) -> None:
        with self._locks[one.digest]:
            if one.path.is_dir():
                for runner in self._runners:
                    runner.forget_image(one.digest)
                    self._prepared.discard((runner.name, one.digest))
                shutil.rmtree(one.path)
            for digest in one.blobs - set(still_needed):
                self.blob_path(digest).unlink(missing_ok=True)


def _read_manifest(path: Path) -> oci.Manifest:
    try:
        document = oci.parse_document(path.read_bytes())
    except oci.OciError as error:
        raise TransferFailed("image-unreadable", str(error)) from error
    if not isinstance(document, oci.Manifest):
        raise TransferFailed("image-unreadable", f"{path.name} is an index of images where one image was expected")
    return document


def _used(path: Path) -> float:
    return path.stat().st_mtime
