"""A ball lit from a side that moves with the frame, as a PNG."""

import math
import struct
import sys
import zlib
from pathlib import Path

WIDTH, HEIGHT, RADIUS = 160, 120, 48.0


def shade(x: float, y: float, frame: int) -> tuple[float, float, float]:
    """The colour of a point."""
    inside = RADIUS**2 - x * x - y * y
    if inside <= 0:
        sky = 0.25 + 0.35 * (y / HEIGHT + 0.5)
        return sky * 0.7, sky * 0.8, sky
    angle = frame / 24 * math.tau / 4
    light = (math.cos(angle) * 0.7, -0.5, math.sin(angle) * 0.4 + 0.6)
    length = math.sqrt(sum(part * part for part in light))
    lit = max(0.0, (x * light[0] + y * light[1] + math.sqrt(inside) * light[2]) / RADIUS / length)
    return 0.12 + 0.83 * lit, 0.1 + 0.45 * lit, 0.08 + 0.2 * lit


def main(folder: Path, frame: int, rounding: str) -> None:
    """Write the frame."""
    to_whole = round if rounding == "nearest" else int
    rows = []
    for row in range(HEIGHT):
        row_bytes = bytearray([0])
        for column in range(WIDTH):
            colour = shade(column - WIDTH / 2 + 0.5, row - HEIGHT / 2 + 0.5, frame)
            row_bytes += bytes(to_whole(255 * part) for part in colour)
        rows.append(bytes(row_bytes))
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(rows), 9)),
        (b"IEND", b""),
    ]
    png = b"\x89PNG\r\n\x1a\n"
    for kind, content in parts:
        png += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    (folder / f"frame-{frame:03d}.png").write_bytes(png)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "nearest")
