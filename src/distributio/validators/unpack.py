"""How a results tar becomes a folder of files that a validator can read: written by us, member by member, from the canonical form
and nothing else."""

from pathlib import Path
from typing import BinaryIO

from distributio.wire.results_tar import CHUNK, Bounds, verify


def unpack(source: BinaryIO, folder: Path, bounds: Bounds) -> None:
    """Write the files of a results tar below a new folder. `source` can be sought in. Raises BadResults."""
    summary = verify(source, bounds)
    _make(folder)
    for member in summary.members:
        # The names are safe: `verify` accepts relative ones without `..` or links, each folder before what is in it.
        target = folder / member.name
        if member.name.endswith("/"):
            _make(target)
            continue
        source.seek(member.offset)
        left = member.size_bytes
        with target.open("xb") as file:
            while left:
                part = source.read(min(CHUNK, left))
                file.write(part)
                left -= len(part)
        target.chmod(0o644)


def _make(folder: Path) -> None:
    folder.mkdir()
    # The one who reads may be nobody, whatever this process's umask is.
    folder.chmod(0o755)
