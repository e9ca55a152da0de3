"""`distributio validate` as its user types it, on the examples that are shipped."""

import json
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from distributio.validators import names
from distributio.validators.confine import Bounds
from distributio.validators.program import Program
from distributio.validators.sandbox import ValidatorTrouble
from distributio.wire.native import BatchSubmission, JobView, PolicyChoice, Spec
from image_fixture import standin_archive
from sites import API, DISTRIBUTIO, Guest, GuestHost, RunningSite, results_tar, success, wait_for

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


# --- a real site --------------------------------------------------------------------------------------------------


def finish(person: Guest, batch: int) -> JobView:
    found: JobView = wait_for(lambda: (job := person.job(f"{batch}.1")).handed_over and job, "the hand-over")
    return found


def bring(host: GuestHost, **files: bytes) -> None:
    [work] = wait_for(lambda: host.turn(want=1).assignments, "work")
    host.turn(success(work.task, **files))


def test_a_site_accepts_what_agrees_and_says_why_the_rest_does_not(either_site: RunningSite) -> None:
    operator = either_site.operator()
    people = [either_site.member(f"lender{n}", "default") for n in range(3)]
    hosts = [person.attach() for person in people]
    batch = operator.submit(policy=PolicyChoice(quorum=2, validator="numeric:rel=1e-6"))
    bring(hosts[0], **{"x.txt": b"energy -1.25 eV\n"})
    bring(hosts[1], **{"x.txt": b"energy -1.26 eV\n"})
    words = wait_for(lambda: said_of(operator, batch), "the validator's words")
    assert words == [
        "Attempts 0 and 1: x.txt, line 1, number 1: -1.25 and -1.26 differ by 0.01 (relative 0.00794); "
        "1 of 1 number differ by more than rel=1e-06, abs=0 allow"
    ]
    bring(hosts[2], **{"x.txt": b"energy -1.2500000001 eV\n"})
    job = finish(operator, batch)
    assert [task.validity for task in job.tasks] == ["valid", "invalid", "valid"]
    assert operator.batch(batch).policy["validator"] == "numeric:rel=1e-06,abs=0"


def said_of(person: Guest, batch: int) -> list[str]:
    told = person.get(f"/jobs/{batch}.1/explain")["because"]
    return [each["sentence"] for each in told if each["sentence"].startswith("Attempts")]


def test_results_can_be_verified_offline(site: RunningSite, tmp_path: Path) -> None:
    operator = site.operator()
    hosts = [site.member(f"lender{n}", "default").attach() for n in range(2)]
    batch = operator.submit(policy=PolicyChoice(quorum=2, validator="numeric"))
    bring(hosts[0], **{"x.txt": b"1.0\n"})
    bring(hosts[1], **{"x.txt": b"1.00000001\n"})
    finish(operator, batch)

    def distributio(*words: str, status: int = 0) -> str:
        done = subprocess.run(
            [*DISTRIBUTIO, *words], env=site.environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    distributio("results", str(batch))
    site.stop()
    said = distributio("verify", f"results/{batch}/{batch}.1")
    assert "good: it is what the site signed" in said
    assert f"{site.url} (remembered)" in said
    assert f"computed on {hosts[0].id}, {hosts[1].id}" in said
    assert "2 agreeing, of a quorum of 2, by numeric:rel=1e-06,abs=0" in said
    tar = tmp_path / "results" / str(batch) / f"{batch}.1" / "results.tar"
    tar.write_bytes(tar.read_bytes().replace(b"1.0\n", b"1.1\n"))
    assert "not what the site signed" in distributio("verify", "results", status=5)


def test_a_sites_own_validator_is_used_by_name(site: RunningSite) -> None:
    (site.data / "validators").mkdir()
    (site.data / "validators" / "mine.py").write_text("def agree(a, b, *, names): return names in a and names in b\n")
    operator = site.operator()
    hosts = [site.member(f"lender{n}", "default").attach() for n in range(2)]
    batch = operator.submit(policy=PolicyChoice(quorum=2, validator="mine:names=x"))
    bring(hosts[0], x=b"1")
    bring(hosts[1], x=b"2")
    assert finish(operator, batch).state == "done"


@pytest.mark.parametrize(
    ("validator", "words"),
    [
        ("nonsense", "is not known; there is: exact, numeric"),
        ("numeric:rel=much", "rel='much' must be a number"),
        ("program:image=python:alpine,command=true", "this site runs no containers itself"),
    ],
)
def test_what_the_site_cannot_do_is_refused_at_submission(shared_site: RunningSite, validator: str, words: str) -> None:
    submission = BatchSubmission(spec=Spec(runner="fake"), policy=PolicyChoice(validator=validator))
    answer = shared_site.operator().ask("POST", f"{API}/batches", 422, content=msgspec.json.encode(submission))
    assert words in answer.json()["detail"]


# --- a program in a container -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Podman with a store of its own, in which python:alpine is."""
    folder = tmp_path_factory.mktemp("engine")
    short = tempfile.mkdtemp(prefix="dio", dir="/tmp")  # podman takes no run root longer than 50 characters
    places = ["--root", str(folder / "root"), "--runroot", short, "--storage-driver", "vfs"]
    places += ["--runtime", "runc"] if shutil.which("runc") else []
    program = folder / "podman"
    program.write_text(f'#!/bin/sh\nexec podman {" ".join(places)} --cgroup-manager=cgroupfs "$@"\n')
    program.chmod(0o755)
    subprocess.run([program, "load", "-i", standin_archive(folder).path], check=True, capture_output=True, timeout=300)
    yield str(program)
    subprocess.run([program, "system", "reset", "--force"], check=False, capture_output=True, timeout=120)
    shutil.rmtree(short, ignore_errors=True)


CHECKER = (
    "import sys, pathlib; "
    "texts = [pathlib.Path(p, 't').read_text() for p in sys.argv[2:]]; "
    "print('read', *texts); "
    "sys.exit(3 if 'bad' in texts else len(set(texts)) > 1)"
)


def test_a_program_in_a_container_decides(engine: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for name, text in (("a", "1"), ("b", "1"), ("c", "2"), ("d", "bad")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t").write_text(text)
    command = shlex.join(["python", "-c", CHECKER])
    choice = names.choose(names.Choice("program", (("image", "python:alpine"), ("command", command))).text, {})
    with Program(engine, choice, Bounds(memory_bytes=256 << 20), tmp_path) as program:
        assert program.check("a").good
        assert program.agree("a", "b").agrees
        said = program.agree("a", "c")
        assert (said.agrees, said.words) == (False, "read 1 2")
        with pytest.raises(ValidatorTrouble, match="exit code 3"):
            program.agree("a", "d")


@pytest.mark.parametrize(
    ("image", "command", "words"),
    [
        ("python:alpine", "python -c 'import time; time.sleep(600)'", r"longer than 1 s"),
        ("python:alpine", "/no/such/program", "cannot be run"),
        ("127.0.0.1:9/no/such:image", "true", "cannot be run"),
    ],
)
def test_what_a_program_cannot_do_is_said(engine: str, tmp_path: Path, image: str, command: str, words: str) -> None:
    (tmp_path / "a").mkdir()
    choice = names.Choice("program", (("image", image), ("command", command), ("seconds", "1")))
    with (
        Program(engine, choice, Bounds(memory_bytes=256 << 20), tmp_path, engine_seconds=5) as program,
        pytest.raises(ValidatorTrouble, match=words),
    ):
        program.check("a")
