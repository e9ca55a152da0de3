"""What a docker or podman on this machine holds, and how its images are read as a stream."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from msgspec import Struct

from distributio.cli.exits import ExitCode, Stop

ENGINES = ("podman", "docker")

_PIECE_BYTES = 1 << 20
_ASK_SECONDS = 20


class LocalImage(Struct, frozen=True):
    """An image a local engine holds."""

    engine: str
    reference: str
    size_bytes: int


def find(reference: str, engines: tuple[str, ...] = ENGINES) -> LocalImage | None:
    """The first local engine that holds this image."""
    for engine in engines:
        if shutil.which(engine) is None:
            continue
        size = _size_of(engine, reference)
        if size is not None:
            return LocalImage(engine, reference, size)
    return None


def must_find_somewhere(reference: str) -> LocalImage:
    """The image in any local engine, or why not."""
    image = find(reference)
    if image is None:
        raise Stop(f"Neither a podman nor a docker here holds {reference}. `podman images` lists what it holds.")
    return image


def must_find(reference: str, engine: str) -> LocalImage:
    """The image in this engine, or why not."""
    if engine not in ENGINES:
        raise Stop(f"--from {engine}: choose one of {', '.join(ENGINES)}.")
    if shutil.which(engine) is None:
        raise Stop(f"There is no {engine} here. Import an archive instead: `distributio image import FILE.tar`.")
    image = find(reference, (engine,))
    if image is None:
        raise Stop(f"The local {engine} holds no image {reference}. `{engine} images` lists what it holds.")
    return image


@contextmanager
def saved(image: LocalImage) -> Iterator[Iterator[bytes]]:
    """The image as the engine's `save` writes it, piece by piece."""
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen([image.engine, "save", image.reference], stdout=subprocess.PIPE, stderr=words)
        stream = process.stdout
        assert stream is not None
        try:
            yield _pieces(image, process, stream, words)
        finally:
            stream.close()
            process.kill()
            process.wait()


def _pieces(
    image: LocalImage, process: subprocess.Popen[bytes], stream: IO[bytes], words: IO[bytes]
) -> Iterator[bytes]:
    """What the engine writes. A save that fails breaks the stream off, so that nobody takes it for whole."""
    while piece := stream.read(_PIECE_BYTES):
        yield piece
    if process.wait() != 0:
        words.seek(0)
        reason = words.read().decode(errors="replace").strip() or f"exit code {process.returncode}"
        raise Stop(f"`{image.engine} save {image.reference}` failed: {reason}.", ExitCode.REFUSED)


def _size_of(engine: str, reference: str) -> int | None:
    try:
        answer = subprocess.run(
            [engine, "image", "inspect", reference], capture_output=True, timeout=_ASK_SECONDS, check=False
        )
        if answer.returncode != 0:
            return None
        return int(json.loads(answer.stdout)[0]["Size"])
    except (OSError, subprocess.TimeoutExpired, ValueError, LookupError, TypeError):
        return None  # an engine that does not answer holds nothing for us
