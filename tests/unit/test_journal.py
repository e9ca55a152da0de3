"""The journal survives a torn line, a lost line and a full disk, stays short, and belongs to one agent."""

import os
from pathlib import Path

import pytest

from distributio.agent import journal as module
from distributio.agent.journal import FolderLock, Journal, JournalError
from distributio.agent.work import Held, Stage
from distributio.wire.native import Assignment, Spec, TaskReport


def held(task: int, stage: Stage = Stage.ASSIGNED) -> Held:
    spec = Spec(command=["echo", "hé"], environment={"A": "1"})
    return Held(assignment=Assignment(task=task, job=f"1.{task}", project="science", spec=spec), stage=stage)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def reread(path: Path) -> dict[int, Held]:
    journal = Journal(path)
    journal.close()
    return journal.held


def test_what_was_noted_is_there_again(path: Path) -> None:
    journal = Journal(path)
    report = TaskReport(task=2, outcome="failed", exit_code=3, output_digest="sha256:" + "0" * 64, output_bytes=7)
    last = Held(
        assignment=held(2).assignment, stage=Stage.REPORTING, handle={"name": "x", "pid": 3}, report=report, log_sent=99
    )
    journal.put([held(1), held(2)])
    journal.put([last])
    journal.put([held(3)], durable=False)
    journal.drop([1])
    journal.close()
    assert reread(path) == {2: last, 3: held(3)}


@pytest.mark.parametrize("keep", range(0, 200, 7))
def test_a_torn_last_line_is_dropped_and_the_next_line_is_whole(path: Path, keep: int) -> None:
    journal = Journal(path)
    journal.put([held(1)])
    whole = path.stat().st_size
    journal.put([held(2)])
    journal.close()
    size = path.stat().st_size
    os.truncate(path, min(whole + keep, size - 1))
    again = Journal(path)
    assert again.held == {1: held(1)}
    assert again.damaged_lines == 0
    again.put([held(3)])
    again.close()
    assert reread(path) == {1: held(1), 3: held(3)}


def test_a_line_lost_in_the_middle_costs_that_line_only(path: Path) -> None:
    journal = Journal(path)
    journal.put([held(1)])
    start = path.stat().st_size
    journal.put([held(2)])
    end = path.stat().st_size
    journal.put([held(3)])
    journal.close()
    data = bytearray(path.read_bytes())
    data[start : end - 1] = b"\0" * (end - start - 1)
    path.write_bytes(data)
    again = Journal(path)
    again.close()
    assert again.held == {1: held(1), 3: held(3)}
    assert again.damaged_lines == 1


def test_it_stays_short(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COMPACT_AFTER_LINES", 20)
    journal = Journal(path)
    journal.put([held(0)])
    for task in range(1, 200):
        journal.put([held(task)], durable=False)
        journal.put([held(task, Stage.RUNNING)], durable=False)
        journal.drop([task])
    journal.close()
    assert len(path.read_bytes().splitlines()) < 30
    assert reread(path) == {0: held(0)}
    assert not path.with_suffix(".new").exists()


def test_a_full_disk_is_said_and_spoils_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path)
    journal.put([held(1)])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(JournalError, match="Make room"):
            journal.put([held(2)])
    assert journal.held == {1: held(1)}
    journal.put([held(3)])
    journal.close()
    assert reread(path) == {1: held(1), 3: held(3)}


def test_a_second_agent_is_refused_with_the_first_ones_number(tmp_path: Path) -> None:
    first = FolderLock(tmp_path)
    with pytest.raises(JournalError, match=f"process {os.getpid()}.*--data"):
        FolderLock(tmp_path)
    first.release()
    FolderLock(tmp_path).release()
