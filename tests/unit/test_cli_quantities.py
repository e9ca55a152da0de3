"""Sizes, times and ranges are read as docker and people write them."""

import pytest

from distributio.cli import quantities
from distributio.cli.exits import Stop


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("1k", 1024), ("512m", 512 << 20), ("1.5G", 3 << 29), ("2gb", 2 << 30), ("1GiB", 1 << 30), ("0", 0)],
)
def test_sizes(text: str, size: int) -> None:
    assert quantities.size(text) == size


@pytest.mark.parametrize(
    ("text", "length"), [("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("1.5d", 129_600), ("2w", 1_209_600)]
)
def test_times(text: str, length: float) -> None:
    assert quantities.seconds(text) == length


@pytest.mark.parametrize("text", ["", "m", "-1m", "1x", "1h-2", "h1"])
def test_neither(text: str) -> None:
    with pytest.raises(Stop):
        quantities.seconds(text)
    with pytest.raises(Stop):
        quantities.size(text)


@pytest.mark.parametrize(
    ("text", "values"),
    [("1-3", ["1", "2", "3"]), ("0-10:5", ["0", "5", "10"]), ("7", ["7"]),
     ("3,1-2", ["3", "1", "2"]), ("-1-1", ["-1", "0", "1"])],
)  # fmt: skip
def test_arrays(text: str, values: list[str]) -> None:
    assert quantities.indices(text) == values


@pytest.mark.parametrize("text", ["", "1-", "3-1", "1-5:0", "a", "1-2-3", "1-2000000"])
def test_not_arrays(text: str) -> None:
    with pytest.raises(Stop):
        quantities.indices(text)


def test_axes() -> None:
    assert quantities.axis("lr=0.1,0.2") == ("lr", ["0.1", "0.2"])
    assert quantities.axis("seed=0..2") == ("seed", ["0", "1", "2"])
    assert quantities.axis("text=a b,c=d") == ("text", ["a b", "c=d"])


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (17_000_000, "17 MB"), (2_500_000_000, "2.5 GB")]
)
def test_sizes_are_written_short(count: int, text: str) -> None:
    assert quantities.size_text(count) == text


@pytest.mark.parametrize(
    ("length", "text"),
    [(0.25, "0.2 s"), (42, "42 s"), (125, "2 min 5 s"), (3600, "1 h"), (7500, "2 h 5 min"), (200_000, "2 d 7 h")],
)
def test_times_are_written_short(length: float, text: str) -> None:
    assert quantities.seconds_text(length) == text
