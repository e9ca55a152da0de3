"""How inputs get into a container that has been created but not started: as one tar stream to the engine's `cp`."""

import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, Any

from distributio.wire.tar_blocks import name_fault


def write_tar(inputs: list[dict[str, Any]], stream: IO[bytes], opened: str = "") -> None:
    """Write files and folders under their places inside the container. A folder's tar is re-written member by member:
    files and folders only, owner root, times 0; what else is in it is left out. `opened` is a folder that any user in
    the container shall be able to reach and write, although it lies in the home of root."""
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as out:
        if opened:
            for outer in reversed(PurePosixPath(opened).parents[:-1]):
                out.addfile(_directory(str(outer.relative_to("/"))))
            last = _directory(str(PurePosixPath(opened).relative_to("/")))
            last.mode = 0o1777
            out.addfile(last)
        for one in inputs:
            place = str(PurePosixPath(one["path"]).relative_to(one["below"]))
            if one["folder"]:
                _add_folder(out, place, Path(one["source"]))
            else:
                with open(one["source"], "rb") as file:
                    status = os.fstat(file.fileno())
                    out.addfile(_member(place, status.st_size, executable=bool(status.st_mode & 0o111)), file)


def _add_folder(out: tarfile.TarFile, place: str, source: Path) -> None:
    """Add what is in a folder's tar below a place."""
    if place != ".":
        out.addfile(_directory(place))
    with tarfile.open(source, mode="r:") as packed:
        for member in packed:
            name = member.name.removeprefix("./").rstrip("/")
            if not name or name == "." or name_fault(name):
                continue
            if member.isdir():
                out.addfile(_directory(str(PurePosixPath(place, name))))
            elif member.isreg():
                file = packed.extractfile(member)
                out.addfile(
                    _member(str(PurePosixPath(place, name)), member.size, executable=bool(member.mode & 0o111)), file
                )


def _member(name: str, size: int, *, executable: bool) -> tarfile.TarInfo:
    """The header of a file that everybody in the container can read."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o755 if executable else 0o644
    return info


def _directory(name: str) -> tarfile.TarInfo:
    """The header of a folder that everybody in the container can read."""
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info
