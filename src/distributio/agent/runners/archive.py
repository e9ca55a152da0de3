"""How an image's blobs become one archive that podman and docker both load, with every byte checked on its way.

The archive is built here, under a name of ours, and never taken from others: an archive names the tags it overwrites.
"""

import hashlib
import json
import zlib
from pathlib import Path
from typing import IO, Any

from msgspec import Struct

from distributio.agent.runners.contract import RunnerError

UNPACKED_MOST = 64 << 30  # all layers of one image together
_CHUNK = 1 << 20
_MANIFEST_MOST = 4 << 20
_GZIP_WINDOW = 31


def name_of(manifest_digest: str) -> str:
    """What we call an image in the engine."""
    return f"distributio.local/{manifest_digest.removeprefix('sha256:')[:12]}:latest"


class Description(Struct, frozen=True, kw_only=True):
    """What an image is: read from its manifest and configuration, whose digests were checked."""

    manifest_digest: str
    manifest: bytes
    config_digest: str
    config: bytes
    layers: list[tuple[str, int]]  # digest and packed size
    diff_ids: list[str]
    platform: str
    user: str
    workdir: str
    volumes: list[str]
    has_command: bool

    @property
    def name(self) -> str:
        """What we call it in the engine."""
        return name_of(self.manifest_digest)


def blob_path(layout: Path, digest: str) -> Path:
    """Where a layout folder keeps a blob."""
    kind, _, value = digest.partition(":")
    if kind != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise RunnerError("image-bad", f"the image names {digest[:100]!r} as a digest; only sha256 is understood")
    return layout / "blobs" / "sha256" / value


def _small_blob(layout: Path, digest: str) -> bytes:
    """A manifest or configuration, with its digest checked."""
    path = blob_path(layout, digest)
    if not path.is_file():
        raise RunnerError("image-incomplete", f"{digest} is not in {layout}; fetch the image again")
    if path.stat().st_size > _MANIFEST_MOST:
        raise RunnerError("image-bad", f"{digest} is far too large for a manifest or configuration")
    content = path.read_bytes()
    if "sha256:" + hashlib.sha256(content).hexdigest() != digest:
        raise RunnerError("image-digest", f"{path} does not hold what its name says; fetch the image again")
    return content


def describe(layout: Path, manifest_digest: str) -> Description:
    """Read an image's manifest and configuration."""
    manifest_bytes = _small_blob(layout, manifest_digest)
    try:
        manifest: dict[str, Any] = json.loads(manifest_bytes)
        config_digest = str(manifest["config"]["digest"])
        layers = [(str(layer["digest"]), int(layer["size"])) for layer in manifest["layers"]]
        config_bytes = _small_blob(layout, config_digest)
        config: dict[str, Any] = json.loads(config_bytes)
        diff_ids = [str(one) for one in config["rootfs"]["diff_ids"]]
        settings = config.get("config") or {}
        variant = f"/{config['variant']}" if config.get("variant") else ""
        description = Description(
            manifest_digest=manifest_digest,
            manifest=manifest_bytes,
            config_digest=config_digest,
            config=config_bytes,
            layers=layers,
            diff_ids=diff_ids,
            platform=f"{config.get('os', 'linux')}/{config.get('architecture', '')}{variant}",
            user=str(settings.get("User") or ""),
            workdir=str(settings.get("WorkingDir") or ""),
            volumes=sorted(settings.get("Volumes") or {}),
            has_command=bool(settings.get("Cmd") or settings.get("Entrypoint")),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as odd:
        raise RunnerError("image-bad", f"the image's manifest or configuration is not understood: {odd!r}") from odd
    if len(layers) != len(diff_ids):
        raise RunnerError("image-bad", f"the image has {len(layers)} layers but describes {len(diff_ids)}")
    return description


class _Unpacking:
    """Checks one layer as it passes: the digest of the packed bytes, and of what they unpack to, and how much that
    is."""

    def __init__(self, digest: str, diff_id: str, most: int) -> None:
        self.digest, self.diff_id, self.most = digest, diff_id, most
        self.packed, self.unpacked = hashlib.sha256(), hashlib.sha256()
        self.size = 0
        self.stream: Any = None
        self.begun = False

    def pass_on(self, content: bytes) -> None:
        """Take the next packed bytes."""
        self.packed.update(content)
        if not self.begun:
            self.begun = True
            if content[:4] == b"\x28\xb5\x2f\xfd":
                raise RunnerError(
                    "image-bad", f"layer {self.digest} is packed with zstd; the site has to serve it packed with gzip"
                )
            if content[:2] == b"\x1f\x8b":
                self.stream = zlib.decompressobj(_GZIP_WINDOW)
        if self.stream is None:
            self.count(content)
            return
        rest = content
        while rest:
            try:
                self.count(self.stream.decompress(rest, _CHUNK))
            except zlib.error as damage:
                raise RunnerError("image-bad", f"layer {self.digest} cannot be unpacked: {damage}") from damage
            rest = self.stream.unconsumed_tail
            if self.stream.eof:
                rest = self.stream.unused_data
                if rest:  # gzip members may follow one another
                    self.stream = zlib.decompressobj(_GZIP_WINDOW)

    def count(self, content: bytes) -> None:
        """Take unpacked bytes."""
        self.unpacked.update(content)
        self.size += len(content)
        if self.size > self.most:
            raise RunnerError("image-too-large", f"the image unpacks to more than {UNPACKED_MOST} bytes")

    def finish(self) -> None:
        """Say whether all was as promised."""
        if self.stream is not None:
            self.count(self.stream.flush())
        if "sha256:" + self.packed.hexdigest() != self.digest:
            raise RunnerError("image-digest", f"layer {self.digest} holds something else; fetch the image again")
        if "sha256:" + self.unpacked.hexdigest() != self.diff_id:
            raise RunnerError(
                "image-digest", f"layer {self.digest} does not unpack to {self.diff_id} as the image says"
            )


def _member(stream: IO[bytes], name: str, size: int) -> None:
    """Write the header of a file in the archive."""
    block = name.encode().ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"%011o\0" % 0
    block += b" " * 8 + b"0" + bytes(100) + b"ustar\x0000" + bytes(247)
    stream.write(block[:148] + b"%06o\0 " % sum(block) + block[156:])


def _whole(stream: IO[bytes], name: str, content: bytes) -> None:
    """Write a small file into the archive."""
    _member(stream, name, len(content))
    stream.write(content + bytes(-len(content) % 512))


def write_archive(description: Description, layout: Path, stream: IO[bytes]) -> None:
    """Write the archive, OCI layout and docker archive in one. Raises RunnerError before its end if a byte is wrong,
    and engines load nothing of an archive that has no end."""
    names = {digest: "blobs/sha256/" + digest.removeprefix("sha256:") for digest, _ in description.layers}
    left = UNPACKED_MOST
    for (digest, size), diff_id in zip(description.layers, description.diff_ids, strict=True):
        if digest not in names:
            continue  # the same layer twice in one image is written once
        path = blob_path(layout, digest)
        if not path.is_file() or path.stat().st_size != size:
            raise RunnerError("image-incomplete", f"{digest} is not whole in {layout}; fetch the image again")
        _member(stream, names.pop(digest), size)
        check = _Unpacking(digest, diff_id, left)
        with path.open("rb") as blob:
            while content := blob.read(_CHUNK):
                check.pass_on(content)
                stream.write(content)
        check.finish()
        left -= check.size
        stream.write(bytes(-size % 512))
    _finish_archive(description, stream)


def _finish_archive(description: Description, stream: IO[bytes]) -> None:
    """Write what names the blobs, and the end."""
    config_name = "blobs/sha256/" + description.config_digest.removeprefix("sha256:")
    _whole(stream, config_name, description.config)
    _whole(stream, "blobs/sha256/" + description.manifest_digest.removeprefix("sha256:"), description.manifest)
    media_type = json.loads(description.manifest).get("mediaType") or "application/vnd.oci.image.manifest.v1+json"
    entry = {
        "mediaType": media_type,
        "digest": description.manifest_digest,
        "size": len(description.manifest),
        "annotations": {
            "io.containerd.image.name": description.name,
            "org.opencontainers.image.ref.name": description.name,
        },
    }
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    listed = {
        "Config": config_name,
        "RepoTags": [description.name],
        "Layers": ["blobs/sha256/" + digest.removeprefix("sha256:") for digest, _ in description.layers],
    }
    _whole(stream, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    _whole(stream, "index.json", json.dumps(index).encode())
    _whole(stream, "manifest.json", json.dumps([listed]).encode())
    stream.write(bytes(1024))
