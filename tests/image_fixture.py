"""A real image for tests: `python:alpine`, as the product itself makes it out of Debian packages, unpacked as a layout."""

import os
import shutil
import tarfile
from pathlib import Path

from distributio.agent.runners.contract import Image
from distributio.cli.standin import Standin, build_standin


def standin_archive(folder: Path) -> Standin:
    """The image as an archive in a folder. What was built once on this machine is used again."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return build_standin(home / "distributio" / "standin", folder / "python-alpine.tar", lambda line: None)


def unpack_layout(archive: Path, layout: Path) -> None:
    """Put an archive's blobs into a layout folder."""
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is not None:
                target = layout / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as out:
                    shutil.copyfileobj(content, out)


def python_image_layout(folder: Path) -> Image:
    """The image as a layout folder that a runner can prepare."""
    folder.mkdir(parents=True, exist_ok=True)
    standin = standin_archive(folder)
    layout = folder / "layout"
    unpack_layout(standin.path, layout)
    standin.path.unlink()
    return Image(manifest_digest=standin.manifest_digest, layout=layout)
