"""What a validator is given, and what it answers.

A validator is two plain functions: `check(output) -> Verdict` looks at one output alone, `agree(a, b) -> Agreement` at two. It
never sees hosts, users or jobs: whose output it is cannot matter to whether it is right.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO, Self

from msgspec import Struct

MOST_READ = 256 << 20  # of a file that is read whole
MOST_WORDS = 2_000  # of what a validator says


class Unreadable(ValueError):
    """This file is not what its name promises, or is more than can be looked at; the message says where and why."""


class Verdict(Struct, frozen=True):
    """Whether an output can be right at all, looked at alone. The words say why not."""

    good: bool
    words: str = ""

    @classmethod
    def accept(cls, words: str = "") -> Self:
        """It can."""
        return cls(True, words)

    @classmethod
    def refuse(cls, words: str) -> Self:
        """It cannot, and why."""
        return cls(False, words)


class Agreement(Struct, frozen=True):
    """Whether two outputs say the same. The words say what differs, where, and by how much; or how near they are."""

    agrees: bool
    words: str = ""

    @classmethod
    def yes(cls, words: str = "") -> Self:
        """They agree."""
        return cls(True, words)

    @classmethod
    def no(cls, words: str) -> Self:
        """They do not, and why."""
        return cls(False, words)


class Output:
    """What one copy of a job left in its results folder: files by name, with slashes for folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = tuple(sorted(_files(folder, "")))

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def path(self, name: str) -> Path:
        """The file, for reading."""
        return self.folder / name

    def size(self, name: str) -> int:
        """Size in bytes."""
        return self.path(name).stat().st_size

    def open(self, name: str) -> BinaryIO:
        """Read the file's bytes as a stream."""
        return self.path(name).open("rb")

    def read(self, name: str, most: int = MOST_READ) -> bytes:
        """All of the file's bytes. Raises Unreadable if there are more than `most`."""
        with self.open(name) as stream:
            data = stream.read(most + 1)
        if len(data) > most:
            raise Unreadable(f"{name}: larger than the {most} bytes that can be looked at")
        return data

    def text(self, name: str, most: int = MOST_READ) -> str:
        """The file's text. Raises Unreadable if it is not UTF-8, or too large."""
        try:
            return self.read(name, most).decode()
        except UnicodeDecodeError as error:
            raise Unreadable(f"{name}: not text in UTF-8 at byte {error.start}") from None


def _files(folder: Path, prefix: str) -> list[str]:
    found = []
    with os.scandir(folder / prefix) as entries:
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                found += _files(folder, f"{prefix}{entry.name}/")
            elif stat.S_ISREG(mode):
                found.append(f"{prefix}{entry.name}")
    return found
