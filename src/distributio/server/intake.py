"""Whether bytes from outside may become an image's blob: they are what their digest says, and unpack within bounds."""

import hashlib
import zlib
from collections.abc import Iterable, Iterator

from msgspec import Struct

from distributio.store.files import Content, DigestMismatch
from distributio.wire import oci

_CHUNK = 1 << 20
_BOMB_BYTES = 1 << 30
_BOMB_RATIO = 200  # real layers of this size pack to a hundredth at the very best


class ImageError(Exception):
    """An image could not be brought in; the message says what, why and what to do. `code` is for programs:
    image-name, image-unreachable, image-not-found, image-denied, image-rate-limited, image-damaged, image-refused."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Bounds(Struct, frozen=True, kw_only=True):
    """How large an image may be. All platforms that are taken count together."""

    image_bytes: int = 32 << 30
    unpacked_bytes: int = 96 << 30
    archive_bytes: int = 64 << 30
    archive_members: int = 20_000


class Unpacked(Struct, frozen=True):
    """A layer as it is on a host's disk. `size_bytes` is of the tar inside."""

    diff_id: str
    size_bytes: int


def keep(content: Content, chunks: Iterable[bytes], part: oci.Descriptor, what: str) -> None:
    """Store a blob if it is exactly what its descriptor says."""
    size = 0
    try:
        with content.writer() as writer:
            for chunk in chunks:
                size += len(chunk)
                if size > part.size:
                    raise damaged(what, part, f"it is longer than the {part.size} bytes it should have")
                writer.write(chunk)
            if size < part.size:
                raise damaged(what, part, f"only {size} of {part.size} bytes came")
            writer.finish(part.digest)
    except DigestMismatch as problem:
        raise damaged(what, part, str(problem)) from problem


def damaged(what: str, part: oci.Descriptor, why: str) -> ImageError:
    """The error for bytes that are not what was promised."""
    return ImageError("image-damaged", f"{what} {part.digest} is damaged: {why}. Try again, or save the image again.")


def measure(content: Content, layer: oci.Descriptor, most: int) -> Unpacked | None:
    """Unpack a stored layer without keeping anything, to see what it is. None for zstd, which cannot be read here."""
    if layer.media_type == oci.OCI_LAYER_ZSTD:
        return None
    packed = content.stream(layer.digest)
    chunks = inflate(packed) if layer.media_type in oci.GZIP_LAYERS else packed
    digest = hashlib.sha256()
    size = 0
    try:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            if size > most:
                raise _refused(layer, f"it unpacks to more than the {most} bytes an image may have here")
            if size > _BOMB_BYTES and size > _BOMB_RATIO * layer.size:
                raise _refused(layer, f"its {layer.size} bytes unpack to more than {size}, as in a decompression bomb")
    except (zlib.error, EOFError) as problem:
        raise _refused(layer, f"it cannot be unpacked ({problem})") from problem
    return Unpacked(f"sha256:{digest.hexdigest()}", size)


def _refused(layer: oci.Descriptor, why: str) -> ImageError:
    return ImageError("image-refused", f"Layer {layer.digest} is refused: {why}. Build the image again.")


def inflate(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Unpack gzip, a little at a time; several members in a row are one. Raises zlib.error or EOFError."""
    engine = zlib.decompressobj(31)
    has_begun = False
    for chunk in chunks:
        data = chunk
        while data:
            if engine.eof:
                engine, has_begun = zlib.decompressobj(31), False
            has_begun = True
            out = engine.decompress(data, _CHUNK)
            if out:
                yield out
            data = engine.unused_data if engine.eof else engine.unconsumed_tail
    while has_begun and not engine.eof:
        out = engine.decompress(b"", _CHUNK)
        if not out:
            raise EOFError("it ends too early")
        yield out


def deflate(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Pack as gzip, the same bytes every time: the header carries neither time nor name."""
    engine = zlib.compressobj(6, zlib.DEFLATED, 31)
    for chunk in chunks:
        if out := engine.compress(chunk):
            yield out
    yield engine.flush()
