"""The command line as people use it, against a real site; the host on the other side says what the test wants."""

import hashlib
import io
import json
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distributio.wire.native import Assignment, TaskReport
from sites import API, DISTRIBUTIO, GuestHost, RunningSite, success, wait_for

pytestmark = pytest.mark.system

IMAGE = "lab/tool:1"
PATIENCE_SECONDS = 60.0


class Person:
    """Somebody at a terminal, in a folder of their own."""

    def __init__(self, site: RunningSite, folder: Path) -> None:
        self.site = site
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []

    def say(self, *words: str, expect: int = 0, stdin: bytes = b"") -> str:
        """A command; what it printed on standard output."""
        done = subprocess.run(
            [*DISTRIBUTIO, *words],
            input=stdin,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            cwd=self.folder,
            env=self.site.environment,
            check=False,
        )
        assert done.returncode == expect, f"{words}: {done.returncode}\n{done.stdout!r}\n{done.stderr.decode()}"
        return done.stdout.decode()

    def json(self, *words: str, expect: int = 0) -> Any:
        """A command's answer as JSON."""
        return json.loads(self.say(*words, "-o", "json", expect=expect))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A command that takes its time; what it says goes into the files `out` and `err`."""
        with (self.folder / "out").open("w") as out, (self.folder / "err").open("w") as err:
            started = subprocess.Popen(
                [*DISTRIBUTIO, *words], stdout=out, stderr=err, cwd=self.folder, env=self.site.environment, text=True
            )
        self._started.append(started)
        return started

    def read(self, name: str) -> str:
        """What is in a file here."""
        return (self.folder / name).read_text()

    def close(self) -> None:
        """End what a failed test left running."""
        for started in self._started:
            started.kill()
            started.wait()


@pytest.fixture
def person(site: RunningSite, tmp_path: Path) -> Iterator[Person]:
    folder = tmp_path / "desk"
    folder.mkdir()
    (folder / "tool.tar").write_bytes(an_image())
    made = Person(site, folder)
    made.say("image", "import", "tool.tar", "--name", IMAGE)
    yield made
    made.close()


@pytest.fixture
def host(site: RunningSite) -> GuestHost:
    return site.operator().attach(runners=["container"])


def an_image() -> bytes:
    """The smallest archive that `docker save` could have made."""
    layer = a_tar({"hello.txt": b"hello\n"})
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }).encode()  # fmt: skip
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]).encode()
    return a_tar({"manifest.json": manifest, "config.json": config, "layer.tar": layer})


def a_tar(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def taken(host: GuestHost, count: int = 1) -> list[Assignment]:
    """What the host gets, as soon as it is there."""
    found: list[Assignment] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} tasks came"
        held = [assignment.task for assignment in found]
        found += host.turn(want=count - len(found), held=held, wait_seconds=1).assignments
    return found


def write_log(host: GuestHost, task: int, offset: int, text: str) -> None:
    answer = host.http.post(f"{API}/host/tasks/{task}/log?offset={offset}", content=text.encode())
    assert answer.status_code == 200, answer.text


def test_a_job_goes_all_the_way(person: Person, host: GuestHost) -> None:
    (person.folder / "data").mkdir()
    (person.folder / "data" / "a b.txt").write_text("input\n")
    (person.folder / "my.env").write_text("# comment\nFROM_FILE=x=y\n")
    command = ["sh", "-c", "echo \"$HOME\" '{x}'\n`id`", "", "ünï 漢字", "--rm"]
    run = person.start(
        "run", "--rm", "-it", "-e", "A=b $c", "--env-file", "my.env", "-v", "./data:/data:ro", "-m", "64m", IMAGE, *command
    )  # fmt: skip
    [work] = taken(host)
    assert work.spec.command == command
    assert work.spec.environment == {"A": "b $c", "FROM_FILE": "x=y"}
    assert work.spec.limits.memory_bytes == 64 << 20
    [data] = work.spec.inputs
    assert (data.path, data.is_folder, data.read_only) == ("/data", True, True)
    sent = host.http.get(f"{API}/host/files/{data.digest}").content
    with tarfile.open(fileobj=io.BytesIO(sent)) as tar:
        assert tar.getnames() == ["a b.txt"]
    write_log(host, work.task, 0, "Hello BOINC\n")
    host.turn(success(work.task, **{"out.txt": b"result\n"}))
    assert run.wait(PATIENCE_SECONDS) == 0, person.read("err")
    assert person.read("out") == "Hello BOINC\n"
    with tarfile.open(person.folder / "results" / "1" / "1.1" / "results.tar") as tar:
        assert tar.getnames() == ["out.txt"]
    assert json.loads(person.read("results/1/1.1/result.json"))["predicate"]["state"] == "done"
    assert "results/1/1.1/results.tar" in person.read("err")


def test_the_exit_code_is_the_jobs(person: Person, host: GuestHost) -> None:
    run = person.start("run", IMAGE, "false")
    [work] = taken(host)
    host.turn(TaskReport(task=work.task, outcome="failed", exit_code=7, cause="exit-code"))
    assert run.wait(PATIENCE_SECONDS) == 7
    assert not (person.folder / "results").exists()


def test_a_job_that_never_ran_says_why(person: Person, host: GuestHost) -> None:
    run = person.start("run", IMAGE, "true")
    for _ in range(4):
        [work] = taken(host)
        host.turn(TaskReport(task=work.task, outcome="error", cause="owner-stopped"))
        host = person.site.operator().attach(runners=["container"])
    assert run.wait(PATIENCE_SECONDS) == 5
    assert "too many hosts could not run it" in person.read("err")


def test_a_restart_of_the_site_does_not_show_in_the_log(person: Person, host: GuestHost) -> None:
    run = person.start("run", IMAGE, "true")
    [work] = taken(host)
    write_log(host, work.task, 0, "één\n")
    wait_for(lambda: person.read("out") == "één\n", "the first line")
    person.site.kill()
    person.site.start()
    write_log(host, work.task, 6, "two\n")
    host.turn(success(work.task))
    assert run.wait(PATIENCE_SECONDS) == 0, person.read("err")
    assert person.read("out") == "één\ntwo\n"


def test_the_next_copys_log_is_whole_though_the_site_restarted_between(person: Person, host: GuestHost) -> None:
    run = person.start("run", "--retries", "1", IMAGE, "true")
    [work] = taken(host)
    write_log(host, work.task, 0, "a long first line\n")
    wait_for(lambda: person.read("out") == "a long first line\n", "the first line")
    person.site.kill()
    person.site.start()
    host.turn(TaskReport(task=work.task, outcome="failed", exit_code=1, cause="exit-code"))
    [work] = taken(person.site.operator().attach(runners=["container"]))
    other = person.site.guests[-1]
    assert isinstance(other, GuestHost)
    write_log(other, work.task, 0, "short\n")
    other.turn(success(work.task))
    assert run.wait(PATIENCE_SECONDS) == 0, person.read("err")
    assert person.read("out") == "a long first line\nshort\n"


def test_who_waits_is_told_why_and_may_stop_the_job(person: Person) -> None:
    run = person.start("run", IMAGE, "true")
    wait_for(lambda: "host" in person.read("err") and "Job 1.1" in person.read("err"), "an explanation")
    run.send_signal(signal.SIGINT)
    wait_for(lambda: "Ctrl-C again stops it" in person.read("err"), "a word on what Ctrl-C does")
    assert person.json("inspect", "1.1")["state"] == "waiting"
    run.send_signal(signal.SIGINT)
    assert run.wait(PATIENCE_SECONDS) == 130
    assert person.json("inspect", "1.1")["state"] == "cancelled"


def test_many_jobs_with_one_that_fails(person: Person, host: GuestHost) -> None:
    submit = person.start("submit", "-o", "json", "--matrix", "a=1,2", "b=x y,z", IMAGE, "echo", "{a}-{b}")
    works = taken(host, 4)
    assert {tuple(work.spec.command) for work in works} == {
        ("echo", "1-x y"), ("echo", "1-z"), ("echo", "2-x y"), ("echo", "2-z"),
    }  # fmt: skip
    for work in works:
        bad = work.spec.command[1] == "2-z"
        host.turn(TaskReport(task=work.task, outcome="failed", exit_code=1) if bad else success(work.task, r=b"1"))
    assert submit.wait(PATIENCE_SECONDS) == 5
    assert [job["state"] for job in json.loads(person.read("out"))] == ["done", "done", "done", "failed"]
    assert sorted(path.parent.name for path in person.folder.rglob("results.tar")) == ["1.1", "1.2", "1.3"]
    again = person.say("rerun", "--failed", "last").strip()
    [work] = taken(host)
    assert work.spec.command == ["echo", "2-z"]
    host.turn(success(work.task))
    assert person.json("wait", again, f"{again}.1")[0]["state"] == "done"
    assert person.say("ps", "-a", "-o", "id").split() == ["2.1", "1.4", "1.3", "1.2", "1.1"]


def test_a_job_file_submits_what_it_says(person: Person, host: GuestHost) -> None:
    (person.folder / "in.txt").write_text("1")
    (person.folder / "job.toml").write_text(
        f'[job]\nimage = "{IMAGE}"\ncommand = "cat {{n}}"\nname = "file"\n'
        '[[inputs]]\nsource = "in.txt"\n[policy]\npriority = 3\n[many]\narray = "1-2"\n[many.matrix]\nn = [7]\n'
    )
    assert person.say("submit", "-d", "job.toml") == "1\n"
    works = taken(host, 2)
    assert [work.spec.command for work in works] == [["cat", "7"], ["cat", "7"]]
    assert works[0].spec.inputs[0].path == "/input/in.txt"
    batch = person.json("inspect", "last")
    assert (batch["name"], batch["priority"], batch["job_count"]) == ("file", 3, 2)


def test_everything_prints_json_and_ids(person: Person) -> None:
    job = person.say("run", "-d", "--name", "x\x1b[31m", IMAGE, "true").strip()
    assert job == "1.1"
    secret = person.json("token", "create", "laptop")["secret"]
    for words in (
        ["ps"], ["batch", "ls"], ["image", "ls"], ["token", "ls"], ["status"], ["whoami"], ["inspect", "last"],
        ["inspect", "1.1"], ["explain", "last"], ["logs", "last"], ["version"],
    ):  # fmt: skip
        assert person.json(*words)
        assert "\x1b" not in person.say(*words)
    assert person.say("ps", "-o", "id") == "1.1\n"
    assert person.say("image", "ls", "-o", "id") == "1\n"
    assert person.json("stop", "last")[0]["state"] == "ended"
    assert person.json("image", "rm", IMAGE)[0]["id"] == 1
    other = person.folder / "other"
    person.site.environment["DISTRIBUTIO_CONFIG"] = str(other)
    person.say("ps", expect=4)
    person.say("login", person.site.url, "--token", "-", stdin=secret.encode())
    assert person.json("whoami")["user"] == "operator"
    assert person.say("ps") == ""


def test_refusals_have_their_own_codes(person: Person) -> None:
    person.say("inspect", "99", expect=4)
    person.say("logs", "99.1", expect=4)
    person.say("run", "--validator", "nobody", IMAGE, "true", expect=4)
    person.say("results", "nonsense", expect=2)
    person.say("run", "--privileged", IMAGE, expect=2)
    person.site.kill()
    person.say("ps", expect=3)
