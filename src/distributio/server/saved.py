"""Which image of an archive is meant, and where its pieces are: OCI layouts, and docker save's own layout.

Large layers that were saved plain are packed here, once, instead of being sent plain to every host; the image then has
another digest than in the archive, the same each time.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from distributio.server.archives import Archive, Member, refused
from distributio.server.intake import deflate, keep
from distributio.store.files import Content
from distributio.wire import oci

_WORTH_PACKING = 1 << 20


class FromArchive:
    """An archive as a source of an image's pieces."""

    def __init__(self, content: Content, archive: Archive) -> None:
        self._content = content
        self._archive = archive

    def document(self, part: oci.Descriptor) -> bytes:
        """The bytes of a manifest, unchecked."""
        return self._archive.read(_blob_name(part.digest), oci.DOCUMENT_BYTES)

    def blob(self, part: oci.Descriptor) -> Iterator[bytes]:
        """The bytes of another piece, unchecked."""
        return self._archive.stream(self._archive.find(_blob_name(part.digest)))

    def has(self, digest: str) -> bool:
        """Whether the piece is here, in the archive or from before."""
        return _blob_name(digest) in self._archive or self._content.has(digest)

    def choose(self, wanted: oci.Reference | None) -> tuple[oci.Reference, bytes]:
        """The image that is meant: its name, and its manifest or index."""
        if "index.json" in self._archive and "oci-layout" in self._archive:
            return self._choose_oci(wanted)
        if "manifest.json" in self._archive:
            return self._choose_docker(wanted)
        if "repositories" in self._archive:
            raise refused("it was made by Docker older than 1.10, whose layout is not read")
        raise refused(f"no image was found in it, only {', '.join(self._archive.names[:3]) or 'nothing'}")

    # --- OCI image layout ---

    def _choose_oci(self, wanted: oci.Reference | None) -> tuple[oci.Reference, bytes]:
        document = oci.parse_document(self._archive.read("index.json", oci.DOCUMENT_BYTES), "its index.json")
        if not isinstance(document, oci.Index):
            raise refused("its index.json is not an index")
        entries: dict[str, dict[str, oci.Descriptor]] = {}
        for entry in document.manifests:
            entries.setdefault(_name_of(entry), {})[entry.digest] = entry
        name = _pick(wanted, list(entries))
        chosen = list(entries[name].values())
        reference = wanted or oci.parse_reference(name)
        if len(chosen) == 1:
            return reference, self._packed_manifest(chosen[0])
        if not all(entry.platform for entry in chosen):
            raise refused("it has several images of the same name")
        return reference, oci.encode(oci.make_index([replace(entry, annotations=None) for entry in chosen]))

    def _packed_manifest(self, part: oci.Descriptor) -> bytes:
        data = oci.check_bytes(self.document(part), part.digest, "the archive's manifest")
        manifest = oci.parse_document(data)
        if isinstance(manifest, oci.Index) or not any(_is_worth_packing(layer) for layer in manifest.layers):
            return data
        layers = [self._pack(layer) if _is_worth_packing(layer) else layer for layer in manifest.layers]
        return oci.encode(oci.make_manifest(manifest.config, layers))

    def _pack(self, layer: oci.Descriptor) -> oci.Descriptor:
        member = self._archive.find(_blob_name(layer.digest))
        return self._keep_packed(self._archive.stream(member), layer.digest, member.name)

    # --- docker save ---

    def _choose_docker(self, wanted: oci.Reference | None) -> tuple[oci.Reference, bytes]:
        saved = oci.parse_saved(self._archive.read("manifest.json", oci.DOCUMENT_BYTES))
        entries = {_full(name): entry for entry in saved for name in entry.repo_tags or [""]}
        name = _pick(wanted, list(entries))
        entry = entries[name]
        config_bytes = self._config(entry.config)
        diff_ids = oci.parse_config(config_bytes).rootfs.diff_ids
        if len(diff_ids) != len(entry.layers):
            raise refused(f"it has {len(entry.layers)} layers and its config speaks of {len(diff_ids)}")
        part = oci.describe(config_bytes, oci.OCI_CONFIG)
        keep(self._content, [config_bytes], part, "Config")
        known: dict[str, oci.Descriptor] = {}
        for layer, diff_id in zip(entry.layers, diff_ids, strict=True):
            if layer not in known:
                known[layer] = self._take_layer(self._archive.find(layer), diff_id)
        manifest = oci.make_manifest(part, [known[layer] for layer in entry.layers])
        return wanted or oci.parse_reference(name), oci.encode(manifest)

    def _config(self, name: str) -> bytes:
        data = self._archive.read(name, oci.CONFIG_BYTES)
        digest = "sha256:" + name.rpartition("/")[2].removesuffix(".json")
        return oci.check_bytes(data, digest, f"{name!r} in the archive") if oci.is_digest(digest) else data

    def _take_layer(self, member: Member, diff_id: str) -> oci.Descriptor:
        head = next(self._archive.stream(member), b"")
        is_packed = head.startswith(b"\x1f\x8b")
        if not is_packed and member.size > _WORTH_PACKING:
            return self._keep_packed(self._archive.stream(member), diff_id, member.name)
        with self._content.writer() as writer:
            for chunk in self._archive.stream(member):
                writer.write(chunk)
            digest, size = writer.finish(None if is_packed else diff_id)
        kind = oci.OCI_LAYER_GZIP if is_packed else oci.OCI_LAYER
        return oci.Descriptor(media_type=kind, digest=digest, size=size)

    def _keep_packed(self, plain: Iterable[bytes], expected: str, name: str) -> oci.Descriptor:
        with self._content.writer() as writer:
            for chunk in deflate(_checked(plain, expected, name)):
                writer.write(chunk)
            digest, size = writer.finish()
        return oci.Descriptor(media_type=oci.OCI_LAYER_GZIP, digest=digest, size=size)


def _checked(chunks: Iterable[bytes], expected: str, name: str) -> Iterator[bytes]:
    """Pass the bytes on; at the end refuse them if they were not those of the digest."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if f"sha256:{digest.hexdigest()}" != expected:
        raise refused(f"{name!r} is damaged, it is not the layer {expected}")


def _is_worth_packing(layer: oci.Descriptor) -> bool:
    return layer.media_type in oci.PLAIN_LAYERS and layer.size > _WORTH_PACKING


def _blob_name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _name_of(entry: oci.Descriptor) -> str:
    notes = entry.annotations or {}
    name = notes.get(oci.IMAGE_NAME) or notes.get(oci.REF_NAME, "")
    # Many builders write only a tag there, which names nothing.
    return _full(name) if "/" in name or ":" in name else ""


def _full(name: str) -> str:
    return str(oci.parse_reference(name)) if name else ""


def _pick(wanted: oci.Reference | None, names: Sequence[str]) -> str:
    """The name in the archive of the image that is meant."""
    if not names:
        raise refused("it has no image in it")
    if wanted and str(wanted) in names:
        return str(wanted)
    if len(names) > 1:
        choice = ", ".join(name or "one without a name" for name in names[:5])
        raise refused(f"it has several images ({choice}) and it is not clear which is meant", "Save one, or name it.")
    if not wanted and not names[0]:
        raise refused("the image in it has no name", "Say how it is to be called.")
    return names[0]
