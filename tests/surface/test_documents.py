"""The pages of the reference that are made from the program say what the program says."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from distributio.cli import documents
from distributio.lifecycle.reasons import REASONS
from distributio.server import problems

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", documents.PAGES)
def test_a_page_is_not_stale(path: str) -> None:
    stale = "run `python -m distributio.cli.documents --write` and commit the page"
    assert (ROOT / path).read_text(encoding="utf-8") == documents.PAGES[path](), stale


def test_writing_makes_all_pages_and_then_none(tmp_path: Path) -> None:
    assert documents.main(["--root", str(tmp_path)]) == 1
    assert documents.write(tmp_path) == list(documents.PAGES)
    assert documents.main(["--root", str(tmp_path)]) == 0
    assert documents.main(["--root", str(tmp_path), "--write"]) == 0


def test_every_reason_the_program_gives_is_in_the_table() -> None:
    unknown = {f"{code} ({where})" for code, where in given_reasons() if code not in REASONS}
    assert not unknown, "give each a row in lifecycle/reasons.py"


def test_every_problem_is_in_the_table() -> None:
    assert {code for _, _, code in problems.TABLE} <= set(REASONS)


def given_reasons() -> Iterator[tuple[str, str]]:
    """Codes written in calls: `cause="..."`, `Refused(status, "...")`, `RunnerError("...")`, and in dicts with a cause."""
    for file in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for value in values_in(node):
                if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value:
                    yield value.value, f"{file.name}:{value.lineno}"


# Which argument of these is a reason code.
POSITIONS = {
    "Refused": 1,
    "RunnerError": 0,
    "TransferFailed": 0,
    "GiveBack": 1,
    "because": 0,
    "fault": 0,
    "limit_hit": 0,
}


def values_in(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        position = POSITIONS.get(name, len(node.args))
        yield from node.args[position : position + 1]
        yield from (keyword.value for keyword in node.keywords if keyword.arg in ("cause", "code"))
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "cause":
                yield value
