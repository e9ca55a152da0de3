"""The main job, as its user sees it: real server, real agent, real containers, the command line."""

import json
import tarfile
from pathlib import Path

import pytest

from lenders import Lender

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("main-job")]
PYTHON = ("python:alpine", "python", "-c")


def test_the_log_of_a_job_streams_to_the_terminal(lender: Lender) -> None:
    done = lender.run("run", *PYTHON, "print('Hello BOINC')")
    assert done.stdout == "Hello BOINC\n"


def test_what_a_job_writes_comes_back_as_a_tar_with_a_record_beside_it(lender: Lender, tmp_path: Path) -> None:
    lender.run("run", *PYTHON, "open('/root/shared/results/hello.txt','w').write('Hello BOINC')", cwd=tmp_path)
    [tar] = tmp_path.glob("results/*/*/results.tar")
    with tarfile.open(tar) as archive:
        [member] = archive.getmembers()
        content = archive.extractfile(member)
        assert content is not None
        assert (member.name, content.read()) == ("hello.txt", b"Hello BOINC")
    record = json.loads((tar.parent / "result.json").read_text())
    text = json.dumps(record)
    assert '"state": "done"' in text
    assert "docker.io/library/python:alpine" in text or "python:alpine" in text


def test_a_job_without_results_leaves_no_folder(lender: Lender, tmp_path: Path) -> None:
    lender.run("run", *PYTHON, "print(1)", cwd=tmp_path)
    assert not (tmp_path / "results").exists()


def test_run_ends_with_the_exit_code_of_the_command(lender: Lender) -> None:
    done = lender.run("run", *PYTHON, "import sys; print('so long'); sys.exit(7)", status=7)
    assert "so long" in done.stdout


def test_an_array_of_jobs_ends_with_a_table(lender: Lender) -> None:
    done = lender.run("submit", "--array", "1-8", *PYTHON, "print({index} ** 2)")
    assert done.stdout.count("done") == 8
    batch = json.loads(lender.run("inspect", "last", "-o", "json").stdout)
    number = (batch.get("batch") or batch)["id"] if isinstance(batch.get("batch"), dict) else batch["id"]
    logs = [lender.run("logs", f"{number}.{position}").stdout.strip() for position in (1, 5, 8)]
    assert logs == ["1", "25", "64"]


def test_inputs_travel_by_content(lender: Lender, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    (data / "numbers.txt").write_text("1 2 3\n")
    (data / "deep" / "more.txt").write_text("4\n")
    code = "print(open('/data/numbers.txt').read().split() + open('/data/deep/more.txt').read().split())"
    done = lender.run("run", "-v", "./data:/data:ro", *PYTHON, code, cwd=tmp_path)
    assert done.stdout.strip() == "['1', '2', '3', '4']"


def test_environment_and_quoting_survive(lender: Lender) -> None:
    code = "import os, sys; print(os.environ['GREETING'], sys.argv[1:])"
    words = ("a b", '"q"', "$HOME", "ü\n")
    done = lender.run("run", "-e", "GREETING=hello there", *PYTHON, code, *words)
    assert done.stdout.strip() == f"hello there {list(words)!r}"


@pytest.mark.parametrize(
    ("options", "code", "cause"),
    [
        (("-m", "64m"), "x = bytearray(300 << 20); print(len(x))", "memory-limit"),
        (("--timeout", "2"), "import time; time.sleep(60)", "wall-limit"),
        ((), "import os; os.execv('/no/such/program', ['x'])", "exit-code"),
    ],
)
def test_a_failure_names_its_cause(lender: Lender, options: tuple[str, ...], code: str, cause: str) -> None:
    done = lender.run("run", *options, *PYTHON, code, status=None)
    assert done.returncode != 0
    job = json.loads(lender.run("ps", "-a", "-o", "json").stdout)
    rows = job["items"] if isinstance(job, dict) else job
    assert rows[0]["cause"] == cause
    assert lender.run("explain", "last").stdout.strip()


def test_an_unknown_command_says_so(lender: Lender) -> None:
    done = lender.run("run", "python:alpine", "no-such-program", status=None)
    assert done.returncode in (126, 127)


@pytest.mark.parametrize("option", ["--privileged", "--cap-add=ALL", "--device=/dev/sda", "-p=80:80"])
def test_what_cannot_be_granted_is_refused_with_the_reason(lender: Lender, option: str) -> None:
    done = lender.run("run", option, *PYTHON, "print(1)", status=2)
    assert len(done.stderr) > 40


def test_an_image_that_cannot_be_had_is_refused_with_advice(lender: Lender) -> None:
    done = lender.run("run", "127.0.0.1:9/no/such:image", "true", status=4)
    assert "image import" in done.stderr


def test_a_detached_job_can_be_followed_waited_for_and_fetched(lender: Lender, tmp_path: Path) -> None:
    code = "print('begin'); open('/root/shared/results/a','w').write('x'); print('end')"
    job = lender.run("run", "-d", *PYTHON, code).stdout.strip()
    assert lender.run("logs", "-f", job).stdout == "begin\nend\n"
    lender.run("wait", job)
    lender.run("results", job, "-C", str(tmp_path))
    assert list(tmp_path.rglob("results.tar"))


def test_a_running_job_can_be_stopped(lender: Lender) -> None:
    job = lender.run("run", "-d", *PYTHON, "import time; time.sleep(600)").stdout.strip()
    lender.run("stop", job)
    found = json.loads(lender.run("inspect", job, "-o", "json").stdout)
    assert found["state"] == "cancelled"
    # The host is free again: the next job is not kept waiting.
    assert lender.run("run", *PYTHON, "print('next')").stdout == "next\n"
