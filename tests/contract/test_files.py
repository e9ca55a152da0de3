"""Bytes are kept alike in a local folder and in a bucket of an S3-compatible service."""

import errno
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from distributio.store.buckets import BucketFiles
from distributio.store.database import StoreError
from distributio.store.files import (
    Content,
    DigestMismatch,
    Files,
    LocalFiles,
    NoRoom,
    StorageUnavailable,
    content_key,
    output_key,
    result_key,
)
from distributio.store.storage import open_files

LARGE = hashlib.sha256(b"large").digest() * 400_000  # 12.8 MB: several parts


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 service."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket, as a setting names it."""
    import httpx2

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
    name = f"bucket-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]}"
    assert httpx2.put(f"{s3}/{name}").status_code == 200
    return f"s3://{name}/some/prefix?endpoint={s3}&region=us-east-1"


@pytest.fixture(params=["folder", "bucket"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    """A store, once of each kind."""
    url = str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("bucket")
    return open_files(url, tmp_path / "scratch")


@pytest.fixture
def content(files: Files, tmp_path: Path) -> Content:
    return Content(files, tmp_path / "scratch")


def keep(content: Content, data: bytes, expected: str | None = None) -> tuple[str, int]:
    with content.writer() as writer:
        for start in range(0, len(data), 1 << 20):
            writer.write(data[start : start + (1 << 20)])
        return writer.finish(expected)


@pytest.mark.parametrize("data", [b"", b"x", LARGE], ids=["nothing", "a byte", "large"])
def test_content_comes_back(content: Content, data: bytes) -> None:
    digest = digest_of(data)
    assert not content.has(digest)
    assert keep(content, data, digest) == (digest, len(data))
    assert keep(content, data) == (digest, len(data))
    assert content.has(digest)
    assert content.size(digest) == len(data)
    with content.open(digest) as stream:
        assert stream.read() == data
    assert b"".join(content.stream(digest)) == data
    content.delete(digest)
    content.delete(digest)
    assert not content.has(digest)


def test_what_is_not_what_it_should_be_is_not_kept(content: Content, files: Files) -> None:
    with pytest.raises(DigestMismatch, match="damaged"):
        keep(content, b"wrong", digest_of(b"right"))
    assert not content.has(digest_of(b"wrong"))
    assert not content.has(digest_of(b"right"))
    assert list(files.keys("")) == []


def test_what_is_not_finished_is_not_kept(content: Content, files: Files) -> None:
    with content.writer() as writer:
        writer.write(b"half")

    def fail() -> None:
        with content.writer() as broken:
            broken.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(files.keys("")) == []
    assert not content.has(digest_of(b"half"))


@pytest.mark.parametrize(
    ("start", "end"), [(0, None), (5, None), (0, 0), (3, 7), (4_000_000, 9_000_000), (len(LARGE) - 1, None)]
)
def test_parts_are_read(content: Content, start: int, end: int | None) -> None:
    keep(content, LARGE)
    assert b"".join(content.stream(digest_of(LARGE), start, end)) == LARGE[start:end]


def test_reading_part_by_part_is_reading(content: Content) -> None:
    keep(content, LARGE)
    with content.open(digest_of(LARGE)) as stream:
        pieces = [stream.read(10), stream.read(3_000_000), stream.read()]
    assert b"".join(pieces) == LARGE
    with pytest.raises(StoreError, match="larger"):
        content.read(digest_of(LARGE), most=1000)
    assert content.read(digest_of(LARGE), most=len(LARGE)) == LARGE


def test_what_is_missing_is_missing(files: Files) -> None:
    key = output_key(7, digest_of(b"x"))
    assert not files.exists(key)
    for read in (files.size_of, files.open_key, lambda key: list(files.stream_key(key))):
        with pytest.raises(FileNotFoundError):
            read(key)
    files.delete_key(key)


def test_streams_and_small_values_are_put_whole(files: Files) -> None:
    key = output_key(1234, digest_of(LARGE))
    assert files.put(key, io.BytesIO(LARGE)) == len(LARGE)
    source = io.BytesIO(b"skipped|kept")
    source.seek(8)
    assert files.put(key, source) == 4
    assert b"".join(files.stream_key(key)) == b"kept"
    many = [(result_key(1, n, "result.json"), b"%d" % n) for n in range(20)]
    files.put_many(many)
    files.put_many(many)
    files.put_many([])
    assert [b"".join(files.stream_key(name)) for name, _ in many] == [data for _, data in many]


def test_a_file_handle_is_put_from_where_it_stands(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"0123" + LARGE)
    with path.open("rb") as handle:
        handle.seek(4)
        assert files.put("outputs/000/1-x", handle) == len(LARGE)
    assert files.size_of("outputs/000/1-x") == len(LARGE)


def test_keys_are_listed_below_a_prefix(files: Files) -> None:
    files.put_many([("outputs/001/1-a", b"1"), ("outputs/002/2-b", b"2"), ("results/1/1.1/log.txt", b"3")])
    assert sorted(key for key, _ in files.keys("outputs")) == ["outputs/001/1-a", "outputs/002/2-b"]
    assert all(written_at > 1e9 for _, written_at in files.keys("outputs"))
    assert list(files.keys("nothing")) == []


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:xyz", "md5:" + "a" * 64, "sha256:" + "../" * 22, "A" * 64])
def test_only_digests_name_content(digest: str) -> None:
    with pytest.raises(StoreError, match="SHA-256"):
        content_key(digest)


def test_unknown_settings_of_a_bucket_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="colour"):
        open_files("s3://bucket?colour=red", tmp_path)


# --- the folder -------------------------------------------------------------------------------------------------


def test_folders_that_vanish_are_made_again(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "store")
    for _ in range(2):
        files.put_many([("results/1/1.1/a", b"1"), ("results/1/1.1/b", b"2")])
        files.put("outputs/000/1-x", io.BytesIO(b"3"))
        assert files.exists("results/1/1.1/b")
        shutil.rmtree(tmp_path / "store" / "results")
        shutil.rmtree(tmp_path / "store" / "outputs")
        shutil.rmtree(tmp_path / "store" / "tmp")
    assert not files.exists("results/1/1.1/b")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    files = LocalFiles(tmp_path / "store")
    content = Content(files, tmp_path)

    def full(*args: Any) -> None:
        raise OSError(number, "no space")

    attempts: list[Callable[[], object]] = [
        lambda: files.put("outputs/000/1-x", io.BytesIO(b"x")),
        lambda: files.put_many([("results/1/1.1/a", b"x")]),
        lambda: keep(content, b"x"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        for attempt in attempts:
            with pytest.raises(NoRoom, match="disk is full"):
                attempt()
    assert not content.has(digest_of(b"x"))
    assert list((tmp_path / "store" / "tmp").iterdir()) == []
    for attempt in attempts:
        attempt()


def test_whoever_puts_the_same_at_the_same_time_puts_it_once(tmp_path: Path) -> None:
    content = Content(LocalFiles(tmp_path / "store"), tmp_path)
    with content.writer() as first, content.writer() as second:
        first.write(b"same")
        second.write(b"same")
        assert first.finish() == second.finish()
    assert content.read(digest_of(b"same")) == b"same"


# --- the bucket -------------------------------------------------------------------------------------------------


def test_a_service_that_is_away_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
    files = BucketFiles("s3://b?endpoint=http://127.0.0.1:9&region=us-east-1", tmp_path, retries=0)
    attempts: list[Callable[[], object]] = [
        lambda: files.exists("a"),
        lambda: files.put("a", io.BytesIO(b"x")),
        lambda: files.put_many([("a", b"x")]),
        lambda: list(files.stream_key("a")),
        lambda: files.delete_key("a"),
        lambda: list(files.keys("a")),
    ]
    for attempt in attempts:
        with pytest.raises(StorageUnavailable, match="does not answer"):
            attempt()
