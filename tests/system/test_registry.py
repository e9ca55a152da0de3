"""A real engine pulls from our registry, our importer pulls from it, and half a download is continued."""

import base64
import contextlib
import hashlib
import json
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request

from distributio.cli.standin import build_standin
from distributio.server.importer import Imported, import_archive, import_from_registry
from distributio.server.registry import CHUNK, Access, Registry
from distributio.server.upstream import Login, Registries
from distributio.store.files import Content, LocalFiles
from distributio.wire import oci

pytestmark = pytest.mark.system

NAME = "library/python"
TOKEN = "dio_token"


class Site:
    """A site that has one image and one known reader, and a second reader to whom the image is not shown."""

    def __init__(self, folder: Path) -> None:
        self.content = Content(LocalFiles(folder / "files"), folder / "scratch")
        self.tags: dict[str, str] = {}
        self.readers = {TOKEN: Access.GRANTED, "dio_other": Access.HIDDEN}
        registry = Registry(self.content, self.find, self.may_read)
        self._server = uvicorn.Server(
            uvicorn.Config(Starlette(routes=registry.routes()), log_level="warning", lifespan="off")
        )
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = f"http://{self.address}/v2/{NAME}"
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})

    def find(self, request: Request, name: str, reference: str) -> str | None:
        return reference if oci.is_digest(reference) else self.tags.get(f"{name}:{reference}")

    def may_read(self, request: Request, name: str, digest: str) -> Access:
        kind, _, words = request.headers.get("authorization", "").partition(" ")
        password = base64.b64decode(words).decode().rpartition(":")[2] if kind == "Basic" else ""
        return self.readers.get(password, Access.UNKNOWN)

    @contextlib.contextmanager
    def running(self) -> Iterator["Site"]:
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline, "the registry did not start"
            time.sleep(0.01)
        try:
            yield self
        finally:
            self._server.should_exit = True
            self._thread.join()
            self._socket.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path / "site").running() as running:
        yield running


@pytest.fixture
def image(site: Site, pytestconfig: pytest.Config, tmp_path: Path) -> Imported:
    """python:alpine, or what stands in for it, in the site."""
    archive = tmp_path / "python.tar"
    build_standin(pytestconfig.cache.mkdir("standin"), archive, lambda line: None)
    with archive.open("rb") as file:
        imported = import_archive(site.content, iter(lambda: file.read(CHUNK), b""))
    site.tags[f"{NAME}:alpine"] = imported.digest
    return imported


def client(token: str = TOKEN) -> httpx2.Client:
    return httpx2.Client(auth=("any", token), trust_env=False)


def podman(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    places = ["--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "overlay"]
    command = ["podman", *places, "--cgroup-manager", "cgroupfs", "--events-backend", "file", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def engine() -> Iterator[Path]:
    # podman takes no run folder with a name of more than 50 characters.
    with tempfile.TemporaryDirectory(prefix="dio") as folder:
        yield Path(folder)
        podman(Path(folder), "rmi", "--all", "--force")


def test_podman_pulls_with_a_token_as_the_password(site: Site, image: Imported, engine: Path) -> None:
    name = f"{site.address}/{NAME}:alpine"
    refused = podman(engine, "pull", "--tls-verify=false", name)
    assert refused.returncode != 0
    assert "auth" in refused.stderr.lower()
    pulled = podman(engine, "pull", "--quiet", "--tls-verify=false", "--creds", f"me:{TOKEN}", name)
    assert pulled.returncode == 0, pulled.stderr
    config_digest = image.platforms[next(iter(image.platforms))].config_digest
    assert pulled.stdout.strip() == config_digest.removeprefix("sha256:")
    shown = json.loads(podman(engine, "image", "inspect", name).stdout)[0]
    assert shown["Digest"] == image.digest
    assert shown["RootFS"]["Layers"] == image.platforms[next(iter(image.platforms))].diff_ids


def test_our_importer_pulls_the_same_image_from_our_registry(site: Site, image: Imported, tmp_path: Path) -> None:
    second = Content(LocalFiles(tmp_path / "second"), tmp_path / "scratch")
    name = f"{site.address}/{NAME}:alpine"
    registries = Registries(logins={site.address: Login("any", TOKEN)})
    imported = import_from_registry(second, name, registries=registries)
    assert (imported.digest, imported.blobs) == (image.digest, image.blobs)
    assert imported.platforms == image.platforms
    for blob in imported.blobs:
        assert second.path(blob.digest).read_bytes() == site.content.path(blob.digest).read_bytes()


def test_half_a_download_is_continued(site: Site, image: Imported) -> None:
    blob = max(image.blobs, key=lambda part: part.size)
    url = f"{site.url}/blobs/{blob.digest}"
    whole = hashlib.sha256()
    with client() as http:
        with http.stream("GET", url) as answer:
            first = next(answer.iter_raw(3 * CHUNK))
        whole.update(first)
        headers = {"Range": f"bytes={len(first)}-", "If-Range": answer.headers["etag"]}
        with http.stream("GET", url, headers=headers) as answer:
            assert answer.status_code == 206
            assert answer.headers["content-range"] == f"bytes {len(first)}-{blob.size - 1}/{blob.size}"
            for chunk in answer.iter_raw():
                whole.update(chunk)
    assert f"sha256:{whole.hexdigest()}" == blob.digest


def small(site: Site) -> tuple[str, bytes]:
    data = bytes(range(256)) * 20_000
    with site.content.writer() as writer:
        writer.write(data)
        digest, _ = writer.finish()
    return f"{site.url}/blobs/{digest}", data


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=5119990-", 5_119_990, 5_120_000),
        ("bytes=-7", 5_119_993, 5_120_000),
        ("bytes=1-99999999", 1, 5_120_000),
        ("bytes=-99999999", 0, 5_120_000),
        ("bytes=0-1,5-6", 0, 5_120_000),
        ("lines=1-2", 0, 5_120_000),
        ("bytes=-", 0, 5_120_000),
    ],
)
def test_parts_are_given_as_asked(site: Site, asked: str, start: int, end: int) -> None:
    url, data = small(site)
    with client() as http:
        answer = http.get(url, headers={"Range": asked})
        assert answer.content == data[start:end]
        is_part = (start, end) != (0, len(data))
        assert answer.status_code == (206 if is_part else 200)
        assert answer.headers.get("content-range") == (f"bytes {start}-{end - 1}/{len(data)}" if is_part else None)
        head = http.head(url, headers={"Range": asked})
        assert (head.status_code, head.headers["content-length"], head.content) == (
            answer.status_code,
            str(end - start),
            b"",
        )


@pytest.mark.parametrize("asked", ["bytes=5120000-", "bytes=9-3", "bytes=-0"])
def test_parts_outside_are_refused(site: Site, asked: str) -> None:
    url, data = small(site)
    with client() as http:
        answer = http.get(url, headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(data)}"
    assert answer.json()["errors"][0]["code"] == "RANGE_INVALID"


def test_another_tag_makes_a_part_the_whole(site: Site) -> None:
    url, data = small(site)
    with client() as http:
        answer = http.get(url, headers={"Range": "bytes=5-9", "If-Range": '"other"'})
    assert (answer.status_code, answer.content) == (200, data)


def test_documents_have_their_type_and_digest(site: Site, image: Imported) -> None:
    with client() as http:
        by_tag = http.get(f"{site.url}/manifests/alpine")
        by_digest = http.get(f"{site.url}/manifests/{image.digest}")
        head = http.head(f"{site.url}/manifests/alpine")
        again = http.get(f"{site.url}/manifests/alpine", headers={"If-None-Match": by_tag.headers["etag"]})
    assert by_tag.headers["content-type"] == oci.OCI_MANIFEST
    assert by_tag.headers["docker-content-digest"] == image.digest == oci.digest_of(by_tag.content)
    assert by_digest.content == by_tag.content
    assert "immutable" in by_digest.headers["cache-control"]
    assert by_tag.headers["cache-control"] == "no-cache"
    assert (head.headers["content-length"], head.content) == (str(len(by_tag.content)), b"")
    assert (again.status_code, again.content) == (304, b"")


def test_strangers_are_asked_who_they_are_and_others_see_nothing(site: Site, image: Imported) -> None:
    paths = ["/v2/", f"/v2/{NAME}/manifests/alpine", f"/v2/{NAME}/blobs/{image.blobs[-1].digest}"]
    for path in paths:
        with httpx2.Client(trust_env=False) as http:
            answer = http.get(f"http://{site.address}{path}")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic realm=")
        assert answer.json()["errors"][0]["code"] == "UNAUTHORIZED"
    with client("dio_other") as http:
        assert [http.get(f"http://{site.address}{path}").status_code for path in paths] == [200, 404, 404]
    with client() as http:
        start = http.get(f"http://{site.address}/v2/")
    assert start.headers["docker-distribution-api-version"] == "registry/2.0"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("manifests/other", 404, "MANIFEST_UNKNOWN"),
        ("manifests/sha256:" + "0" * 64, 404, "MANIFEST_UNKNOWN"),
        ("blobs/sha256:" + "0" * 64, 404, "BLOB_UNKNOWN"),
        ("blobs/sha256:..%2F..", 404, "UNSUPPORTED"),
        ("tags/list", 404, "UNSUPPORTED"),
        ("blobs/other", 400, "DIGEST_INVALID"),
    ],
)
def test_what_is_not_there_is_said_in_the_registrys_words(site: Site, path: str, status: int, code: str) -> None:
    with client() as http:
        answer = http.get(f"{site.url}/{path}")
    assert answer.status_code == status
    assert answer.json()["errors"][0]["code"] == code


def test_nobody_can_push(site: Site) -> None:
    with client() as http:
        for method, path in (("PUT", "manifests/alpine"), ("POST", "blobs/uploads/"), ("DELETE", "manifests/alpine")):
            answer = http.request(method, f"{site.url}/{path}", content=b"{}")
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (405, "UNSUPPORTED")
