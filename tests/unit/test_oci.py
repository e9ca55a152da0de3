"""Image names, platforms and documents are read as docker reads them, and what cannot work is said."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributio.wire import oci

A, B, C = ("sha256:" + letter * 64 for letter in "abc")


@pytest.mark.parametrize(
    ("text", "full", "short"),
    [
        ("python", "docker.io/library/python:latest", "python:latest"),
        ("python:alpine", "docker.io/library/python:alpine", "python:alpine"),
        ("docker.io/python:alpine", "docker.io/library/python:alpine", "python:alpine"),
        ("index.docker.io/library/python", "docker.io/library/python:latest", "python:latest"),
        ("somebody/tool:1.2", "docker.io/somebody/tool:1.2", "somebody/tool:1.2"),
        ("ghcr.io/a/b/c", "ghcr.io/a/b/c:latest", "ghcr.io/a/b/c:latest"),
        ("localhost/tool", "localhost/tool:latest", "localhost/tool:latest"),
        ("localhost:5000/tool", "localhost:5000/tool:latest", "localhost:5000/tool:latest"),
        ("127.0.0.1:5000/a/tool:x", "127.0.0.1:5000/a/tool:x", "127.0.0.1:5000/a/tool:x"),
        ("[::1]:5000/tool", "[::1]:5000/tool:latest", "[::1]:5000/tool:latest"),
        ("Registry.Example/tool", "registry.example/tool:latest", "registry.example/tool:latest"),
        (f"python@{A}", f"docker.io/library/python@{A}", f"python@{A}"),
        (f"host:1/a:b@{A}", f"host:1/a:b@{A}", f"host:1/a:b@{A}"),
        ("a__b/c-d.e", "docker.io/a__b/c-d.e:latest", "a__b/c-d.e:latest"),
    ],
)
def test_names_are_read_as_docker_reads_them(text: str, full: str, short: str) -> None:
    reference = oci.parse_reference(text)
    assert (str(reference), reference.short) == (full, short)
    assert oci.parse_reference(str(reference)) == reference
    assert oci.parse_reference(reference.short) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        " python",
        "https://docker.io/python",
        "Python",
        "a//b",
        "a/../b",
        "python:",
        "python:-x",
        "python:" + "x" * 129,
        "python@sha256:abc",
        "python@md5:" + "a" * 32,
        "a" * 64,
        "host:99x/python",
        "a" * 256,
        "py thon",
        "python\n",
        "-a.b/python",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(oci.OciError):
        oci.parse_reference(text)


@settings(derandomize=True, deadline=None)
@given(text=st.text(st.sampled_from("aA0.:/@-_[]\n é")) | st.text())
def test_every_text_is_a_name_or_refused(text: str) -> None:
    try:
        reference = oci.parse_reference(text)
    except oci.OciError:
        return
    assert oci.parse_reference(str(reference)) == reference


@settings(derandomize=True, deadline=None)
@given(data=st.binary())
def test_every_document_is_read_or_refused(data: bytes) -> None:
    for read in (oci.parse_document, oci.parse_config, oci.parse_saved):
        with contextlib.suppress(oci.OciError):
            read(data)


def test_a_digest_is_what_a_registry_is_asked_for() -> None:
    assert oci.parse_reference(f"python:alpine@{A}").pointer == A
    assert oci.parse_reference("python:alpine").pointer == "alpine"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("amd64", "linux/amd64"),
        ("x86_64", "linux/amd64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("armhf", "linux/arm/v7"),
        ("armel", "linux/arm/v5"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_platforms_have_one_spelling(text: str, name: str) -> None:
    assert oci.parse_platform(text).name == name
    assert oci.parse_platform(name).name == name


@pytest.mark.parametrize("text", ["", "linux/amd64/v1/x", "linux/", "lin ux/amd64"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(oci.OciError):
        oci.parse_platform(text)


def test_a_machine_runs_its_own_variant_or_the_nearest_older_one() -> None:
    offered = ["linux/arm/v5", "linux/arm/v7", "linux/amd64", "linux/amd64/v3", "linux/arm64"]
    assert oci.best_platform(offered, "linux/arm/v6") == "linux/arm/v5"
    assert oci.best_platform(offered, "linux/arm") == "linux/arm/v7"
    assert oci.best_platform(offered, "linux/amd64") == "linux/amd64"
    assert oci.best_platform(offered, "linux/amd64/v2") == "linux/amd64"
    assert oci.best_platform(offered, "linux/amd64/v4") == "linux/amd64/v3"
    assert oci.best_platform(offered, "linux/s390x") is None
    assert oci.best_platform(offered, "windows/amd64") is None


def descriptor(digest: str = A, kind: str = oci.OCI_LAYER_GZIP, size: int = 3, **more: Any) -> oci.Descriptor:
    return oci.Descriptor(media_type=kind, digest=digest, size=size, **more)


def manifest(*layers: oci.Descriptor, kind: str = oci.OCI_CONFIG) -> oci.Manifest:
    return oci.make_manifest(descriptor(C, kind), layers)


def test_documents_survive_writing_and_reading() -> None:
    document = manifest(descriptor(A), descriptor(B))
    index = oci.make_index([oci.describe(oci.encode(document), oci.OCI_MANIFEST, platform=oci.parse_platform("arm"))])
    assert oci.parse_document(oci.encode(document)) == document
    assert oci.parse_document(oci.encode(index)) == index
    assert oci.encode(document) == oci.encode(oci.parse_document(oci.encode(document)))
    written = json.loads(oci.encode(document))
    assert written["schemaVersion"] == 2
    assert set(written["layers"][0]) == {"mediaType", "digest", "size"}


def test_a_docker_manifest_list_is_an_index() -> None:
    data = {
        "schemaVersion": 2,
        "mediaType": oci.DOCKER_INDEX,
        "manifests": [
            {
                "mediaType": oci.DOCKER_MANIFEST,
                "digest": A,
                "size": 5,
                "platform": {"architecture": "arm", "os": "linux", "variant": "v7", "features": ["x"]},
            }
        ],
    }
    index = oci.parse_document(json.dumps(data).encode())
    assert isinstance(index, oci.Index)
    assert index.manifests[0].platform == oci.Platform(architecture="arm", os="linux", variant="v7")
    assert oci.media_type_of(index) == oci.DOCKER_INDEX


def test_a_document_without_media_type_is_an_oci_one() -> None:
    data = oci.encode(manifest(descriptor())).replace(f'"mediaType":"{oci.OCI_MANIFEST}",'.encode(), b"")
    document = oci.parse_document(data)
    assert document.media_type == ""
    assert oci.media_type_of(document) == oci.OCI_MANIFEST


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cannot be read"),
        (b"[]", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b'{"schemaVersion": 1, "fsLayers": []}', "schema version 1"),
        (b'{"schemaVersion": 2}', "config"),
        (b'{"schemaVersion": 2, "manifests": [], "layers": []}', "both"),
        (b'{"schemaVersion": 2, "mediaType": "text/plain", "manifests": []}', "text/plain"),
        (
            b'{"schemaVersion": 2, "manifests": [{"digest": "sha256:../../etc", "size": 1}]}',
            r"\$.manifests\[0\].digest",
        ),
        (b'{"schemaVersion": 2, "manifests": [{"digest": "' + A.encode() + b'", "size": -1}]}', "size"),
        (b" " * (oci.DOCUMENT_BYTES + 1), "not accepted"),
    ],
)
def test_unusable_documents_are_refused_with_a_reason(data: bytes, says: str) -> None:
    with pytest.raises(oci.OciError, match=says):
        oci.parse_document(data)


def test_configs_as_docker_writes_them_are_read() -> None:
    data = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": None, "Cmd": "run", "Entrypoint": ["/e"], "Volumes": None, "OnBuild": None, "WorkingDir": ""},
        "rootfs": {"type": "layers", "diff_ids": [A]},
        "docker_version": "20.10",
    }
    config = oci.parse_config(json.dumps(data).encode())
    assert config.platform.name == "linux/amd64"
    assert oci.command_words(config.execution.cmd) == ["run"]
    assert oci.command_words(config.execution.entrypoint) == ["/e"]
    assert oci.command_words(None) == []


def test_docker_archives_name_their_images() -> None:
    saved = oci.parse_saved(json.dumps([{"Config": "c.json", "RepoTags": None, "Layers": ["a.tar"]}]).encode())
    assert saved == [oci.SavedImage(config="c.json", layers=["a.tar"])]


def test_a_common_manifest_has_nothing_against_it() -> None:
    assert oci.check_manifest(manifest(descriptor())) == oci.Findings()


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (manifest(), "no layers"),
        (manifest(*[descriptor()] * 128), "128 layers"),
        (manifest(descriptor(kind="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")), "redistributed"),
        (manifest(descriptor(urls=["https://example.org/layer"])), "redistributed"),
        (manifest(descriptor(kind=oci.OCI_LAYER_GZIP + "+encrypted")), "encrypted"),
        (manifest(descriptor(kind="application/x-helm")), "do not know"),
        (manifest(descriptor(), kind="application/vnd.cncf.helm.config.v1+json"), "helm"),
    ],
)
def test_manifests_that_cannot_work_are_refused(document: oci.Manifest, says: str) -> None:
    assert any(says in refusal for refusal in oci.check_manifest(document).refusals)


def test_zstd_layers_are_taken_with_a_warning() -> None:
    findings = oci.check_manifest(manifest(descriptor(kind=oci.OCI_LAYER_ZSTD)))
    assert not findings.refusals
    assert "zstd" in findings.warnings[0]


def config(system: str = "linux", layers: int = 1, **execution: Any) -> oci.Config:
    return oci.Config(
        architecture="amd64",
        os=system,
        config=oci.Execution(cmd=["sh"], **execution),
        rootfs=oci.RootFilesystem(diff_ids=[A] * layers),
    )


def test_a_common_config_has_nothing_against_it() -> None:
    assert oci.check_config(config(healthcheck={"Test": ["NONE"]}), 1) == oci.Findings()


def test_configs_that_cannot_work_are_refused() -> None:
    assert "windows" in oci.check_config(config("windows"), 1).refusals[0]
    assert "2 layers" in oci.check_config(config(), 2).refusals[0]


@pytest.mark.parametrize(
    ("execution", "says"),
    [
        ({"volumes": {"/data": {}}}, "/data"),
        ({"healthcheck": {"Test": ["CMD", "true"]}}, "HEALTHCHECK"),
        ({"env": ["A=b", "LD_PRELOAD=/x.so"]}, "LD_PRELOAD"),
    ],
)
def test_what_works_differently_here_is_said(execution: dict[str, Any], says: str) -> None:
    findings = oci.check_config(config(**execution), 1)
    assert not findings.refusals
    assert says in findings.warnings[0]


def test_an_image_without_command_is_said_to_need_one() -> None:
    bare = oci.Config(architecture="amd64", os="linux", rootfs=oci.RootFilesystem(diff_ids=[A]))
    assert "every job" in oci.check_config(bare, 1).warnings[0]


def entry(digest: str, platform: str) -> oci.Descriptor:
    return descriptor(digest, oci.OCI_MANIFEST, platform=oci.parse_platform(platform))


def test_manifests_are_chosen_by_platform_and_attestations_are_left_out() -> None:
    attestation = descriptor(C, oci.OCI_MANIFEST, platform=oci.Platform(architecture="unknown", os="unknown"))
    index = oci.make_index([entry(A, "linux/amd64"), entry(B, "linux/arm64/v8"), attestation])
    assert set(oci.choose_manifests(index, None)) == {"linux/amd64", "linux/arm64"}
    assert set(oci.choose_manifests(index, ["linux/arm64", "linux/s390x"])) == {"linux/arm64"}
    assert set(oci.choose_manifests(index, None, lambda digest: digest == A)) == {"linux/amd64"}


def test_bytes_are_held_against_their_digest() -> None:
    assert oci.check_bytes(b"x", oci.digest_of(b"x"), "it") == b"x"
    with pytest.raises(oci.OciError, match="it is damaged"):
        oci.check_bytes(b"y", oci.digest_of(b"x"), "it")
