"""How long transfers are shown: a bar on a terminal, and silence elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from distributio.sdk.transfers import Progress, nothing

WORTH_A_BAR_BYTES = 1 << 20


@contextmanager
def bar(title: str, size_bytes: int) -> Iterator[Progress]:
    """A progress function for one transfer; small ones and pipes are not worth a bar."""
    if not sys.stderr.isatty() or 0 < size_bytes < WORTH_A_BAR_BYTES:
        yield nothing
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=size_bytes or None)

        def show(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total or None)

        yield show
