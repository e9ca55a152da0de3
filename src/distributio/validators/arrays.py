"""What stands in a NumPy file, read without NumPy and without pickle, and whether two of them hold near enough numbers."""

import ast
import io
import math
import struct
import sys
import zipfile
from typing import BinaryIO

from msgspec import Struct

from distributio.validators.numbers import Differs, Tally
from distributio.validators.verdicts import Output, Unreadable

MAGIC = b"\x93NUMPY"
_MOST_HEADER = 1 << 16
_MOST_MEMBERS = 10_000
_MOST_UNPACKED = 4 << 30
_CHUNK = 1 << 13  # elements
# dtype without byte order to struct's code and how many of them make an element
_TYPES: dict[str, tuple[str, int]] = {
    "f2": ("e", 1), "f4": ("f", 1), "f8": ("d", 1), "c8": ("f", 2), "c16": ("d", 2), "b1": ("?", 1),
    "i1": ("b", 1), "i2": ("h", 1), "i4": ("i", 1), "i8": ("q", 1),
    "u1": ("B", 1), "u2": ("H", 1), "u4": ("I", 1), "u8": ("Q", 1),
}  # fmt: skip


class Array(Struct, frozen=True, kw_only=True):
    """An array's header: what the bytes after it mean."""

    dtype: str
    shape: tuple[int, ...]
    by_columns: bool

    @property
    def count(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    @property
    def unit(self) -> struct.Struct:
        """One element."""
        code, parts = _TYPES[self.dtype[1:]]
        return struct.Struct(("<" if self.dtype[0] in "<|" else ">") + code * parts)

    def place(self, index: int) -> str:
        """An element's place, as NumPy writes it."""
        places = []
        for size in self.shape if self.by_columns else reversed(self.shape):
            places.append(index % size)
            index //= size
        return str(places if self.by_columns else places[::-1])


def read_header(stream: BinaryIO, name: str) -> Array:
    """Read the header of a .npy stream. Raises Unreadable: for pickled objects, too, which are never loaded."""
    start = stream.read(8)
    if start[:6] != MAGIC or len(start) < 8:
        raise Unreadable(f"{name}: not a NumPy file")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if start[6] not in (1, 2, 3) or length > _MOST_HEADER:
        raise Unreadable(f"{name}: a NumPy header of version {start[6]} and {length} bytes")
    try:
        said = ast.literal_eval(stream.read(length).decode("utf-8").strip())
        array = Array(dtype=said["descr"], shape=tuple(said["shape"]), by_columns=said["fortran_order"])
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise Unreadable(f"{name}: its NumPy header is damaged: {error}"[:300]) from None
    dtype = array.dtype
    if not isinstance(dtype, str) or dtype[:1] not in ("<", ">", "|", "=") or dtype[1:] not in _TYPES:
        raise Unreadable(f"{name}: its elements are {str(dtype)[:80]!r}; numbers and truth values can be compared")
    if not all(isinstance(size, int) and 0 <= size < 1 << 48 for size in array.shape) or len(array.shape) > 32:
        raise Unreadable(f"{name}: its shape is {str(array.shape)[:80]}")
    if dtype[0] == "=":
        array = Array(
            dtype=("<" if sys.byteorder == "little" else ">") + dtype[1:],
            shape=array.shape,
            by_columns=array.by_columns,
        )
    return array


def header_of(data: bytes) -> Array:
    """The header of an array in memory. Raises Unreadable."""
    return read_header(io.BytesIO(data), "array")


def check(stream: BinaryIO, name: str) -> None:
    """Raises Unreadable unless it is a whole array."""
    array = read_header(stream, name)
    want, got = array.count * array.unit.size, 0
    while part := stream.read(1 << 20):
        got += len(part)
    if got != want:
        raise Unreadable(f"{name}: {got} bytes of elements, its header says {want}")


def compare(a: BinaryIO, b: BinaryIO, name: str, tally: Tally) -> None:
    """Compare two arrays element by element. Raises Differs, Unreadable."""
    one, other = read_header(a, name), read_header(b, name)
    if one.shape != other.shape:
        raise Differs(f"{name}: the shapes are {one.shape} and {other.shape}")
    if one.by_columns != other.by_columns and len(one.shape) > 1:
        raise Differs(f"{name}: one is stored by rows, the other by columns")
    same_bytes = one.dtype == other.dtype
    index = 0
    while index < one.count:
        count = min(_CHUNK, one.count - index)
        left, right = a.read(count * one.unit.size), b.read(count * other.unit.size)
        if len(left) < count * one.unit.size or len(right) < count * other.unit.size:
            raise Unreadable(f"{name}: ends before its last element")
        if same_bytes and left == right:
            tally.same(count)
        else:
            for offset, (x, y) in enumerate(
                zip(one.unit.iter_unpack(left), other.unit.iter_unpack(right), strict=True)
            ):
                tally.compare(_value(x), _value(y), f"{name}{one.place(index + offset)}")
        index += count
    if a.read(1) or b.read(1):
        raise Unreadable(f"{name}: something follows the last element")


def _value(parts: tuple[float, ...]) -> complex:
    return parts[0] if len(parts) == 1 else complex(*parts)


# --- several in one file ------------------------------------------------------------------------------------------


def _archive(output: Output, name: str) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(output.path(name))
        members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise Unreadable(f"{name}: not a NumPy archive: {error}") from None
    if len(members) > _MOST_MEMBERS or sum(member.file_size for member in members) > _MOST_UNPACKED:
        archive.close()
        raise Unreadable(f"{name}: unpacks to more than can be looked at")
    return archive


def check_archive(output: Output, name: str) -> None:
    """Raises Unreadable unless every array of a .npz file is whole."""
    with _archive(output, name) as archive:
        for member in archive.namelist():
            try:
                with archive.open(member) as stream:
                    check(stream, f"{name}[{member}]")  # type: ignore[arg-type]  # IO[bytes] that reads is enough
            except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
                raise Unreadable(f"{name}[{member}]: {error}") from None


def compare_archives(a: Output, b: Output, name: str, tally: Tally) -> None:
    """Compare the arrays of two .npz files by their names. Raises Differs, Unreadable."""
    with _archive(a, name) as one, _archive(b, name) as other:
        if sorted(one.namelist()) != sorted(other.namelist()):
            raise Differs(f"{name}: holds {', '.join(one.namelist())[:200]} and {', '.join(other.namelist())[:200]}")
        for member in sorted(one.namelist()):
            try:
                with one.open(member) as left, other.open(member) as right:
                    compare(left, right, f"{name}[{member}]", tally)  # type: ignore[arg-type]  # see above
            except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
                raise Unreadable(f"{name}[{member}]: {error}") from None
