"""Which store of bytes a setting names."""

from pathlib import Path

from distributio.store.buckets import BucketFiles
from distributio.store.files import Files, LocalFiles


def open_files(url: str, scratch: Path) -> Files:
    """The store a setting names: a folder, or s3://BUCKET/PREFIX?endpoint=...&region=..."""
    if url.startswith("s3://"):
        return BucketFiles(url, scratch)
    return LocalFiles(Path(url.removeprefix("file://")))
