"""How bytes are kept in a bucket of any S3-compatible service, through obstore."""

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import parse_qsl, urlsplit

from distributio.store.database import StoreError
from distributio.store.files import CHUNK, StorageUnavailable, Writer, checked, content_key, room

RETRY_SECONDS = 20  # how long one request is tried again before it is said that nobody answers


@contextlib.contextmanager
def _service() -> Iterator[None]:
    """Say what the service's refusals mean."""
    from obstore import exceptions

    try:
        yield
    except exceptions.NotFoundError as error:
        raise FileNotFoundError(str(error)) from error
    except exceptions.BaseError as error:
        raise StorageUnavailable(f"the file store does not answer as it should: {error}") from error


class BucketFiles:
    """Bytes in a bucket. Large values are uploaded in parts; small ones in one request."""

    def __init__(self, url: str, scratch: Path, *, retries: int = 5) -> None:
        import obstore
        from obstore.store import S3Store

        parts = urlsplit(url)
        options: dict[str, Any] = {}
        for name, value in parse_qsl(parts.query):
            if name not in {"endpoint", "region"}:
                raise StoreError(f"{url!r}: {name!r} is not known; use endpoint= and region=")
            options[name] = value
        if options.get("endpoint", "").startswith("http://"):
            options["client_options"] = {"allow_http": True}
        # Credentials come from the environment (AWS_ACCESS_KEY_ID, ...) as every S3 tool has it.
        options["retry_config"] = {"max_retries": retries, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
        self._store = S3Store(parts.netloc, prefix=parts.path.strip("/") or None, **options)
        self._obstore = obstore
        self._scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True)

    def writer(self) -> Writer:
        """See Files."""
        return _BucketWriter(self, self._scratch)

    def put(self, key: str, source: BinaryIO) -> int:
        """See Files."""
        start = source.tell()
        with _service():
            self._obstore.put(self._store, key, source)
        return source.seek(0, io.SEEK_END) - start

    def put_many(self, items: list[tuple[str, bytes]]) -> None:
        """See Files."""
        with _service():
            for key, data in items:
                self._obstore.put(self._store, key, data)

    def exists(self, key: str) -> bool:
        """See Files."""
        try:
            self.size_of(key)
        except FileNotFoundError:
            return False
        return True

    def size_of(self, key: str) -> int:
        """See Files."""
        with _service():
            return int(self._obstore.head(self._store, key)["size"])

    def open_key(self, key: str) -> BinaryIO:
        """See Files."""
        with _service():
            reader = self._obstore.open_reader(self._store, key)
        return io.BufferedReader(_BucketReader(reader), CHUNK)

    def stream_key(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See Files."""
        size = self.size_of(key) if end is None else end
        while start < size:
            stop = min(start + 4 * CHUNK, size)
            with _service():
                data = bytes(self._obstore.get_range(self._store, key, start=start, end=stop))
            yield data
            start = stop

    def delete_key(self, key: str) -> None:
        """See Files."""
        with contextlib.suppress(FileNotFoundError), _service():
            self._obstore.delete(self._store, key)

    def path_of(self, key: str) -> Path | None:
        """See Files."""
        return None

    def keys(self, prefix: str) -> Iterator[tuple[str, float]]:
        """See Files."""
        pages = iter(self._obstore.list(self._store, prefix=prefix or None))
        while True:
            with _service():
                page = next(pages, None)
            if page is None:
                return
            for item in page:
                yield item["path"], item["last_modified"].timestamp()


class _BucketReader(io.RawIOBase):
    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _service():
            data = bytes(self._reader.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)


class _BucketWriter:
    def __init__(self, files: BucketFiles, scratch: Path) -> None:
        self._files = files
        self._hash = hashlib.sha256()
        self._stack = contextlib.ExitStack()
        self._scratch = scratch

    def __enter__(self) -> Self:
        self._stack.enter_context(room())
        self._handle = self._stack.enter_context(tempfile.TemporaryFile(dir=self._scratch))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._handle.write(data)

    def finish(self, expected_digest: str | None = None) -> tuple[str, int]:
        digest = checked(self._hash.hexdigest(), expected_digest)
        key = content_key(digest)
        size = self._handle.tell()
        self._handle.seek(0)
        if not self._files.exists(key):
            self._files.put(key, self._handle)
        return digest, size
