"""Images come in from registries and archives with every byte checked, and hostile ones are turned away with a reason."""

import base64
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributio.server.archives import Archive
from distributio.server.importer import Imported, import_archive, import_from_registry
from distributio.server.intake import Bounds, ImageError
from distributio.server.upstream import Login, Registries
from distributio.store.files import Content, LocalFiles
from distributio.wire import oci


@pytest.fixture
def content(tmp_path: Path) -> Content:
    return Content(LocalFiles(tmp_path / "files"), tmp_path / "scratch")


def digests(content: Content) -> set[str]:
    return {"sha256:" + key.rpartition("/")[2] for key, _ in content.files.keys("blobs")}


# --- images -----------------------------------------------------------------------------------------------------


def layer_tar(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Image:
    """An image for one platform, of given plain layers."""

    def __init__(self, *plain: bytes, machine: str = "amd64", system: str = "linux", packed: bool = True) -> None:
        self.plain = plain
        data = [gzip.compress(layer, mtime=0) if packed else layer for layer in plain]
        kind = oci.OCI_LAYER_GZIP if packed else oci.OCI_LAYER
        self.layers = [oci.describe(layer, kind) for layer in data]
        config = oci.Config(
            architecture=machine,
            os=system,
            config=oci.Execution(cmd=["run"], entrypoint=["/start"], env=["A=b"], user="1000"),
            rootfs=oci.RootFilesystem(diff_ids=[oci.digest_of(layer) for layer in plain]),
        )
        self.config = oci.encode(config)
        self.manifest = oci.encode(oci.make_manifest(oci.describe(self.config, oci.OCI_CONFIG), self.layers))
        self.part = oci.describe(self.manifest, oci.OCI_MANIFEST, platform=config.platform)
        self.digest = self.part.digest
        self.blobs = {oci.digest_of(blob): blob for blob in (self.config, self.manifest, *data)}


BASE = layer_tar("etc/base", b"base" * 100)
IMAGE = Image(BASE, layer_tar("app", os.urandom(300_000)))
ARM = Image(BASE, layer_tar("app", b"arm"), machine="arm64")
MIPS = Image(BASE, layer_tar("app", b"mips"), machine="mips64le")
INDEX = oci.encode(
    oci.make_index(
        [
            IMAGE.part,
            ARM.part,
            MIPS.part,
            oci.describe(b"{}", oci.OCI_MANIFEST, platform=oci.Platform(architecture="unknown", os="unknown")),
        ]
    )
)


# --- a registry -------------------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """A registry that can be told to misbehave."""

    protocol_version = "HTTP/1.1"
    server: "FakeRegistry"

    def log_message(self, *words: Any) -> None:
        pass

    def do_GET(self) -> None:
        registry = self.server
        registry.asked.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        if self.path.startswith("/token"):
            self.answer(200, json.dumps({"token": "let-me-in"}).encode())
        elif registry.statuses:
            self.answer(registry.statuses.pop(0), b"{}")
        elif registry.challenge and self.headers.get("Authorization") != registry.expected:
            self.answer(401, b"{}", {"WWW-Authenticate": registry.challenge})
        elif self.path in registry.redirects:
            self.answer(307, b"", {"Location": registry.redirects[self.path]})
        elif self.path not in registry.things:
            self.answer(404, b'{"errors":[]}')
        else:
            self.thing(registry.things[self.path])

    def thing(self, data: bytes) -> None:
        start = 0
        if (wanted := self.headers.get("Range")) and self.server.knows_ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self.answer(206 if start else 200, data[start:], headers)

    def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        cut = self.server.cut_after
        if cut is not None and len(data) > cut and "/blobs/" in self.path:
            self.wfile.write(data[:cut])
            self.close_connection = True
            return
        self.wfile.write(data)


class FakeRegistry(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.things: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.statuses: list[int] = []  # to answer first, whatever is asked
        self.challenge = ""
        self.expected = ""
        self.cut_after: int | None = None
        self.knows_ranges = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has read enough hangs up, which is no error here."""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def holds(self, name: str, tag: str, top: bytes, *images: Image) -> None:
        self.things[f"/v2/{name}/manifests/{tag}"] = top
        self.things[f"/v2/{name}/manifests/{oci.digest_of(top)}"] = top
        for image in images:
            self.things[f"/v2/{name}/manifests/{image.digest}"] = image.manifest
            for digest, blob in image.blobs.items():
                self.things[f"/v2/{name}/blobs/{digest}"] = blob

    def blobs_asked(self) -> list[str]:
        return [path.rpartition("/")[2] for path, _, _ in self.asked if "/blobs/" in path]


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    server = FakeRegistry()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def pull(content: Content, registry: FakeRegistry, name: str = "tool:1", **more: Any) -> Imported:
    return import_from_registry(content, f"{registry.host}/{name}", wait=lambda seconds: None, **more)


def test_an_image_is_pulled_whole(content: Content, registry: FakeRegistry) -> None:
    registry.holds("tool", "1", IMAGE.manifest, IMAGE)
    steps: list[tuple[int, int]] = []
    imported = pull(content, registry, progress=lambda held, total: steps.append((held, total)))
    assert imported.reference == f"{registry.host}/tool:1"
    assert imported.digest == IMAGE.digest
    assert imported.media_type == oci.OCI_MANIFEST
    assert {blob.digest for blob in imported.blobs} == set(IMAGE.blobs) == digests(content)
    assert imported.size_bytes == sum(map(len, IMAGE.blobs.values()))
    assert steps == sorted(steps)
    assert steps[-1] == (imported.size_bytes, imported.size_bytes)
    image = imported.platforms["linux/amd64"]
    assert image.layers == IMAGE.layers
    assert image.diff_ids == [oci.digest_of(layer) for layer in IMAGE.plain]
    assert image.unpacked_bytes == sum(map(len, IMAGE.plain))
    assert (image.entrypoint, image.cmd, image.environment, image.user) == (["/start"], ["run"], ["A=b"], "1000")
    assert imported.warnings == []


def test_of_several_platforms_the_usual_ones_are_taken_and_the_index_is_kept(
    content: Content, registry: FakeRegistry
) -> None:
    registry.holds("a/tool", "1", INDEX, IMAGE, ARM, MIPS)
    imported = pull(content, registry, "a/tool:1")
    assert imported.digest == oci.digest_of(INDEX)
    assert imported.media_type == oci.OCI_INDEX
    assert set(imported.platforms) == {"linux/amd64", "linux/arm64"}
    assert content.read(imported.digest) == INDEX
    assert digests(content) == {oci.digest_of(INDEX), *IMAGE.blobs, *ARM.blobs}
    shared = IMAGE.layers[0].digest
    assert registry.blobs_asked().count(shared) == 1


def test_all_platforms_or_those_asked_for_are_taken(content: Content, registry: FakeRegistry) -> None:
    registry.holds("tool", "1", INDEX, IMAGE, ARM, MIPS)
    assert set(pull(content, registry, platforms=["linux/mips64le"]).platforms) == {"linux/mips64le"}
    assert len(pull(content, registry, platforms=None).platforms) == 3
    some = pull(content, registry, platforms=["linux/amd64", "linux/s390x"])
    assert "linux/s390x" in some.warnings[0]
    with pytest.raises(ImageError, match=r"linux/amd64, linux/arm64, linux/mips64le, not for linux/s390x") as caught:
        pull(content, registry, platforms=["linux/s390x"])
    assert caught.value.code == "image-refused"


def test_what_the_site_has_is_not_fetched_again(content: Content, registry: FakeRegistry) -> None:
    registry.holds("tool", "1", IMAGE.manifest, IMAGE)
    registry.holds("other", "1", ARM.manifest, ARM)
    pull(content, registry)
    registry.asked.clear()
    assert pull(content, registry, "other:1").digest == ARM.digest
    assert set(registry.blobs_asked()) == {oci.digest_of(ARM.config), ARM.layers[1].digest}
    registry.asked.clear()
    pull(content, registry)
    assert registry.blobs_asked() == []


def test_a_pinned_image_is_asked_for_by_digest(content: Content, registry: FakeRegistry) -> None:
    registry.holds("tool", "1", IMAGE.manifest, IMAGE)
    assert pull(content, registry, f"tool:old@{IMAGE.digest}").digest == IMAGE.digest
    registry.things[f"/v2/tool/manifests/{ARM.digest}"] = IMAGE.manifest
    with pytest.raises(ImageError, match="damaged") as caught:
        pull(content, registry, f"tool@{ARM.digest}")
    assert caught.value.code == "image-damaged"


def test_anonymous_pulls_fetch_a_token(content: Content, registry: FakeRegistry) -> None:
    registry.holds("tool", "1", IMAGE.manifest, IMAGE)
    registry.challenge = f'Bearer realm="http://{registry.host}/token",service="here",scope="repository:tool:pull"'
    registry.expected = "Bearer let-me-in"
    assert pull(content, registry).digest == IMAGE.digest
    tokens = [(path, who) for path, _, who in registry.asked if path.startswith("/token")]
    assert tokens == [("/token?scope=repository%3Atool%3Apull&service=here", None)]


def test_a_login_is_used_where_it_belongs(content: Content, registry: FakeRegistry) -> None:
    registry.holds("tool", "1", IMAGE.manifest, IMAGE)
    basic = "Basic " + base64.b64encode(b"me:secret").decode()
    registries = Registries(logins={registry.host: Login("me", "secret")})
    registry.challenge, registry.expected = 'Basic realm="x"', basic
    assert pull(content, registry, registries=registries).digest == IMAGE.digest
    registry.asked.clear()
    registry.challenge, registry.expected = f'Bearer realm="http://{registry.host}/token"', "Bearer let-me-in"
    pull(content, registry, registries=registries)
    assert next(who for path, _, who in registry.asked if path.startswith("/token")) == basic


def test_a_mirror_is_asked_instead(content: Content, registry: FakeRegistry) -> None:
    registry.holds("library/tool", "latest", IMAGE.manifest, IMAGE)
    registries = Registries(mirrors={"docker.io": f"http://{registry.host}"})
    assert import_from_registry(content, "tool", registries=registries).reference == "docker.io/library/tool:latest"


def test_a_cut_download_goes_on_where_it_stopped(content: Content, registry: FakeRegistry) -> None:
    registry.holds("tool", "1", IMAGE.manifest, IMAGE)
    registry.cut_after = 100_000
    assert pull(content, registry).digest == IMAGE.digest
    big = IMAGE.layers[1]
    ranges = [span for path, span, _ in registry.asked if path.endswith(big.digest)]
    assert ranges == [None, "bytes=100000-", "bytes=200000-", "bytes=300000-"]


def test_a_registry_without_ranges_is_coped_with(content: Content, registry: FakeRegistry) -> None:
    registry.holds("tool", "1", IMAGE.manifest, IMAGE)
    registry.knows_ranges = False
    registry.statuses = [503, 502]
    assert pull(content, registry).digest == IMAGE.digest


def test_a_download_that_never_gets_on_is_given_up(content: Content, registry: FakeRegistry) -> None:
    registry.holds("tool", "1", IMAGE.manifest, IMAGE)
    registry.knows_ranges, registry.cut_after = False, 1000
    with pytest.raises(ImageError, match=r"1000 of \d+ bytes.*docker save .*tool:1 \| distributio image import -"):
        pull(content, registry)


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (404, "image-not-found", "Check the name"),
        (403, "image-denied", "private"),
        (429, "image-rate-limited", "Wait"),
        (400, "image-unreachable", "answered 400"),
    ],
)
def test_refusals_say_what_to_do(content: Content, registry: FakeRegistry, status: int, code: str, says: str) -> None:
    registry.statuses = [status]
    with pytest.raises(ImageError, match=says) as caught:
        pull(content, registry)
    assert caught.value.code == code


def test_an_unreachable_registry_is_explained(content: Content, registry: FakeRegistry) -> None:
    registry.shutdown()
    registry.server_close()
    with pytest.raises(ImageError, match=r"127\.0\.0\.1.*refused.*docker save") as caught:
        pull(content, registry)
    assert caught.value.code == "image-unreachable"


def test_the_sites_own_machine_can_be_closed_to_pulls(content: Content, registry: FakeRegistry) -> None:
    with pytest.raises(ImageError, match="own machine"):
        pull(content, registry, registries=Registries(allow_loopback=False))
    assert registry.asked == []


@pytest.mark.parametrize("target", ["http://192.0.2.1/x", "file:///etc/passwd", "https://169.254.169.254/", "//", ""])
def test_a_registry_cannot_send_the_site_elsewhere(content: Content, registry: FakeRegistry, target: str) -> None:
    registry.redirects["/v2/tool/manifests/1"] = target
    with pytest.raises(ImageError):
        pull(content, registry)
    registry.redirects.clear()
    registry.challenge = f'Bearer realm="{target or "http://192.0.2.1"}"'
    with pytest.raises(ImageError):
        pull(content, registry)


def test_redirections_are_followed_without_the_token(content: Content, registry: FakeRegistry) -> None:
    registry.holds("tool", "1", IMAGE.manifest, IMAGE)
    storage = f"/storage/{IMAGE.layers[1].digest}"
    path = f"/v2/tool/blobs/{IMAGE.layers[1].digest}"
    registry.things[storage] = registry.things.pop(path)
    registry.redirects[path] = f"http://localhost:{registry.server_port}{storage}"
    registry.challenge = f'Bearer realm="http://{registry.host}/token"'
    registry.expected = "Bearer let-me-in"
    with pytest.raises(ImageError):
        pull(content, registry)  # the storage asks for the token, and does not get it
    assert {who for path, _, who in registry.asked if path == storage} == {None}


def test_changed_bytes_are_refused_and_not_kept(content: Content, registry: FakeRegistry) -> None:
    registry.holds("tool", "1", IMAGE.manifest, IMAGE)
    digest = IMAGE.layers[0].digest
    blob = registry.things[f"/v2/tool/blobs/{digest}"]
    for wrong in (blob[:-1] + b"x", blob + b"x"):
        registry.things[f"/v2/tool/blobs/{digest}"] = wrong
        with pytest.raises(ImageError, match="damaged") as caught:
            pull(content, registry)
        assert caught.value.code == "image-damaged"
    assert not content.has(digest)
    assert oci.digest_of(wrong) not in digests(content)


def test_a_manifest_that_lies_about_a_size_is_refused(content: Content, registry: FakeRegistry) -> None:
    registry.holds("tool", "1", IMAGE.manifest, IMAGE)
    pull(content, registry)
    lie = IMAGE.manifest.replace(f'"size":{IMAGE.layers[0].size}'.encode(), b'"size":1')
    registry.holds("tool", "2", lie)
    with pytest.raises(ImageError, match="another size"):
        pull(content, registry, "tool:2")


def test_a_config_that_speaks_of_other_layers_is_refused(content: Content, registry: FakeRegistry) -> None:
    image = Image(BASE)
    config = image.config.replace(oci.digest_of(BASE).encode(), oci.digest_of(b"").encode())
    manifest = oci.encode(oci.make_manifest(oci.describe(config, oci.OCI_CONFIG), image.layers))
    registry.holds("tool", "1", manifest, image)
    registry.things[f"/v2/tool/blobs/{oci.digest_of(config)}"] = config
    with pytest.raises(ImageError, match="No engine would run it"):
        pull(content, registry)


def test_images_for_other_systems_are_refused(content: Content, registry: FakeRegistry) -> None:
    image = Image(BASE, system="windows")
    registry.holds("tool", "1", image.manifest, image)
    with pytest.raises(ImageError, match="windows"):
        pull(content, registry)


def test_a_layer_that_is_a_bomb_is_refused(content: Content, registry: FakeRegistry) -> None:
    image = Image(bytes(3_000_000))
    registry.holds("tool", "1", image.manifest, image)
    with pytest.raises(ImageError, match="unpacks to more"):
        pull(content, registry, bounds=Bounds(unpacked_bytes=2_000_000))


def test_a_layer_that_cannot_be_unpacked_is_refused(content: Content, registry: FakeRegistry) -> None:
    image = Image(BASE)
    broken = image.blobs[image.layers[0].digest][:-9]
    layer = oci.describe(broken, oci.OCI_LAYER_GZIP)
    manifest = oci.encode(oci.make_manifest(oci.describe(image.config, oci.OCI_CONFIG), [layer]))
    registry.holds("tool", "1", manifest, image)
    registry.things[f"/v2/tool/blobs/{layer.digest}"] = broken
    with pytest.raises(ImageError, match="cannot be unpacked"):
        pull(content, registry)


def test_a_large_image_is_refused_before_it_is_fetched(content: Content, registry: FakeRegistry) -> None:
    registry.holds("tool", "1", IMAGE.manifest, IMAGE)
    with pytest.raises(ImageError, match="at most 1000"):
        pull(content, registry, bounds=Bounds(image_bytes=1000))
    assert registry.blobs_asked() == []


def test_zstd_layers_are_taken_unmeasured(content: Content, registry: FakeRegistry) -> None:
    image = Image(BASE)
    layer = oci.describe(b"\x28\xb5\x2f\xfd and so on", oci.OCI_LAYER_ZSTD)
    manifest = oci.encode(oci.make_manifest(oci.describe(image.config, oci.OCI_CONFIG), [layer]))
    registry.holds("tool", "1", manifest, image)
    registry.things[f"/v2/tool/blobs/{layer.digest}"] = b"\x28\xb5\x2f\xfd and so on"
    imported = pull(content, registry)
    assert imported.platforms["linux/amd64"].unpacked_bytes == 0
    assert any("zstd" in warning for warning in imported.warnings)


def test_what_is_no_image_name_is_said(content: Content) -> None:
    with pytest.raises(ImageError, match="no image name") as caught:
        import_from_registry(content, "No Name")
    assert caught.value.code == "image-name"


# --- archives ---------------------------------------------------------------------------------------------------


def tar(files: dict[str, bytes], *odd: tarfile.TarInfo, form: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in odd:
            archive.addfile(info)
    return out.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def blob_files(*images: Image) -> dict[str, bytes]:
    return {f"blobs/{d.replace(':', '/')}": blob for image in images for d, blob in image.blobs.items()}


def oci_files(*entries: oci.Descriptor, **more: bytes) -> dict[str, bytes]:
    return {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": oci.encode(oci.make_index(entries)), **more}


def named(part: oci.Descriptor, name: str) -> oci.Descriptor:
    return oci.Descriptor(
        media_type=part.media_type,
        digest=part.digest,
        size=part.size,
        platform=part.platform,
        annotations={oci.IMAGE_NAME: name, oci.REF_NAME: name.rpartition(":")[2]},
    )


def old_docker(image: Image, *tags: str) -> dict[str, bytes]:
    """As docker before 25 saves."""
    config = oci.digest_of(image.config).removeprefix("sha256:") + ".json"
    layers = [f"{hashlib.sha256(layer).hexdigest()}/layer.tar" for layer in image.plain]
    entry = {"Config": config, "RepoTags": list(tags) or None, "Layers": layers}
    files = {"manifest.json": json.dumps([entry]).encode(), "repositories": b"{}", config: image.config}
    return files | dict(zip(layers, image.plain, strict=True))


def take(content: Content, data: bytes, name: str = "", size: int = 10_000, **more: Any) -> Imported:
    chunks = (data[start : start + size] for start in range(0, len(data), size))
    return import_archive(content, chunks, name, **more)


def refused(content: Content, data: bytes, says: str, name: str = "", **more: Any) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        take(content, data, name, **more)
    assert caught.value.code in ("image-refused", "image-damaged")


GOOD = tar(oci_files(named(IMAGE.part, "docker.io/library/tool:1")) | blob_files(IMAGE))
OLD = Image(BASE, layer_tar("app", os.urandom(2_000_000)))


@pytest.mark.parametrize("size", [1, 7, 10_000_000])
def test_an_oci_archive_comes_in_whatever_its_chunks(content: Content, size: int) -> None:
    imported = take(content, GOOD, size=size)
    assert (imported.reference, imported.digest) == ("docker.io/library/tool:1", IMAGE.digest)
    assert digests(content) == set(IMAGE.blobs)


def test_a_given_name_wins(content: Content) -> None:
    assert take(content, GOOD, "mine/thing").reference == "docker.io/mine/thing:latest"


def test_a_gzipped_archive_comes_in(content: Content) -> None:
    assert take(content, gzip.compress(GOOD)).digest == IMAGE.digest
    refused(content, gzip.compress(GOOD)[:-20], "gzip")
    refused(content, b"\xfd7zXZ\x00" + bytes(100), "xz -d")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_old_docker_archives_come_in_and_large_layers_are_packed(content: Content, form: int) -> None:
    imported = take(content, tar(old_docker(OLD, "tool:1", "tool:2"), form=form), "tool:2")
    image = imported.platforms["linux/amd64"]
    assert imported.reference == "docker.io/library/tool:2"
    assert image.config_digest == oci.digest_of(OLD.config)
    assert [layer.media_type for layer in image.layers] == [oci.OCI_LAYER, oci.OCI_LAYER_GZIP]
    assert gzip.decompress(content.read(image.layers[1].digest)) == OLD.plain[1]
    assert digests(content) == {blob.digest for blob in imported.blobs}
    assert take(content, tar(old_docker(OLD)), "else").digest == imported.digest


def test_long_names_and_numbers_in_pax_headers_are_read(content: Content) -> None:
    folder = "x" * 120
    files = old_docker(OLD, "tool")
    entry = json.loads(files["manifest.json"])
    config = f"{folder}/{'c' * 90}.json"
    files[config] = files.pop(entry[0]["Config"])
    entry[0]["Config"] = config
    files["manifest.json"] = json.dumps(entry).encode()
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert take(content, tar(files, form=form)).reference == "docker.io/library/tool:latest"


def test_links_inside_an_archive_are_followed(content: Content) -> None:
    files = old_docker(OLD, "tool")
    entry = json.loads(files["manifest.json"])
    entry[0]["Layers"][0] = "alias/layer.tar"
    target = json.loads(files["manifest.json"])[0]["Layers"][0]
    files["manifest.json"] = json.dumps(entry).encode()
    for alias in (link("alias/layer.tar", f"../{target}"), link("alias/layer.tar", target, tarfile.LNKTYPE)):
        assert take(content, tar(files, alias)).digest == take(content, tar(old_docker(OLD, "tool"))).digest
    refused(content, tar(files, link("alias/layer.tar", "layer.tar")), "circles")


def test_new_docker_archives_with_plain_layers_are_packed(content: Content) -> None:
    image = Image(*OLD.plain, packed=False)
    imported = take(content, tar(oci_files(named(image.part, "docker.io/library/tool:1")) | blob_files(image)))
    assert imported.digest == take(content, tar(old_docker(OLD, "tool:1"))).digest
    assert image.layers[1].digest not in digests(content)


def test_an_index_comes_in_with_the_platforms_that_are_there(content: Content) -> None:
    part = named(oci.describe(INDEX, oci.OCI_INDEX), "docker.io/library/tool:1")
    index_file = {f"blobs/{part.digest.replace(':', '/')}": INDEX}
    imported = take(content, tar(oci_files(part) | index_file | blob_files(IMAGE)))
    assert imported.digest == oci.digest_of(INDEX)
    assert set(imported.platforms) == {"linux/amd64"}
    assert digests(content) == {oci.digest_of(INDEX), *IMAGE.blobs}
    flat = take(content, tar(oci_files(IMAGE.part, ARM.part) | blob_files(IMAGE, ARM)), "tool")
    assert set(flat.platforms) == {"linux/amd64", "linux/arm64"}
    some = take(content, tar(oci_files(part) | index_file | blob_files(IMAGE, ARM)), platforms=["linux/arm64"])
    assert set(some.platforms) == {"linux/arm64"}


def test_of_several_images_the_named_one_is_taken(content: Content) -> None:
    entries = [named(IMAGE.part, "docker.io/library/tool:1"), named(ARM.part, "docker.io/library/tool:2")]
    data = tar(oci_files(*entries) | blob_files(IMAGE, ARM))
    assert take(content, data, "tool:2").digest == ARM.digest
    refused(content, data, "several images.*tool:1.*tool:2")
    refused(content, data, "several images", "tool:3")


def test_an_image_without_a_name_needs_one(content: Content) -> None:
    data = tar(oci_files(IMAGE.part) | blob_files(IMAGE))
    refused(content, data, "no name")
    assert take(content, data, "tool").digest == IMAGE.digest


def odd(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    return info


FILES = oci_files(named(IMAGE.part, "docker.io/library/tool:1")) | blob_files(IMAGE)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (tar(FILES | {"../x": b""}), "leads out"),
        (tar(FILES | {"a/../../x": b""}), "leads out"),
        (tar(FILES | {"/etc/x": b""}), "leads out"),
        (tar(FILES | {"a/../x": b""}), "leads out"),
        (tar(FILES | {"a\nb": b""}), "unusable name"),
        (tar(FILES, odd("../x", tarfile.DIRTYPE)), "leads out"),
        (tar(FILES, link("x", "/etc/passwd")), "leads out"),
        (tar(FILES, link("a/x", "../../etc/passwd")), "leads out"),
        (tar(FILES, link("x", "../etc/passwd", tarfile.LNKTYPE)), "leads out"),
        (tar(FILES, odd("x", tarfile.CHRTYPE)), "device"),
        (tar(FILES, odd("x", tarfile.FIFOTYPE)), "pipe"),
        (tar(FILES, odd("x", tarfile.GNUTYPE_SPARSE)), "sparse"),
        (tar(FILES, odd("x", b"Z")), "unknown kind"),
        (tar(FILES, odd("index.json", tarfile.REGTYPE)), "twice"),
        (GOOD[: len(GOOD) // 2], "cut off"),
        (GOOD[:512], "cut off"),
        (b"", "empty.*pipe"),
        (b"x" * 5000, "not a tar"),
        (bytes(10_240), "no image was found"),
        (tar({"readme": b"x"}), "no image was found.*readme"),
        (tar({"repositories": b"{}"}), "older than 1.10"),
        (tar(oci_files()), "no image"),
        (tar(FILES | {"index.json": b"{"}), "cannot be read"),
        (tar(FILES | {"index.json": IMAGE.manifest}), "not an index"),
        (tar({"manifest.json": b"{}"}), "cannot be read"),
        (tar({"manifest.json": b"[]"}), "no image"),
        (tar({"manifest.json": b'[{"Config":"../../etc/passwd","RepoTags":["a"],"Layers":[]}]'}), "leads out"),
        (tar({"manifest.json": b'[{"Config":"c","RepoTags":["a"],"Layers":[]}]'}), "'c' is missing"),
        (tar({"manifest.json": b" " * (oci.DOCUMENT_BYTES + 1)}), "more than"),
    ],
)
def test_hostile_and_broken_archives_are_refused(content: Content, data: bytes, says: str) -> None:
    refused(content, data, says)
    assert digests(content) == set()


def test_missing_and_wrong_blobs_are_refused(content: Content) -> None:
    for name in blob_files(IMAGE):
        without = {key: value for key, value in FILES.items() if key != name}
        refused(content, tar(without), "missing")
        refused(content, tar(FILES | {name: FILES[name][:-1] + b"?"}), "damaged")
        refused(content, tar(FILES | {name: FILES[name] + b"?"}), "damaged")


def test_changed_layers_of_old_docker_archives_are_refused(content: Content) -> None:
    files = old_docker(OLD, "tool")
    layers = json.loads(files["manifest.json"])[0]["Layers"]
    for name in (*layers, json.loads(files["manifest.json"])[0]["Config"]):
        refused(content, tar(files | {name: files[name][:-1] + b"?"}), "damaged")
    entry = [{"Config": json.loads(files["manifest.json"])[0]["Config"], "RepoTags": ["tool"], "Layers": layers[:1]}]
    refused(content, tar(files | {"manifest.json": json.dumps(entry).encode()}), "1 layers")


def test_archives_are_bounded(content: Content) -> None:
    refused(content, GOOD, "larger than", bounds=Bounds(archive_bytes=1000))
    refused(content, gzip.compress(bytes(5_000_000)), "larger than", bounds=Bounds(archive_bytes=1_000_000))
    refused(content, GOOD, "more than 3 files", bounds=Bounds(archive_members=3))
    long = tarfile.TarInfo("x" * 2_000_000)
    refused(content, tar({}, long), "header of")


SMALL = tar(oci_files(IMAGE.part) | {"a" * 120: b"x" * 600}, link("b", "oci-layout"), form=tarfile.PAX_FORMAT)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(changes=st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.binary(min_size=1, max_size=12)), max_size=4))
def test_no_damage_makes_the_reader_stumble(changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(SMALL)
    for position, new in changes:
        data[position : position + len(new)] = new
        start = position // 512 * 512  # the checksum is put right, so that the damage is looked at
        if start + 512 <= len(data):
            total = sum(data[start : start + 148]) + 8 * 32 + sum(data[start + 156 : start + 512])
            data[start + 148 : start + 156] = b"%06o\0 " % total
    with contextlib.suppress(ImageError):
        archive = Archive(io.BytesIO(bytes(data)), Bounds())
        for name in archive.names:
            archive.read(name, 1 << 20)


def test_nothing_is_left_in_the_scratch_folder(content: Content) -> None:
    take(content, GOOD)
    refused(content, GOOD[:5000], "cut off")
    assert list(content.scratch.iterdir()) == []
