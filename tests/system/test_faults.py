"""Two hundred jobs on two agents, with server and agents killed on the way: each ends once, and nothing is lost."""

import json
import random
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from databases import Cluster
from lenders import lending
from sites import RunningSite, running, wait_for

pytestmark = pytest.mark.system
JOBS = 200
KILLS = 10
CODE = (
    "import time; print('start', flush=True); time.sleep(2); "
    "open('/root/shared/results/n.txt','w').write('{index}'); print('end {index}')"
)


@pytest.fixture(params=("sqlite", "postgresql"))
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningSite]:
    """A site: one process on SQLite, or two on PostgreSQL."""
    if request.param == "sqlite":
        yield from running(RunningSite(tmp_path))
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    yield from running(RunningSite(tmp_path, cluster.create_ready(), processes="2"))


@pytest.mark.timeout(900)
def test_two_hundred_jobs_survive_ten_kills(stage: RunningSite, tmp_path: Path) -> None:
    chance = random.Random(20)
    with lending(stage, tmp_path / "lender", "first", "second") as lender:
        said = lender.run(
            "submit", "-d", "-o", "id", "--array", f"1-{JOBS}", "--cpus", "0.25", "-m", "64m",
            "python:alpine", "python", "-c", CODE,
        )  # fmt: skip
        batch = int(said.stdout.split()[0].partition(".")[0])
        operator = stage.operator()
        for _ in range(KILLS):
            reached = operator.batch(batch).counts["done"]
            # The next kill waits for progress, so that all of them fall into the middle of the work.
            wait_for(lambda reached=reached: operator.batch(batch).counts["done"] > reached, "progress", 120)
            victim = chance.choice(("site", "first", "second"))
            if victim == "site":
                stage.kill()
                stage.start()
            else:
                lender.kill(victim)
                lender.start(victim)
            time.sleep(chance.uniform(0.0, 1.0))
        wait_for(lambda: operator.batch(batch).ended_at is not None, "the end of the batch", 600)
        assert operator.batch(batch).counts["done"] == JOBS
        records = wait_for(lambda: _handed_over(stage, batch), "the hand-over")
        for record in records:
            _check(record)
        _check_words(lender, batch)


def _handed_over(site: RunningSite, batch: int) -> list[Path] | None:
    found = sorted((site.data / "store" / "results" / str(batch)).glob("*/result.json"))
    return found if len(found) == JOBS else None


def _check(record: Path) -> None:
    job = record.parent.name
    index = job.partition(".")[2]
    with tarfile.open(record.parent / "results.tar") as archive:
        content = archive.extractfile("n.txt")
        assert content is not None
        assert content.read().decode() == index
    assert (record.parent / "log.txt").read_text() == f"start\nend {index}\n"
    text = record.read_text()
    assert text.count('"validity": "valid"') == 1, text
    assert json.loads(text)


def _check_words(lender: "object", batch: int) -> None:
    from lenders import Lender

    assert isinstance(lender, Lender)
    explained = lender.run("explain", f"{batch}.7").stdout
    assert "one" in explained.lower()
    assert lender.run("logs", f"{batch}.7").stdout == "start\nend 7\n"
    view = msgspec.json.decode(lender.run("inspect", f"{batch}.7", "-o", "json").stdout)
    assert view["state"] == "done"
