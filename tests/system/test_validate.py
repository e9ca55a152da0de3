"""`distributio validate` as its user types it, on the examples that are shipped."""

import json
import subprocess
from pathlib import Path

import pytest

from distributio.validators import names
from sites import DISTRIBUTIO, results_tar

pytestmark = pytest.mark.system
EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*words: str, status: int = 0, cwd: Path = EXAMPLES) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*DISTRIBUTIO, *words], capture_output=True, text=True, timeout=120, check=False, cwd=cwd)
    assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.mark.parametrize("name", ["monte-carlo", "matrix-product", "rendered-image"])
def test_each_example_agrees_under_its_validator_and_not_byte_for_byte(name: str) -> None:
    spec = next(
        line.split('"')[1] for line in (EXAMPLES / name / "job.toml").read_text().splitlines() if "validator" in line
    )
    shown = run("validate", "--mutate", "--validator", spec, f"{name}/a", f"{name}/b").stdout
    assert shown.startswith(f"They agree ({names.choose(spec, {}).text})")
    assert "file missing" in shown
    assert " changes of " in shown
    assert run("validate", f"{name}/a", f"{name}/b", status=5).stdout.startswith("They differ (exact)")


def test_the_answer_in_json_has_every_changed_copy() -> None:
    words = ("--mutate", "--validator", "numeric:rel=1e-9,skip=*.log", "-o", "json")
    said = json.loads(run("validate", *words, "monte-carlo/a", "monte-carlo/b").stdout)
    assert said["agrees"]
    caught = {tried["change"]: tried["caught"] for tried in said["mutants"]}
    assert caught["a number off by 0.1"]
    assert caught["file missing"]
    assert not caught["a last digit changed"]


def test_results_tars_and_their_folders_are_outputs(tmp_path: Path) -> None:
    for name, content in (("a", b"x 1.0\n"), ("b", b"x 1.0000001\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.tar").write_bytes(results_tar(**{"deep/t.txt": content}))
        (tmp_path / name / "result.json").write_text(f'"{name}"')
    run("validate", "--validator", "numeric", "a", "b/results.tar", cwd=tmp_path)
    differ = run("validate", "a", "b", cwd=tmp_path, status=5).stdout
    assert "deep/t.txt: 6 and 12 bytes" in differ


def test_a_validator_of_ones_own_is_tried_before_it_goes_to_a_site(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def agree(a, b, *, most='1'): return abs(len(a.names) - len(b.names)) <= int(most)\n"
    )
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "t").write_text("x")
    run("validate", "--validator", "mine.py", "a", "b", cwd=tmp_path)
    run("validate", "--validator", "mine.py:most=0", "a", "b", cwd=tmp_path, status=5)
    (tmp_path / "mine.py").write_text("def agree(a, b): return 1 / 0\n")
    said = run("validate", "--validator", "mine.py", "a", "b", cwd=tmp_path, status=5).stderr
    assert "ZeroDivisionError" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--validator", "nonsense", "a", "b"), "is not known; there is: exact"),
        (("--validator", "numeric:rel=x", "a", "b"), "must be a number"),
        (("--validator", "none.py", "a", "b"), "none.py cannot be read"),
        (("a", "none"), "none cannot be read"),
        (("a", "file"), "not a results.tar"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("no tar" * 200)
    assert said in run("validate", *words, cwd=tmp_path, status=2).stderr
