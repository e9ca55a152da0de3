"""Where bytes are kept: by content (images, inputs), by task (uploaded outputs), by job (results handed over).

Two stores behave alike: a local folder, and a bucket of any S3-compatible service through obstore. Content is named by its
SHA-256, so putting it twice is putting it once. Every write is complete or absent: bytes go to a temporary name and are
renamed when they are whole, checked and on the disk.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from distributio.store.database import StoreError

CHUNK = 1 << 20


class DigestMismatch(StoreError):
    """The bytes are not those their digest names: they were damaged or replaced on the way; send them again."""


class NoRoom(StoreError):
    """The site's disk is full. Nothing was lost; free some space or wait until results are fetched, then try again."""


class StorageUnavailable(StoreError):
    """The service that keeps the bytes does not answer; what was asked has not been done and may be asked again."""


class Writer(Protocol):
    """Takes bytes; nothing is kept unless `finish` is reached."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def write(self, data: bytes) -> None: ...

    def finish(self, expected_digest: str | None = None) -> tuple[str, int]:
        """Keep what was written; return its digest and size. Raises DigestMismatch, keeping nothing."""


def content_key(digest: str) -> str:
    """Where content stands: blobs/sha256/ab/abcd..."""
    algorithm, _, hexadecimal = digest.partition(":")
    if algorithm != "sha256" or len(hexadecimal) != 64 or not set(hexadecimal) <= set("0123456789abcdef"):
        raise StoreError(f"{digest!r} is not a SHA-256 digest: it must read sha256: and 64 hexadecimal digits")
    return f"blobs/sha256/{hexadecimal[:2]}/{hexadecimal}"


def output_key(task_id: int, digest: str) -> str:
    """Where an uploaded results tar stands: by task, so that it goes with its task, and by digest, so that a report can be
    held against the bytes that came."""
    return f"outputs/{task_id % 1000:03d}/{task_id}-{digest.removeprefix('sha256:')}"


def result_key(batch_id: int, position: int, name: str) -> str:
    """Where a result that was handed over stands."""
    return f"results/{batch_id}/{batch_id}.{position}/{name}"


class Files(Protocol):
    """The verbs of a store of bytes. Keys are relative paths of safe characters, made by the functions above."""

    def writer(self) -> Writer:
        """A writer that keeps its bytes by content."""

    def put(self, key: str, source: BinaryIO) -> int:
        """Keep a stream under a key, whole or not at all; return its size."""

    def put_many(self, items: list[tuple[str, bytes]]) -> None:
        """Keep small values, all on the disk when this returns."""

    def exists(self, key: str) -> bool: ...

    def size_of(self, key: str) -> int:
        """Size in bytes. Raises FileNotFoundError."""

    def open_key(self, key: str) -> BinaryIO:
        """Read a key. Raises FileNotFoundError."""

    def stream_key(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` up to, not including, `end`."""

    def delete_key(self, key: str) -> None:
        """Delete a key. Deleting what is gone is not an error."""

    def path_of(self, key: str) -> Path | None:
        """The local file, where there is one."""

    def keys(self, prefix: str) -> Iterator[tuple[str, float]]:
        """Keys below a prefix with the instants they were last written."""


class Content:
    """The content-addressed part of a store, whatever the store."""

    def __init__(self, files: "Files", scratch: Path) -> None:
        self.files = files
        self.scratch = scratch

    def writer(self) -> Writer:
        """A writer that keeps its bytes by content."""
        return self.files.writer()

    def has(self, digest: str) -> bool:
        """Whether the bytes are here."""
        return self.files.exists(content_key(digest))

    def size(self, digest: str) -> int:
        """Size in bytes. Raises FileNotFoundError."""
        return self.files.size_of(content_key(digest))

    def open(self, digest: str) -> BinaryIO:
        """Read the bytes. Raises FileNotFoundError."""
        return self.files.open_key(content_key(digest))

    def read(self, digest: str, most: int = 8 << 20) -> bytes:
        """All bytes of something small. Raises StoreError if it is larger than `most`."""
        with self.open(digest) as stream:
            data = stream.read(most + 1)
        if len(data) > most:
            raise StoreError(f"{digest} is larger than {most} bytes")
        return data

    def delete(self, digest: str) -> None:
        """Delete the bytes. Deleting what is gone is not an error."""
        self.files.delete_key(content_key(digest))

    def path(self, digest: str) -> Path | None:
        """The local file, where there is one."""
        return self.files.path_of(content_key(digest))

    def stream(self, digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` up to, not including, `end`."""
        return self.files.stream_key(content_key(digest), start, end)


@contextlib.contextmanager
def room() -> Iterator[None]:
    """Say it as NoRoom if the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoom(NoRoom.__doc__ or "") from error
        raise


class LocalFiles:
    """Bytes in a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._tmp = self.root / "tmp"
        self._tmp.mkdir(parents=True, exist_ok=True)

    def writer(self) -> Writer:
        """See Files."""
        return _LocalWriter(self)

    def put(self, key: str, source: BinaryIO) -> int:
        """See Files."""
        with room(), self._temporary() as (handle, name):
            shutil.copyfileobj(source, handle, CHUNK)
            size = handle.tell()
            self.place(handle, name, key)
        return size

    def put_many(self, items: list[tuple[str, bytes]]) -> None:
        """See Files. A sync of the file system serves all of them: cheaper than one for each. The first is before the
        renames, so that a name never stands for less than its bytes, whenever the power goes."""
        if not items:
            return
        mine = f".{os.getpid()}-{threading.get_ident()}.part"  # others may put the same at the same time
        with room():
            targets = [f"{self.root}/{key}" for key, _ in items]
            for target, (_, data) in zip(targets, items, strict=True):
                _write(target + mine, data)
            _sync_file_system(self.root)
            for target in targets:
                os.rename(target + mine, target)
            _sync_file_system(self.root)

    def exists(self, key: str) -> bool:
        """See Files."""
        return os.path.exists(f"{self.root}/{key}")

    def size_of(self, key: str) -> int:
        """See Files."""
        return os.stat(f"{self.root}/{key}").st_size

    def open_key(self, key: str) -> BinaryIO:
        """See Files."""
        return open(f"{self.root}/{key}", "rb")

    def stream_key(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See Files."""
        with self.open_key(key) as stream:
            stream.seek(start)
            left = (1 << 62) if end is None else end - start
            while left > 0 and (data := stream.read(min(CHUNK, left))):
                left -= len(data)
                yield data

    def delete_key(self, key: str) -> None:
        """See Files."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.root}/{key}")

    def path_of(self, key: str) -> Path | None:
        """See Files."""
        return self.root / key

    def keys(self, prefix: str) -> Iterator[tuple[str, float]]:
        """See Files."""
        for folder, _, names in os.walk(self.root / prefix):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    yield os.path.relpath(path, self.root), os.stat(path).st_mtime

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[BinaryIO, str]]:
        self._tmp.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._tmp)
        try:
            with open(handle, "wb") as stream:
                yield stream, name
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)

    def place(self, handle: BinaryIO, name: str, key: str) -> None:
        """Put a finished temporary file where it belongs, durably."""
        handle.flush()
        os.fsync(handle.fileno())
        target = f"{self.root}/{key}"
        _make_folder(os.path.dirname(target))
        os.rename(name, target)
        _sync_folder(os.path.dirname(target))


class _LocalWriter:
    def __init__(self, files: LocalFiles) -> None:
        self._files = files
        self._hash = hashlib.sha256()
        self._size = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(room())
        self._handle, self._name = self._stack.enter_context(self._files._temporary())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._size += len(data)
        self._handle.write(data)

    def finish(self, expected_digest: str | None = None) -> tuple[str, int]:
        digest = checked(self._hash.hexdigest(), expected_digest)
        key = content_key(digest)
        if not self._files.exists(key):
            self._files.place(self._handle, self._name, key)
        return digest, self._size


def checked(hexadecimal: str, expected: str | None) -> str:
    """The digest, if it is the one that is expected. Raises DigestMismatch."""
    digest = f"sha256:{hexadecimal}"
    if expected is not None and expected != digest:
        raise DigestMismatch(f"expected {expected}, but the bytes are {digest}: they were damaged on the way")
    return digest


def _make_folder(folder: str) -> None:
    try:
        os.mkdir(folder)
    except FileExistsError:
        return
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)


def _write(path: str, data: bytes) -> None:
    """Write a small file, and its folder before it if need be."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except FileNotFoundError:
        _make_folder(os.path.dirname(path))
        descriptor = os.open(path, flags, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
    finally:
        os.close(descriptor)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file_system(root: Path) -> None:
    """syncfs(2): everything written to the file system that holds `root` is on the disk when it returns."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _LIBC.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(root))
    finally:
        os.close(descriptor)


_LIBC = ctypes.CDLL(None, use_errno=True)
