"""How to have a `python:alpine` on a machine that cannot reach a registry.

Debian's own Python and busybox are put together as an image of that name: apt resolves and verifies the packages, their
files are unpacked side by side into two folders, and each folder becomes a layer. Nothing is installed, no maintainer
script runs, no engine and no root rights are needed. The file is an OCI image layout and a docker archive at once, so
every engine and every site takes it. The same packages give the same bytes.

For trying things out: the image says in its labels that it is a stand-in, and licence texts are left out of it.
"""

import concurrent.futures
import fcntl
import gzip
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

from distributio.cli.debian import Apt, Package, PackagesUnavailable, last_lines
from distributio.wire import oci

NAME = "python:alpine"
STANDIN_LABEL = "io.distribut.stand-in-for"


def _words(text: str) -> list[str]:
    return text.split()


_RECIPE = "1"  # part of the cache's key: raise it when other bytes come out of the same packages
_MOMENT = 1_700_000_000  # every time stamp in the image
_CREATED = "2023-11-14T22:13:20Z"

_WANTED = ("busybox-static", "libpython3-stdlib", "python3-minimal")
_BASE = ("busybox-static", "libc6", "libcrypt1", "libgcc-s1")  # what other images could share
# What the above depend on for the sake of Debian's own scripts, or of modules that are left out.
_LEFT_OUT = _words(
    "debconf dpkg gcc-*-base libacl1 libcom-err2 libdb5.* libgssapi-krb5-2 libk5crypto3 libkeyutils1 libkrb5-3"
    " libkrb5support0 libmd0 libnsl2 libpcre2-8-0 libselinux1 libtirpc-common libtirpc3* libzstd1 netbase"
    " readline-common tar tzdata"
)

_UNWANTED_FOLDERS = _words(
    "etc/ld.so.conf.d etc/python3* usr/lib/*/audit usr/lib/*/gconv lib/*/audit lib/*/gconv usr/share/apport"
    " usr/share/binfmts usr/share/bug usr/share/debhelper usr/share/doc usr/share/doc-base usr/share/gcc"
    " usr/share/info usr/share/lintian usr/share/locale usr/share/man usr/share/python3"
)
_UNWANTED_MODULES = _words("distutils ensurepip idlelib lib2to3 pydoc_data test turtledemo config-*")
_UNWANTED_EXTENSIONS = _words("_ctypes_test _dbm _gdbm _test* _tkinter _xx* nis xxlimited*")

_COMMANDS = _words(
    "[ ash awk base64 basename bunzip2 bzcat bzip2 cat chgrp chmod chown clear cmp cp cut date dd df diff"
    " dirname du echo egrep env expand expr factor false fgrep find fold free getopt grep groups gunzip gzip head"
    " hostname id kill less link ln ls md5sum mkdir mkfifo mktemp more mv nl nproc od paste patch"
    " pidof printf ps pwd readlink realpath rev rm rmdir sed seq setsid sh sha1sum sha256sum"
    " sha512sum shred shuf sleep sort stat strings sync tac tail tar tee test time timeout top touch tr true"
    " truncate tty uname unexpand uniq unlink unxz unzip uptime vi watch wc wget which whoami xargs xxd xz"
    " xzcat yes zcat"
)
_FOLDERS = _words(
    "bin dev etc home lib mnt opt proc root/shared/results run sbin srv sys tmp usr/local/bin usr/local/lib var/log"
    " var/tmp"
)
_SETTINGS = {
    "etc/group": "root:x:0:\nusers:x:100:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/os-release": 'ID=debian\nNAME="Stand-in for python:alpine, from Debian packages"\n',
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
}
_MODES = {"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}
_ENVIRONMENT = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]


class StandinError(Exception):
    """The stand-in could not be built; the message says why and what to do."""


class Standin(Struct, frozen=True, kw_only=True):
    """The image that was built."""

    path: Path  # the archive
    reference: str  # its full name
    manifest_digest: str
    image_id: str  # what engines call it: the digest of its config
    platform: str
    size_bytes: int
    packages: dict[str, str]  # name to version
    was_cached: bool


class _Packed(Struct, frozen=True):
    """A layer: its compressed bytes, and the digest of the tar inside."""

    data: bytes
    diff_id: str
    history: str


def build_standin(cache: Path, out: Path, say: Callable[[str], None]) -> Standin:
    """Write the archive to `out`. `cache` keeps what was built and may be deleted; `say` hears the steps."""
    for program in ("apt-get", "dpkg", "dpkg-deb"):
        if shutil.which(program) is None:
            advice = "On another system, save a real image there instead: docker save python:alpine -o FILE."
            raise StandinError(f"{program} was not found; the stand-in is made of Debian packages. {advice}")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever asks at the same time waits, and finds it made
        kept, was_cached = _have(Apt(cache / "apt", say), cache, say)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.copyfile(kept / "image.tar", unfinished)
    os.replace(unfinished, out)
    told = json.loads((kept / "image.json").read_bytes())
    say(f"{NAME} stand-in {'taken from the cache' if was_cached else 'built'}: {out.stat().st_size / 1e6:.1f} MB")
    return Standin(path=out, size_bytes=out.stat().st_size, was_cached=was_cached, **told)


def _have(apt: Apt, cache: Path, say: Callable[[str], None]) -> tuple[Path, bool]:
    """The folder with the image made of today's packages, and whether it was there before."""
    try:
        packages = apt.resolve(_WANTED, _LEFT_OUT)
        kept = _place(cache, packages)
        if (kept / "image.json").exists():
            return kept, True
        try:
            files = apt.fetch(packages)
        except PackagesUnavailable as problem:
            # Lists that were fetched long ago name packages that are no longer there.
            say(str(problem))
            apt.update()
            packages = apt.resolve(_WANTED, _LEFT_OUT)
            kept = _place(cache, packages)
            files = apt.fetch(packages)
    except PackagesUnavailable as problem:
        raise StandinError(str(problem)) from problem
    with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as scratch:
        made = _build(files, packages, Path(scratch), say)
        shutil.rmtree(kept, ignore_errors=True)
        os.replace(made, kept)
    return kept, False


def _place(cache: Path, packages: list[Package]) -> Path:
    return cache / f"standin-{_key(packages)}"


def _key(packages: list[Package]) -> str:
    text = "\n".join([_RECIPE, *(p.word for p in packages)])
    return oci.digest_of(text.encode()).removeprefix("sha256:")[:16]


# --- folders ----------------------------------------------------------------------------------------------------


def _build(files: dict[str, Path], packages: list[Package], scratch: Path, say: Callable[[str], None]) -> Path:
    say("unpacking")
    base, python = scratch / "base", scratch / "python"
    for folder in (base, python):
        folder.mkdir()
    for name, file in files.items():
        _unpack(file, base if name in _BASE else python)
    version = next(path.name for path in (python / "usr/lib").glob("python3.*"))
    _strip(base)
    _strip(python)
    _furnish(base)
    for name in ("python", "python3"):
        _link(python / "usr/local/bin" / name, f"/usr/bin/{version}")
    say("compiling the standard library")
    _compile(base, python, version)
    say("packing")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        layers = list(pool.map(_pack, (base, python), ("Debian libc6 and busybox-static", f"Debian {version}")))
    image, told = _assemble(layers, _platform())
    result = scratch / "kept"
    result.mkdir()
    (result / "image.tar").write_bytes(image)
    (result / "image.json").write_text(json.dumps({**told, "packages": {p.name: p.version for p in packages}}))
    return result


def _unpack(package: Path, folder: Path) -> None:
    """The package's files, owned by whoever we are. (`dpkg-deb --extract` fails where owners cannot be set.)"""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as process:
        if process.stdout is None:
            raise StandinError("dpkg-deb could not be started")
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                _unpack_member(archive, member, folder)
    if process.returncode:
        raise StandinError(f"{package} is damaged: dpkg-deb ended with {process.returncode}. Delete it and try again.")


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    name = os.path.normpath(member.name)
    if name.startswith(("/", "..")):
        raise StandinError(f"a package holds {member.name!r}, which leads out of it; it is not used")
    target = folder / name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        _link(target, member.linkname)
    elif member.islnk():
        shutil.copy(folder / os.path.normpath(member.linkname), target)
    elif content := archive.extractfile(member):
        with target.open("wb") as file:
            shutil.copyfileobj(content, file)
        target.chmod(0o755 if member.mode & 0o111 else 0o644)


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def _strip(folder: Path) -> None:
    """Drop what a job does not need."""
    for pattern in _UNWANTED_FOLDERS:
        for path in folder.glob(pattern):
            shutil.rmtree(path)
    for path in folder.glob("usr/bin/py3*"):  # Debian's own tools
        path.unlink()
    for library in folder.glob("usr/lib/python3.*"):
        (library / "sitecustomize.py").unlink(missing_ok=True)  # a link to a setting that is left out, too
        for pattern in _UNWANTED_MODULES:
            for path in library.glob(pattern):
                shutil.rmtree(path)
        for pattern in _UNWANTED_EXTENSIONS:
            for path in library.glob(f"lib-dynload/{pattern}.*"):
                path.unlink()


def _furnish(folder: Path) -> None:
    """What a root file system needs besides packages."""
    for name in _FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, text in _SETTINGS.items():
        (folder / name).write_text(text)
    for name in _COMMANDS:
        path = folder / "bin" / name
        if not path.exists():
            _link(path, "busybox")


def _compile(base: Path, python: Path, version: str) -> None:
    """Byte-compile the library with the packaged interpreter; a container with a read-only root cannot do it later."""
    loaders = [path for path in base.glob("lib*/**/ld-linux*.so.*") if path.is_file() and not path.is_symlink()]
    if not loaders:
        raise StandinError(
            "the libc6 package holds no loader where it is expected; this system's packages are not known"
        )
    folders = {str(path.parent) for tree in (base, python) for path in tree.glob("**/*.so.*")}
    interpreter = [str(loaders[0]), "--library-path", ":".join(sorted(folders)), str(python / "usr/bin" / version)]
    task = ["-S", "-m", "compileall", "-qq", "--invalidation-mode", "unchecked-hash", "-s", str(python), "-p", "/"]
    # The hash seed and the compiler's own cache would both show in the compiled files.
    environment = {"PYTHONHOME": str(python / "usr"), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*interpreter, *task, str(python / "usr/lib" / version)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StandinError(f"the packaged interpreter does not run on this machine: {last_lines(done.stderr)}")


def _platform() -> oci.Platform:
    done = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
    return oci.parse_platform(oci.parse_platform(done.stdout.strip()).name)


# --- the image --------------------------------------------------------------------------------------------------


def _pack(folder: Path, history: str) -> _Packed:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in _walk(folder):
            _add(archive, path, path.relative_to(folder).as_posix())
    raw = tar.getvalue()
    return _Packed(gzip.compress(raw, 6, mtime=0), oci.digest_of(raw), history)


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    """Add it as root's, with a fixed time, and a mode that depends neither on the umask nor on set-user-id bits."""
    member = tarfile.TarInfo(name)
    member.mtime = _MOMENT
    kind = path.lstat()
    if stat.S_ISLNK(kind.st_mode):
        member.type, member.mode, member.linkname = tarfile.SYMTYPE, 0o777, os.readlink(path)
        archive.addfile(member)
        return
    if stat.S_ISDIR(kind.st_mode):
        member.type, member.mode = tarfile.DIRTYPE, _MODES.get(name, 0o755)
        archive.addfile(member)
        return
    member.size, member.mode = kind.st_size, 0o755 if kind.st_mode & 0o100 else 0o644
    with path.open("rb") as content:
        archive.addfile(member, content)


def _assemble(layers: list[_Packed], platform: oci.Platform) -> tuple[bytes, dict[str, str]]:
    reference = str(oci.parse_reference(NAME))
    config = oci.Config(
        architecture=platform.architecture,
        os=platform.os,
        variant=platform.variant,
        created=_CREATED,
        config=oci.Execution(
            env=_ENVIRONMENT,
            cmd=["python3"],
            working_dir="/",
            labels={
                STANDIN_LABEL: reference,
                "org.opencontainers.image.description": "Built from Debian packages in place of python:alpine",
            },
        ),
        rootfs=oci.RootFilesystem(diff_ids=[layer.diff_id for layer in layers]),
        history=[{"created": _CREATED, "created_by": layer.history} for layer in layers],
    )
    config_bytes = oci.encode(config)
    config_part = oci.describe(config_bytes, oci.OCI_CONFIG)
    layer_parts = [oci.describe(layer.data, oci.OCI_LAYER_GZIP) for layer in layers]
    manifest_bytes = oci.encode(oci.make_manifest(config_part, layer_parts))
    names = {oci.IMAGE_NAME: reference, oci.REF_NAME: reference}
    manifest_part = oci.describe(manifest_bytes, oci.OCI_MANIFEST, platform=config.platform, annotations=names)
    for_docker = {
        "Config": _blob_path(config_part),
        "RepoTags": [NAME],
        "Layers": [_blob_path(part) for part in layer_parts],
    }
    files = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": oci.encode(oci.make_index([manifest_part])),
        "manifest.json": json.dumps([for_docker]).encode(),
        _blob_path(manifest_part): manifest_bytes,
        _blob_path(config_part): config_bytes,
        **{_blob_path(part): layer.data for part, layer in zip(layer_parts, layers, strict=True)},
    }
    told = {
        "reference": reference,
        "manifest_digest": manifest_part.digest,
        "image_id": config_part.digest,
        "platform": config.platform.name,
    }
    return _archive(files), told


def _blob_path(part: oci.Descriptor) -> str:
    return "blobs/" + part.digest.replace(":", "/")


def _archive(files: dict[str, bytes]) -> bytes:
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), _MOMENT
            archive.addfile(member, io.BytesIO(data))
    return result.getvalue()


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main(arguments: list[str]) -> int:
    """For use by hand: python -m distributio.cli.standin OUT [CACHE]."""
    if len(arguments) not in (1, 2):
        sys.stderr.write("usage: python -m distributio.cli.standin OUT [CACHE]\n")
        return 2
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = Path(arguments[1]) if len(arguments) == 2 else home / "distributio"
    try:
        standin = build_standin(cache, Path(arguments[0]), _tell)
    except StandinError as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    sys.stdout.write(f"{standin.reference} {standin.manifest_digest} {standin.path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
