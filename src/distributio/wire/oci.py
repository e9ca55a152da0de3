"""What an image is called, and what its manifests, indexes and configs say.

Names follow docker's rules, documents the OCI image specification and Docker's schema 2. Everything is by sha256: an
older or longer digest is refused here, so that the rest of the site knows one kind.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct, field

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"

INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})
PLAIN_LAYERS = frozenset({OCI_LAYER, DOCKER_LAYER})
GZIP_LAYERS = frozenset({OCI_LAYER_GZIP, DOCKER_LAYER_GZIP})
LAYERS = PLAIN_LAYERS | GZIP_LAYERS | {OCI_LAYER_ZSTD}
ACCEPT = ", ".join((OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST))  # what we ask a registry for

DOCUMENT_BYTES = 4 << 20  # registries agree on this as the largest manifest
CONFIG_BYTES = 16 << 20
MOST_LAYERS = 127  # the overlay driver of docker takes no more

IMAGE_NAME = "io.containerd.image.name"  # annotations of an image layout's index
REF_NAME = "org.opencontainers.image.ref.name"

DOCKER_HUB = "docker.io"

_T = TypeVar("_T")


class OciError(ValueError):
    """A name or document of an image cannot be used; the message says which, why and what to do."""


# --- digests ----------------------------------------------------------------------------------------------------

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

Sha256 = Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$")]


def digest_of(data: bytes) -> str:
    """The digest under which these bytes are known."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def is_digest(text: str) -> bool:
    """Whether this is a digest of the kind we use."""
    return _DIGEST.fullmatch(text) is not None


def check_bytes(data: bytes, digest: str, what: str) -> bytes:
    """Return the bytes if they are what the digest says."""
    found = digest_of(data)
    if found != digest:
        raise OciError(f"{what} is damaged: its digest is {found}, expected {digest}. Fetch or save it again.")
    return data


# --- names ------------------------------------------------------------------------------------------------------

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_BARE_ID = re.compile(r"[0-9a-f]{64}")


class Reference(Struct, frozen=True, kw_only=True):
    """An image's full name. With a digest the tag is only a label."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Registry and repository, without tag or digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def pointer(self) -> str:
        """What a registry is asked for: the digest if there is one, else the tag."""
        return self.digest or self.tag

    @property
    def short(self) -> str:
        """The name as docker shows it: without what is understood anyway."""
        return self._spelled(self.name.removeprefix(f"{DOCKER_HUB}/").removeprefix("library/"))

    def __str__(self) -> str:
        return self._spelled(self.name)

    def _spelled(self, name: str) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{name}{tag}{digest}"


def parse_reference(text: str) -> Reference:
    """Read an image's name as docker does: `python:alpine` is docker.io/library/python:alpine."""
    if not text or text != text.strip() or "://" in text:
        raise OciError(f"{text!r} is no image name. Write NAME[:TAG], for example python:alpine, without http://.")
    name, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise OciError(f"{text!r}: after the @ a digest is expected, sha256: and 64 hexadecimal digits.")
    tag = ""
    if ":" in name.rpartition("/")[2]:
        name, _, tag = name.rpartition(":")
        if not _TAG.fullmatch(tag):
            raise OciError(f"{text!r}: {tag!r} is no tag. A tag has at most 128 letters, digits and _ . -")
    if _BARE_ID.fullmatch(name):
        raise OciError(f"{text!r} is an image id, which only the machine it came from knows. Give the image a name.")
    registry, repository = _split_registry(name)
    _check_repository(text, repository)
    if not tag and not digest:
        tag = "latest"
    return Reference(registry=registry, repository=repository, tag=tag, digest=digest)


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    is_registry = slash and (any(c in first for c in ".:[") or first == "localhost" or first != first.lower())
    if not is_registry:
        first, rest = DOCKER_HUB, name
    if not _REGISTRY.fullmatch(first):
        raise OciError(f"{name!r}: {first!r} is no registry's address. Write HOST[:PORT]/NAME.")
    registry = first.lower()
    if registry in {"index.docker.io", "registry-1.docker.io"}:
        registry = DOCKER_HUB
    if registry == DOCKER_HUB and "/" not in rest:
        rest = f"library/{rest}"
    return registry, rest


def _check_repository(text: str, repository: str) -> None:
    if len(repository) > 255 or not all(_PART.fullmatch(part) for part in repository.split("/")):
        advice = "Use lower-case letters, digits and single . _ - between them, parts separated by /."
        raise OciError(f"{text!r}: {repository!r} is no image name. {advice}")


# --- platforms --------------------------------------------------------------------------------------------------

_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm",
    "armel": "arm",
    "i386": "386",
}
_IMPLIED_VARIANTS = {"amd64": "v1", "arm64": "v8", "arm": "v7"}


class Platform(Struct, frozen=True, omit_defaults=True):
    """What an image runs on. Its name is "os/architecture" or "os/architecture/variant"."""

    architecture: str
    os: str
    variant: str = ""
    os_version: str = field(default="", name="os.version")

    @property
    def name(self) -> str:
        """In the normal spelling, where what is implied is left out: linux/arm64, not linux/arm64/v8."""
        architecture = _ARCHITECTURES.get(self.architecture, self.architecture)
        variant = "v5" if self.architecture == "armel" else self.variant
        if architecture != "arm" and variant == _IMPLIED_VARIANTS.get(architecture):
            variant = ""
        if architecture == "arm" and not variant:
            variant = "v7"
        return f"{self.os}/{architecture}" + (f"/{variant}" if variant else "")

    @property
    def is_image(self) -> bool:
        """False for the attestations that builders list beside the images."""
        return self.os != "unknown" and self.architecture != "unknown"


def parse_platform(text: str) -> Platform:
    """Read "linux/amd64", "linux/arm/v7", "amd64" or "x86_64"; the system is linux unless it is said."""
    parts = text.lower().split("/")
    if len(parts) == 1:
        parts = ["linux", *parts]
    if len(parts) > 3 or not all(re.fullmatch(r"[a-z0-9_.-]+", part) for part in parts):
        raise OciError(f"{text!r} is no platform. Write OS/ARCHITECTURE[/VARIANT], for example linux/amd64.")
    return Platform(os=parts[0], architecture=parts[1], variant=parts[2] if len(parts) == 3 else "")


def best_platform(offered: Iterable[str], wanted: str) -> str | None:
    """The name of the offered platform that a machine of the wanted kind should run: its own variant, else the nearest
    older one."""
    system, architecture, variant = _parts(wanted)
    runnable = [
        (level, name)
        for name in offered
        for other_system, other_architecture, level in [_parts(name)]
        if (other_system, other_architecture) == (system, architecture) and level <= variant
    ]
    return max(runnable)[1] if runnable else None


def _parts(name: str) -> tuple[str, str, int]:
    system, architecture, *variant = parse_platform(name).name.split("/")
    level = (variant or [_IMPLIED_VARIANTS.get(architecture, "v0")])[0].removeprefix("v")
    return system, architecture, int(level) if level.isdigit() else 0


# --- documents --------------------------------------------------------------------------------------------------


class Descriptor(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """A piece of an image: what it is, its digest and its size."""

    media_type: str = ""
    digest: Sha256
    size: Annotated[int, Meta(ge=0)]
    platform: Platform | None = None
    annotations: dict[str, str] | None = None
    urls: list[str] | None = None


class Manifest(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """An image for one platform: a config and layers, lowest first."""

    schema_version: int
    media_type: str = ""
    config: Descriptor
    layers: list[Descriptor]
    annotations: dict[str, str] | None = None


class Index(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """An image for several platforms: a manifest for each."""

    schema_version: int
    media_type: str = ""
    manifests: list[Descriptor]
    annotations: dict[str, str] | None = None


class Execution(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="pascal"):
    """How a container of the image starts, where a job does not say it."""

    env: list[str] | None = None
    entrypoint: list[str] | str | None = None
    cmd: list[str] | str | None = None
    working_dir: str | None = None
    user: str | None = None
    volumes: dict[str, Any] | None = None
    healthcheck: dict[str, Any] | None = None
    labels: dict[str, str] | None = None


class RootFilesystem(Struct, frozen=True, kw_only=True):
    """The digests of the layers when unpacked, lowest first."""

    type: str = "layers"
    diff_ids: list[Sha256] = []


class Config(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an image says of itself. Its digest is what docker calls the image id."""

    architecture: str
    os: str
    variant: str = ""
    created: str | None = None
    config: Execution | None = None
    rootfs: RootFilesystem = RootFilesystem()
    history: list[dict[str, Any]] | None = None

    @property
    def platform(self) -> Platform:
        return Platform(os=self.os, architecture=self.architecture, variant=self.variant)

    @property
    def execution(self) -> Execution:
        return self.config or Execution()


class _Outline(Struct, rename="camel"):
    """What tells the kinds of documents apart."""

    schema_version: int = 0
    media_type: str = ""
    manifests: msgspec.Raw = msgspec.Raw()
    layers: msgspec.Raw = msgspec.Raw()
    config: msgspec.Raw = msgspec.Raw()


def parse_document(data: bytes, what: str = "the manifest") -> Manifest | Index:
    """Read a manifest or an index, whichever it is."""
    if len(data) > DOCUMENT_BYTES:
        raise OciError(f"{what} is {len(data)} bytes; more than {DOCUMENT_BYTES} is not accepted. Is it an image?")
    outline = _decode(data, _Outline, what)
    if outline.schema_version != 2:
        advice = "Save or push the image again with a current docker or podman."
        raise OciError(f"{what} has schema version {outline.schema_version}, which is no longer in use. {advice}")
    # A document that could be read as either means different images to different readers.
    is_index = bool(outline.manifests)
    if is_index and (outline.layers or outline.config):
        raise OciError(f"{what} is both a manifest and an index; it is refused, since programs would not agree on it.")
    document: Manifest | Index
    if is_index:
        document, kinds = _decode(data, Index, what), INDEXES
    else:
        document, kinds = _decode(data, Manifest, what), MANIFESTS
    if document.media_type and document.media_type not in kinds:
        raise OciError(f"{what} calls itself {document.media_type}, and its content is something else. Not accepted.")
    return document


class SavedImage(Struct, frozen=True, kw_only=True, rename="pascal"):
    """An entry of the manifest.json that docker save writes: names of files in the archive."""

    config: str
    repo_tags: list[str] | None = None
    layers: list[str]


def parse_saved(data: bytes) -> list[SavedImage]:
    """Read the manifest.json of docker save."""
    return _decode(data, list[SavedImage], "manifest.json")


def media_type_of(document: Manifest | Index) -> str:
    """The media type under which to serve it; documents need not say it themselves."""
    return document.media_type or (OCI_INDEX if isinstance(document, Index) else OCI_MANIFEST)


def parse_config(data: bytes, what: str = "the image's config") -> Config:
    """Read an image's config."""
    if len(data) > CONFIG_BYTES:
        raise OciError(f"{what} is {len(data)} bytes; more than {CONFIG_BYTES} is not accepted.")
    return _decode(data, Config, what)


def command_words(value: list[str] | str | None) -> list[str]:
    """A command or entrypoint as words; some builders write a single one as a string."""
    return [value] if isinstance(value, str) else list(value or [])


def _decode(data: bytes, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise OciError(f"{what} cannot be read: {problem}. Save or push the image again.") from problem


def encode(document: Manifest | Index | Config) -> bytes:
    """The same bytes for the same content, so that the same image has the same digest."""
    return msgspec.json.encode(document, order="deterministic")


def describe(data: bytes, media_type: str, **more: Any) -> Descriptor:
    """The descriptor of these bytes."""
    return Descriptor(media_type=media_type, digest=digest_of(data), size=len(data), **more)


def make_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> Manifest:
    """An OCI manifest of these pieces."""
    return Manifest(schema_version=2, media_type=OCI_MANIFEST, config=config, layers=list(layers))


def make_index(manifests: Sequence[Descriptor]) -> Index:
    """An OCI index of these manifests."""
    return Index(schema_version=2, media_type=OCI_INDEX, manifests=list(manifests))


# --- what can run -----------------------------------------------------------------------------------------------


class Findings(Struct, frozen=True):
    """What was found in an image: `refusals` cannot work here, `warnings` will work differently than elsewhere."""

    refusals: list[str] = []
    warnings: list[str] = []


def check_manifest(manifest: Manifest) -> Findings:
    """What speaks against an image before anything of it is fetched."""
    refusals = []
    warnings = []
    kind = manifest.config.media_type
    if kind not in CONFIGS:
        refusals.append(f"It is not a container image but {kind or 'something that does not say what it is'}.")
    if not manifest.layers:
        refusals.append("It has no layers, so there is nothing to run.")
    if len(manifest.layers) > MOST_LAYERS:
        advice = "Squash it: docker build --squash, or podman build --squash-all."
        refusals.append(f"It has {len(manifest.layers)} layers; engines take at most {MOST_LAYERS}. {advice}")
    for layer in manifest.layers:
        if layer.urls or "foreign" in layer.media_type or "nondistributable" in layer.media_type:
            refusals.append(f"Layer {layer.digest} may not be redistributed by its licence; hosts could not get it.")
        elif layer.media_type.endswith("+encrypted"):
            refusals.append(f"Layer {layer.digest} is encrypted; hosts could not read it.")
        elif layer.media_type not in LAYERS:
            refusals.append(f"Layer {layer.digest} is of a kind we do not know: {layer.media_type or 'not given'}.")
    if any(layer.media_type == OCI_LAYER_ZSTD for layer in manifest.layers):
        warnings.append("It has zstd layers: hosts with Docker before 23 cannot run it. gzip layers run everywhere.")
    return Findings(refusals, warnings)


def check_config(config: Config, layer_count: int) -> Findings:
    """What in an image's config cannot work, and what will be different here."""
    refusals = []
    warnings = []
    if config.os != "linux":
        refusals.append(f"It is for {config.os or 'an unnamed system'}; hosts run linux images.")
    if config.rootfs.type != "layers":
        refusals.append(f"Its file system is of the kind {config.rootfs.type!r}; only layers are known.")
    if len(config.rootfs.diff_ids) != layer_count:
        refusals.append(f"It has {layer_count} layers and its config speaks of {len(config.rootfs.diff_ids)}.")
    execution = config.execution
    if execution.volumes:
        places = ", ".join(sorted(execution.volumes)[:5])
        warnings.append(f"Its VOLUME is ignored: what jobs write to {places} is bounded and not kept.")
    if execution.healthcheck and execution.healthcheck.get("Test") not in (None, [], ["NONE"]):
        warnings.append("Its HEALTHCHECK is ignored.")
    preloads = [entry for entry in execution.env or [] if entry.startswith(("LD_PRELOAD=", "LD_AUDIT="))]
    if preloads:
        warnings.append(f"It sets {preloads[0]}, which changes every program in it; be sure that this is meant.")
    if not command_words(execution.entrypoint) and not command_words(execution.cmd):
        warnings.append("It names no command of its own: every job has to give one.")
    return Findings(refusals, warnings)


def choose_manifests(
    index: Index, wanted: Sequence[str] | None, has: Callable[[str], bool] = lambda digest: True
) -> dict[str, Descriptor]:
    """Those manifests of an index that are wanted, by platform; `None` takes every one. Attestations are left out, and
    what `has` does not know."""
    offered: dict[str, Descriptor] = {}
    for entry in index.manifests:
        platform = entry.platform
        if platform is not None and platform.is_image and has(entry.digest):
            offered.setdefault(platform.name, entry)
    if wanted is None:
        return offered
    names = [best_platform(offered, name) for name in wanted]
    return {name: offered[name] for name in names if name is not None}
