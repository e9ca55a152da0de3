"""How a folder becomes bytes with a digest that depends on nothing but names and contents."""

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from msgspec import Struct

from distributio.sdk.errors import TransferError

_PIECE_BYTES = 1 << 20


class Content(Struct, frozen=True, kw_only=True):
    """Bytes on this machine, known by their digest."""

    path: Path
    digest: str
    size_bytes: int


def digest_file(path: Path) -> Content:
    """Read a file once and return what it is."""
    hasher = hashlib.sha256()
    size = 0
    with path.open("rb") as source:
        while piece := source.read(_PIECE_BYTES):
            hasher.update(piece)
            size += len(piece)
    return Content(path=path, digest=f"sha256:{hasher.hexdigest()}", size_bytes=size)


def pack_folder(folder: Path, output: IO[bytes]) -> None:
    """Write a folder as a tar: entries sorted, owners and times fixed, so that equal folders are equal bytes. Symbolic
    links stay links; what is neither file, folder nor link is refused."""
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in _walk(folder):
            _add(archive, path, path.relative_to(folder).as_posix())


def _walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda item: item.name):
        path = Path(entry.path)
        yield path
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(path)


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    about = path.lstat()
    member = tarfile.TarInfo(name)
    executable = bool(about.st_mode & 0o111)
    member.mode = 0o755 if executable else 0o644
    if stat.S_ISLNK(about.st_mode):
        member.type = tarfile.SYMTYPE
        member.linkname = os.readlink(path)
        archive.addfile(member)
    elif stat.S_ISDIR(about.st_mode):
        member.type = tarfile.DIRTYPE
        member.mode = 0o755
        archive.addfile(member)
    elif stat.S_ISREG(about.st_mode):
        member.size = about.st_size
        with path.open("rb") as source:
            archive.addfile(member, source)
    else:
        raise TransferError(f"{path} is neither a file, a folder nor a link, and cannot be sent. Leave it out.")
