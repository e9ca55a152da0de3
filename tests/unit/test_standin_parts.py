"""The parts of the stand-in that need no packages: asking apt, unpacking, packing, and saying what is wrong."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from distributio.cli import standin
from distributio.cli.debian import Apt, Package, PackagesUnavailable, last_lines
from distributio.wire import oci

# An apt-get that knows packages once its list folder has a file, which `update` makes if the file "online" exists.
APT = """#!/bin/sh
for word in "$@"; do case "$word" in Dir::State::lists=*) lists="${word#*=}";; esac; done
case "$*" in
  *" update") echo update >> HOME/calls; [ -e HOME/online ] && echo x > "$lists/site_Packages" || echo "W: no way there" >&2;;
  *simulate*) echo simulate >> HOME/calls
    [ -e "$lists/site_Packages" ] || exit 100
    echo "Inst zeta (1:2.0 Debian:12 [amd64])"; echo "Inst alpha (1.0 Debian:12 [all]) []"; echo "Conf alpha (1.0)"
    echo "Inst dpkg (1 Debian:12)";;
  *download*) echo download >> HOME/calls
    [ -e HOME/online ] || { echo "E: Failed to fetch: 404" >&2; exit 100; }
    echo deb > alpha_1.0_all.deb; echo deb > zeta_1%3a2.0_amd64.deb;;
esac
"""


class Lab:
    """A machine with the apt-get above."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.lists = root / "system-lists"
        self.lists.mkdir()
        (root / "bin").mkdir()
        script = root / "bin" / "apt-get"
        script.write_text(APT.replace("HOME", str(root)))
        script.chmod(0o755)
        patch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
        self.said: list[str] = []

    def apt(self) -> Apt:
        return Apt(self.root / "home", self.said.append, self.lists)

    def calls(self) -> list[str]:
        path = self.root / "calls"
        return path.read_text().split() if path.exists() else []

    def goes_online(self) -> None:
        (self.root / "online").touch()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, monkeypatch)


ALPHA, ZETA = Package("alpha", "1.0"), Package("zeta", "1:2.0")


def test_the_machines_own_lists_serve_and_the_answer_is_remembered(lab: Lab) -> None:
    (lab.lists / "site_Packages").write_text("x")
    assert lab.apt().resolve(["zeta"], ["dpkg"]) == [ALPHA, ZETA]
    assert lab.apt().resolve(["zeta"], ["dpkg"]) == [ALPHA, ZETA]
    assert lab.calls() == ["simulate"]


def test_changed_lists_are_asked_again(lab: Lab) -> None:
    (lab.lists / "site_Packages").write_text("x")
    lab.apt().resolve(["zeta"], [])
    (lab.lists / "other_Packages").write_text("y")
    lab.apt().resolve(["zeta"], [])
    assert lab.calls() == ["simulate", "simulate"]


def test_without_lists_private_ones_are_fetched_once(lab: Lab) -> None:
    lab.goes_online()
    assert lab.apt().resolve(["zeta"], ["dpkg"]) == [ALPHA, ZETA]
    assert lab.apt().resolve(["zeta"], ["dpkg"]) == [ALPHA, ZETA]
    assert lab.calls() == ["simulate", "update", "simulate"]
    assert list(lab.lists.iterdir()) == []


def test_when_nothing_helps_the_error_says_what_apt_said(lab: Lab) -> None:
    with pytest.raises(PackagesUnavailable, match=r"zeta.*no way there.*sources\.list"):
        lab.apt().resolve(["zeta"], [])


def test_packages_are_downloaded_once(lab: Lab) -> None:
    lab.goes_online()
    first = lab.apt().fetch([ALPHA, ZETA])
    assert {name: path.name for name, path in first.items()} == {
        "alpha": "alpha_1.0_all.deb",
        "zeta": "zeta_1%3a2.0_amd64.deb",
    }
    assert lab.apt().fetch([ALPHA, ZETA]) == first
    assert lab.calls() == ["download"]


def test_a_failed_download_says_why(lab: Lab) -> None:
    with pytest.raises(PackagesUnavailable, match=r"404.*apt-get update"):
        lab.apt().fetch([ALPHA])


def test_lists_that_name_packages_no_longer_there_are_fetched_anew(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab.lists / "site_Packages").write_text("x")
    cache = tmp_path / "cache"
    cache.mkdir()
    built: list[dict[str, Path]] = []

    def build(files: dict[str, Path], packages: list[Package], scratch: Path, say: object) -> Path:
        built.append(files)
        (scratch / "made").mkdir()
        return scratch / "made"

    def say(line: str) -> None:
        if "404" in line:  # the download has failed: now the archive is reachable
            lab.goes_online()

    monkeypatch.setattr(standin, "_WANTED", ("zeta",))
    monkeypatch.setattr(standin, "_build", build)
    kept, was_cached = standin._have(lab.apt(), cache, say)
    assert (kept.is_dir(), was_cached) == (True, False)
    assert [sorted(files) for files in built] == [["alpha", "zeta"]]
    assert lab.calls() == ["simulate", "download", "update", "simulate", "download"]


def test_what_a_program_complained_of_is_its_last_lines() -> None:
    assert last_lines("one\n\n two \nthree.\n") == "two / three"
    assert last_lines("") == "it did not say why"


def test_a_machine_without_apt_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(standin.StandinError, match="docker save python:alpine"):
        standin.build_standin(tmp_path / "cache", tmp_path / "out.tar", lambda line: None)


def test_other_versions_are_another_image() -> None:
    assert standin._key([ALPHA, ZETA]) == standin._key([ALPHA, ZETA])
    assert standin._key([ALPHA, ZETA]) != standin._key([ALPHA, Package("zeta", "1:2.1")])


def furnish(folder: Path, mask: int) -> Path:
    before = os.umask(mask)
    try:
        folder.mkdir()
        standin._furnish(folder)
        (folder / "bin/busybox").write_bytes(b"program")
        (folder / "bin/busybox").chmod(0o4755)
    finally:
        os.umask(before)
    return folder


def test_layers_depend_neither_on_the_umask_nor_on_times(tmp_path: Path) -> None:
    one = standin._pack(furnish(tmp_path / "one", 0o022), "x")
    two_folder = furnish(tmp_path / "two", 0o077)
    os.utime(two_folder / "bin/busybox", (1, 1))
    assert one == standin._pack(two_folder, "x")


def test_a_layer_has_what_a_root_file_system_needs(tmp_path: Path) -> None:
    packed = standin._pack(furnish(tmp_path / "root", 0o022), "x")
    with tarfile.open(fileobj=io.BytesIO(packed.data)) as archive:
        members = {member.name: member for member in archive}
    assert list(members) == sorted(members, key=lambda name: name.split("/"))
    assert members["tmp"].mode == 0o1777
    assert members["root/shared/results"].isdir()
    assert members["bin/sh"].linkname == "busybox"
    assert members["bin/busybox"].mode == 0o755
    assert all((member.uid, member.gid, member.uname) == (0, 0, "") for member in members.values())


def test_the_archive_is_for_every_engine_and_says_it_is_a_stand_in(tmp_path: Path) -> None:
    layer = standin._pack(furnish(tmp_path / "root", 0o022), "x")
    data, told = standin._assemble([layer], oci.parse_platform("amd64"))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        files = {m.name: file.read() for m in archive if (file := archive.extractfile(m))}
    index = oci.parse_document(files["index.json"])
    assert isinstance(index, oci.Index)
    assert index.manifests[0].digest == told["manifest_digest"]
    saved = oci.parse_saved(files["manifest.json"])[0]
    assert saved.repo_tags == ["python:alpine"]
    config = oci.parse_config(files[saved.config])
    assert config.rootfs.diff_ids == [layer.diff_id]
    assert json.loads(files[saved.config])["config"]["Labels"][standin.STANDIN_LABEL] == told["reference"]
    for name, content in files.items():
        if name.startswith("blobs/"):
            assert oci.digest_of(content) == name.removeprefix("blobs/").replace("/", ":")


def member(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    return info


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x"])
def test_a_package_cannot_write_outside_its_folder(tmp_path: Path, name: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(), mode="w") as archive, pytest.raises(standin.StandinError):
        standin._unpack_member(archive, member(name, tarfile.DIRTYPE), tmp_path)
