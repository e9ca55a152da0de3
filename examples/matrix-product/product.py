"""The product of two random matrices of 64 by 64, written as NumPy writes it."""

import random
import struct
import sys
from pathlib import Path

SIZE = 64


def product(one: list[list[float]], other: list[list[float]], lanes: int) -> list[float]:
    """Row by row. `lanes` is how many partial sums a processor keeps."""
    columns = list(zip(*other, strict=True))
    cells = []
    for row in one:
        for column in columns:
            terms = [x * y for x, y in zip(row, column, strict=True)]
            cells.append(sum(sum(terms[lane::lanes]) for lane in range(lanes)))
    return cells


def main(folder: Path, seed: int, lanes: int) -> None:
    """Write the product."""
    draws = random.Random(seed)
    matrices = [[[draws.gauss(0.0, 1.0) for _ in range(SIZE)] for _ in range(SIZE)] for _ in range(2)]
    cells = product(matrices[0], matrices[1], lanes)
    head = repr({"descr": "<f8", "fortran_order": False, "shape": (SIZE, SIZE)}).encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + struct.pack(f"<{len(cells)}d", *cells)
    (folder / "product.npy").write_bytes(data)
    trace = sum(cells[index * SIZE + index] for index in range(SIZE))
    (folder / "trace.txt").write_text(f"trace {trace!r}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)
