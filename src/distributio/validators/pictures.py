"""What a PNG or PPM picture shows, decoded within bounds, and how alike two pictures are."""

import struct
import zlib
from collections.abc import Iterator

from msgspec import Struct

from distributio.validators.verdicts import Unreadable

PNG = b"\x89PNG\r\n\x1a\n"
MOST_PIXELS = 32 << 20
BLOCK = 16
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


class Picture(Struct, frozen=True):
    """Rows of 8-bit samples, `channels` of them to a pixel."""

    width: int
    height: int
    channels: int
    rows: list[bytes]


class Likeness(Struct, frozen=True):
    """How alike two pictures are: 1 is the same. `worst` is that of the block that differs most, `place` its corner."""

    whole: float
    worst: float
    place: tuple[int, int]


def is_picture(start: bytes) -> bool:
    """Whether a file that begins so can be decoded here."""
    return start.startswith(PNG) or start[:2] in (b"P5", b"P6")


def decode(data: bytes, name: str) -> Picture:
    """Decode a picture. Raises Unreadable."""
    try:
        return _png(data, name) if data.startswith(PNG) else _ppm(data, name)
    except (struct.error, zlib.error, IndexError) as error:
        raise Unreadable(f"{name}: a damaged picture: {error}") from None


def likeness(a: Picture, b: Picture) -> Likeness:
    """Compare two pictures of the same size: the mean difference of their samples, over all and in the worst block."""
    total, worst, place = 0, 0.0, (0, 0)
    width = BLOCK * a.channels
    columns = -(-a.width // BLOCK)
    for top in range(0, a.height, BLOCK):
        sums = [0] * columns
        rows = range(top, min(top + BLOCK, a.height))
        for y in rows:
            one, other = a.rows[y], b.rows[y]
            if one == other:
                continue
            for column in range(columns):
                left, right = one[column * width : (column + 1) * width], other[column * width : (column + 1) * width]
                if left != right:
                    sums[column] += sum(abs(x - z) for x, z in zip(left, right, strict=True))
        for column, apart in enumerate(sums):
            total += apart
            samples = len(rows) * min(width, a.width * a.channels - column * width)
            if apart / samples > worst:
                worst, place = apart / samples, (column * BLOCK, top)
    samples = a.width * a.height * a.channels
    return Likeness(1 - total / samples / 255, 1 - worst / 255, place)


# --- PPM and PGM --------------------------------------------------------------------------------------------------


def _ppm(data: bytes, name: str) -> Picture:
    words: list[int] = []
    place = 2
    while len(words) < 3:
        while data[place : place + 1].isspace():
            place += 1
        if data[place : place + 1] == b"#":
            place = data.index(b"\n", place) if b"\n" in data[place:] else len(data)
            continue
        end = place
        while data[end : end + 1].isdigit():
            end += 1
        if end == place or end - place > 9:
            raise Unreadable(f"{name}: a damaged picture: its header has no size")
        words.append(int(data[place:end]))
        place = end
    width, height, most = words
    channels = 3 if data[:2] == b"P6" else 1
    if most != 255:
        raise Unreadable(f"{name}: samples up to {most}; 255 can be compared")
    _bounded(width, height, name)
    stride = width * channels
    pixels = data[place + 1 :]
    if len(pixels) != stride * height:
        raise Unreadable(f"{name}: {len(pixels)} bytes of pixels, its header says {stride * height}")
    return Picture(width, height, channels, [pixels[y * stride : (y + 1) * stride] for y in range(height)])


def _bounded(width: int, height: int, name: str) -> None:
    if not 0 < width * height <= MOST_PIXELS or width > MOST_PIXELS:
        raise Unreadable(f"{name}: {width} x {height} pixels; up to {MOST_PIXELS} can be compared")


# --- PNG ----------------------------------------------------------------------------------------------------------


def _png(data: bytes, name: str) -> Picture:
    chunks = list(_chunks(data, name))
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13 or chunks[-1][0] != b"IEND":
        raise Unreadable(f"{name}: a damaged picture: it has no proper beginning or end")
    width, height, depth, colour, packing, filtering, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    if colour not in _CHANNELS or depth not in _DEPTHS[colour] or packing or filtering:
        raise Unreadable(f"{name}: a kind of PNG that the standard does not know")
    if interlaced:
        raise Unreadable(f"{name}: an interlaced PNG; save it without")
    _bounded(width, height, name)
    channels = _CHANNELS[colour]
    stride = -(-width * channels * depth // 8)
    packed = b"".join(content for kind, content in chunks if kind == b"IDAT")
    raw = zlib.decompressobj().decompress(packed, (stride + 1) * height)
    if len(raw) != (stride + 1) * height:
        raise Unreadable(f"{name}: a damaged picture: {len(raw)} bytes of {(stride + 1) * height}")
    rows = _unfiltered(raw, stride, height, max(1, channels * depth // 8), name)
    if depth == 16:
        rows = [row[::2] for row in rows]
    elif depth < 8:
        rows = [_spread(row, depth, width * channels, scale=colour == 0) for row in rows]
    if colour == 3:
        return _coloured(width, height, rows, dict(chunks).get(b"PLTE", b""), name)
    return Picture(width, height, channels, rows)


def _chunks(data: bytes, name: str) -> Iterator[tuple[bytes, bytes]]:
    place = len(PNG)
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        kind, content = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        check = data[place + 8 + length : place + 12 + length]
        if len(check) < 4 or zlib.crc32(kind + content) != int.from_bytes(check, "big"):
            raise Unreadable(f"{name}: a damaged picture: the checksum of its part {kind!r} is wrong")
        yield kind, content
        place += 12 + length


def _unfiltered(raw: bytes, stride: int, height: int, step: int, name: str) -> list[bytes]:
    rows = []
    above = bytes(stride)
    for y in range(height):
        start = y * (stride + 1)
        kind, line = raw[start], bytearray(raw[start + 1 : start + 1 + stride])
        if kind > 4:
            raise Unreadable(f"{name}: a damaged picture: row {y} has filter {kind}")
        if kind:
            _unfilter(kind, line, above, step)
        above = bytes(line)
        rows.append(above)
    return rows


def _unfilter(kind: int, line: bytearray, above: bytes, step: int) -> None:
    for i in range(len(line)):
        left = line[i - step] if i >= step else 0
        if kind == 1:
            add = left
        elif kind == 2:
            add = above[i]
        elif kind == 3:
            add = (left + above[i]) // 2
        else:
            add = _nearest(left, above[i], above[i - step] if i >= step else 0)
        line[i] = (line[i] + add) & 255


def _nearest(left: int, up: int, corner: int) -> int:
    guess = left + up - corner
    to_left, to_up, to_corner = abs(guess - left), abs(guess - up), abs(guess - corner)
    if to_left <= to_up and to_left <= to_corner:
        return left
    return up if to_up <= to_corner else corner


def _spread(row: bytes, depth: int, samples: int, *, scale: bool) -> bytes:
    most = (1 << depth) - 1
    factor = 255 // most if scale else 1
    values = bytearray()
    for byte in row:
        values += bytes(((byte >> shift) & most) * factor for shift in range(8 - depth, -1, -depth))
    return bytes(values[:samples])


def _coloured(width: int, height: int, rows: list[bytes], palette: bytes, name: str) -> Picture:
    colours = [palette[i : i + 3] for i in range(0, len(palette) - 2, 3)]
    if any(max(row) >= len(colours) for row in rows):
        raise Unreadable(f"{name}: a damaged picture: a colour that is not in its palette")
    return Picture(width, height, 3, [b"".join([colours[sample] for sample in row]) for row in rows])


def encode(picture: Picture) -> bytes:
    """A picture as a plain PNG of grey, grey with alpha, colour, or colour with alpha."""
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[picture.channels]
    raw = b"".join(b"\0" + row for row in picture.rows)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", picture.width, picture.height, 8, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw, 9)),
        (b"IEND", b""),
    ]
    return PNG + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )
