"""What must not stand anywhere, and what every module must have."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES = 450
# These are longer, and may only become shorter.
LONGER = {
    "src/distributio/server/turns.py": 500,
    "src/distributio/wire/boinc_scheduler.py": 560,
    "src/distributio/wire/oci.py": 460,
}
GENERATED = {"src/distributio/store/migrations/versions"}

# Put together from parts, so that this file does not find itself.
BANNED = {
    "an unfinished thing": r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b",
    "BOINC's short word for a job": r"\bw" + r"u\b",
    "another word for project": r"\bten" + r"ants?\b",
    "a path of one machine": "/wo" + "rk/(main|shared)",
    "a registry that is reached by an address": r"https?://(registry-1|index)\.docker" + r"\.io",
}
# Words of others appear where their words are the matter.
EXCEPT = {
    "BOINC's short word for a job": re.compile(r"boinc"),
    "another word for project": re.compile(r"^docs/adr/"),
}


def texts() -> Iterator[Path]:
    for folder in ("src", "docs", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".md", ".toml", ".html", ".css", ".mako") and "__pycache__" not in path.parts:
                yield path


@pytest.mark.parametrize("meaning", BANNED)
def test_a_word_stands_nowhere(meaning: str) -> None:
    pattern = re.compile(BANNED[meaning])
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in texts()
        if not (meaning in EXCEPT and EXCEPT[meaning].search(str(path.relative_to(ROOT))))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def modules() -> list[Path]:
    return sorted((ROOT / "src").rglob("*.py"))


def test_every_module_says_what_it_settles() -> None:
    silent = [str(path.relative_to(ROOT)) for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_no_module_outgrows_its_sentence() -> None:
    large = {
        str(path.relative_to(ROOT)): count
        for path in modules()
        if str(path.parent.relative_to(ROOT)) not in GENERATED
        and (count := len(path.read_text().splitlines())) > LONGER.get(str(path.relative_to(ROOT)), MOST_LINES)
        and not _is_a_table(path)
    }
    assert large == {}


def _is_a_table(path: Path) -> bool:
    """Whether most of a module is one tuple or dict, or types without code: such may be as long as what it lists."""
    tree = ast.parse(path.read_text())
    listed = 0
    for node in tree.body:
        is_value = isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(
            node.value, ast.Tuple | ast.Dict | ast.List
        )
        is_type = isinstance(node, ast.ClassDef) and not any(
            isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) for part in node.body
        )
        is_table = isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        if is_value or is_type or is_table:
            listed += (node.end_lineno or node.lineno) - node.lineno + 1
    return listed > 0.5 * len(path.read_text().splitlines())


def test_packages_hold_a_docstring_and_no_code() -> None:
    busy = [
        str(path.relative_to(ROOT))
        for path in modules()
        if path.name == "__init__.py"
        and len(ast.parse(path.read_text()).body) > (2 if path.parent.name == "distributio" else 1)
    ]
    assert busy == []
