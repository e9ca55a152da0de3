"""When two numbers are near enough, and what is said of many that are not."""

import math

from msgspec import Struct

from distributio.validators.verdicts import Agreement


class Differs(Exception):
    """Two outputs differ in more than the size of a number; the message says where."""


class Tolerance(Struct, frozen=True, kw_only=True):
    """Two numbers agree if they differ by no more than `abs`, or by no more than `rel` times the larger of them. Not-a-number
    agrees with not-a-number, an infinity with itself."""

    rel: float = 1e-6
    abs: float = 0.0

    def words(self) -> str:
        """The tolerance, for people."""
        return f"rel={self.rel:g}, abs={self.abs:g}"


class Tally:
    """Compares numbers, and keeps what is worth saying of them."""

    def __init__(self, tolerance: Tolerance) -> None:
        self.tolerance = tolerance
        self.numbers = 0
        self.off = 0
        self.first = ""
        self.remark = ""  # what is worth saying where there are no numbers
        self._largest = 0.0

    def same(self, count: int) -> None:
        """So many numbers were found equal, by their bytes."""
        self.numbers += count

    def compare(self, a: complex, b: complex, where: str) -> None:
        """Compare two numbers."""
        self.numbers += 1
        if a == b or (a != a and b != b):
            return
        apart = _apart(a, b)
        size = max(_size(a), _size(b))
        share = apart / size if size and not math.isinf(apart) else math.inf
        near = apart <= self.tolerance.abs or apart <= self.tolerance.rel * size
        if math.isinf(apart) or math.isnan(apart):
            near = False
        self._largest = max(self._largest, share)
        if near:
            return
        self.off += 1
        if not self.first:
            self.first = f"{where}: {_shown(a)} and {_shown(b)} differ by {apart:.3g} (relative {share:.3g})"

    def agreement(self) -> Agreement:
        """What all of them say."""
        if not self.numbers:
            return Agreement.yes(self.remark)
        counted = f"{self.numbers} number{'' if self.numbers == 1 else 's'}"
        if self.off:
            return Agreement.no(
                f"{self.first}; {self.off} of {counted} differ by more than {self.tolerance.words()} allow"
            )
        if not self._largest:
            return Agreement.yes(f"{counted} equal")
        return Agreement.yes(f"{counted} agree; the largest relative difference is {self._largest:.3g}")


def _apart(a: complex, b: complex) -> float:
    try:
        apart = abs(a - b)
    except OverflowError:
        return math.inf
    return math.inf if apart != apart else apart


def _size(value: complex) -> float:
    try:
        return float(abs(value))
    except OverflowError:
        return math.inf


def _shown(value: complex) -> str:
    return repr(value)[:60]
