"""The agent as a real process, before a site that does what the test says."""

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distributio.wire.native import INLINE_OUTPUT_BYTES, Limits, Spec, Turn
from scripted_site import DEADLINE_SECONDS, ScriptedSite, layer

pytestmark = pytest.mark.system

DISTRIBUTIO = [sys.executable, "-m", "distributio.cli.main"]


class Machine:
    """A host: its data folder, and the commands its owner gives."""

    def __init__(self, folder: Path, site: ScriptedSite) -> None:
        self.data = folder / "host"
        self.site = site
        self.environment = {
            **os.environ, "DISTRIBUTIO_HOST_DATA": str(self.data), "DISTRIBUTIO_CONFIG": str(folder / "config"),
        }  # fmt: skip
        self.log_path = folder / "agent.log"
        self._agents: list[subprocess.Popen[bytes]] = []

    def say(self, *words: str, expect: int = 0) -> str:
        """A command of the owner's; what it printed."""
        done = subprocess.run(
            [*DISTRIBUTIO, "host", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == expect, f"host {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def attach(self, *words: str) -> str:
        """Join the site with two processors."""
        return self.say("attach", self.site.url, "--token", "t", "--runner", "fake", "--cpus", "2", *words)

    def run(self, *words: str) -> subprocess.Popen[bytes]:
        """Start the agent."""
        with self.log_path.open("ab") as log:
            agent = subprocess.Popen(
                [*DISTRIBUTIO, "host", "run", *words], env=self.environment, stdout=log, stderr=log
            )
        self._agents.append(agent)
        return agent

    def log(self) -> str:
        """All the agents here have said."""
        return self.log_path.read_text(encoding="utf-8") if self.log_path.exists() else ""

    def leftovers(self) -> list[str]:
        """What is left of tasks."""
        places = (self.data / "slots", self.data / "output", self.data / "fake" / "tasks")
        return [str(path) for place in places for path in place.iterdir()]

    def close(self) -> None:
        """End what a failed test left running."""
        for agent in self._agents:
            with contextlib.suppress(ProcessLookupError):
                agent.kill()
            agent.wait(10)


@pytest.fixture
def site() -> Iterator[ScriptedSite]:
    with ScriptedSite().running() as site:
        yield site


@pytest.fixture
def machine(tmp_path: Path, site: ScriptedSite) -> Iterator[Machine]:
    machine = Machine(tmp_path, site)
    try:
        yield machine
    except BaseException:
        print(machine.log())
        raise
    finally:
        machine.close()


def fake(*steps: str, **more: object) -> Spec:
    """A job of the fake runner's; each step is a line of words."""
    command = [word for step in steps for word in [*step.split(" "), ";"]]
    return Spec(runner="fake", command=command, **more)  # type: ignore[arg-type]


def _phase(turns: list[Turn], task: int) -> str:
    """What the host last said of the task in these turns."""
    return next((one.phase for turn in reversed(turns) for one in turn.held if one.task == task), "")


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {DEADLINE_SECONDS} s"
        time.sleep(0.02)


def names_in(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return [member.name for member in opened.getmembers() if member.isfile()]


def test_a_host_joins_works_and_leaves(machine: Machine, site: ScriptedSite) -> None:
    assert "joined Scripted as host h1" in machine.attach("--name", "lab-1", "--memory", "2g")
    assert (machine.data / "site.json").stat().st_mode & 0o777 == 0o600
    assert "joined Scripted (" in machine.say("attach", site.url, "--token", "t", expect=2)
    agent = machine.run()
    good = site.give(fake("echo hello", "write out.txt 42"))
    bad = site.give(fake("echo oh", "exit 3"))
    report = site.report(good)
    assert (report.outcome, report.exit_code, report.log) == ("success", 0, b"hello\n") or site.logs[good] == b"hello\n"
    assert report.output is not None
    assert names_in(report.output) == ["out.txt"]
    assert report.output_bytes == len(report.output)
    failed = site.report(bad)
    assert (failed.outcome, failed.exit_code, failed.output_digest) == ("failed", 3, "")
    assert site.facts is not None
    assert (site.facts.name, site.facts.cpus, site.facts.memory_bytes) == ("lab-1", 2, 2 << 30)
    assert site.facts.runners == ["fake"]
    wait_for(lambda: not machine.leftovers(), "cleaning up")
    status = json.loads(machine.say("status", "-o", "json"))
    assert (status["state"], status["tasks"]) == ("idle", [])
    assert "detached from Scripted" in machine.say("detach")
    assert agent.wait(10) == 0
    assert site.detached
    assert not (machine.data / "site.json").exists()
    assert "has joined no site" in machine.say("run", expect=2)


def test_a_task_starts_at_once_on_an_idle_host(machine: Machine, site: ScriptedSite) -> None:
    machine.attach()
    machine.run()
    site.until(lambda site: site.turns, "the first turn")
    quickest = DEADLINE_SECONDS
    deadline = time.monotonic() + DEADLINE_SECONDS
    while quickest > 0.1 and time.monotonic() < deadline:  # other work on this machine may slow a try, not all of them
        began = time.monotonic()
        site.report(site.give(fake("echo x")))
        quickest = min(quickest, time.monotonic() - began)
    assert quickest <= 0.1


def test_logs_come_in_order_while_the_task_runs(machine: Machine, site: ScriptedSite) -> None:
    machine.attach()
    machine.run()
    steps = [step for n in range(6) for step in (f"echo line {n}", "sleep 0.3")]
    task = site.give(fake(*steps))
    site.until(lambda site: site.logs.get(task), "the first piece of the log")
    assert task not in site.reports
    report = site.report(task)
    pieces = [(offset, data) for number, offset, data, _ in site.log_pieces if number == task]
    assert len(pieces) >= 2
    text = bytes(site.logs[task])
    if report.log:
        assert report.log_offset == len(text)
        text += report.log
    assert text == b"".join(b"line %d\n" % n for n in range(6))


def test_short_tasks_are_reported_once_each_and_keep_the_host_busy(machine: Machine, site: ScriptedSite) -> None:
    machine.attach()
    machine.run()
    tasks = [site.give(fake("sleep 0.05", f"echo {n}")) for n in range(40)]
    site.until(lambda site: len(site.reports) == len(tasks), "forty reports")
    assert {report.outcome for report in site.reports.values()} == {"success"}
    most = max(sum(1 for one in turn.held if one.phase == "running") for turn in site.turns)
    assert most <= 2
    assert set(site.report_times.values()) == {1}


def test_work_goes_on_where_a_killed_agent_left_it(machine: Machine, site: ScriptedSite) -> None:
    machine.attach()
    first = machine.run()
    task = site.give(fake("echo before", "sleep 2.5", "echo after", "write a.txt x"))
    site.until(lambda site: site.logs.get(task), "the log's beginning")
    os.kill(first.pid, signal.SIGKILL)
    first.wait(10)
    (machine.data / "slots" / "999").mkdir()
    (machine.data / "fake" / "tasks" / "fake-999-abc").write_text(f"999 {machine.data / 'slots' / '999'}")
    with (machine.data / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"put": {"assignment": {"task": 77')
    machine.run()
    report = site.report(task)
    assert (report.outcome, report.output_bytes > 0) == ("success", True)
    text = bytes(site.logs[task]) + (report.log or b"")
    assert text == b"before\nafter\n"
    assert "found again" in machine.log()
    wait_for(lambda: not machine.leftovers(), "cleaning up")


def test_a_task_lost_while_no_agent_ran_is_given_back(machine: Machine, site: ScriptedSite) -> None:
    machine.attach()
    agent = machine.run()
    task = site.give(fake("sleep 60"))
    wait_for(lambda: list((machine.data / "slots").glob("*/fake.json")), "the start")
    site.until_phase(task, "running")
    agent.kill()
    agent.wait(10)
    for state in (machine.data / "slots").glob("*/fake.json"):
        state.unlink()
    machine.run()
    report = site.report(task)
    assert (report.outcome, report.cause) == ("abandoned", "host-restarted")


def test_work_is_finished_and_kept_while_the_site_is_away(machine: Machine, site: ScriptedSite) -> None:
    machine.attach()
    agent = machine.run()
    task = site.give(fake("echo a", "sleep 2", "echo b"))
    site.until(lambda site: site.logs.get(task), "the log's beginning")
    with site.lock:
        site.is_away = True
        site.lock.notify_all()
    wait_for(lambda: f"task {task} (job 1.{task}): done" in machine.log(), "the end of the task")
    assert agent.poll() is None
    assert not site.reports
    site.is_away = False
    report = site.report(task)
    assert report.outcome == "success"
    assert bytes(site.logs[task]) + (report.log or b"") == b"a\nb\n"
    assert site.report(site.give(fake("echo next"))).outcome == "success"


def test_a_report_is_repeated_until_it_is_acknowledged(machine: Machine, site: ScriptedSite) -> None:
    machine.attach()
    agent = machine.run()
    site.acknowledges = False
    task = site.give(fake("write a.txt x"))
    site.until(lambda site: site.report_times.get(task, 0) >= 2, "the same report again")
    os.kill(agent.pid, signal.SIGKILL)
    agent.wait(10)
    heard = site.report_times[task]
    site.acknowledges = True
    machine.run()
    site.until(lambda site: site.report_times[task] > heard, "the report after a restart")
    site.until(lambda site: not site.turns[-1].held and not site.turns[-1].reports, "forgetting it")


def test_a_cancelled_task_is_stopped_and_forgotten(machine: Machine, site: ScriptedSite) -> None:
    machine.attach()
    machine.run()
    task = site.give(fake("sleep 600"))
    site.until_phase(task, "running")
    site.cancel(task)
    wait_for(lambda: not machine.leftovers(), "stopping")
    assert site.report(site.give(fake("echo next"))).outcome == "success"
    assert task not in site.reports


def test_a_folder_has_one_agent(machine: Machine, site: ScriptedSite) -> None:
    machine.attach()
    agent = machine.run()
    site.until(lambda site: site.turns, "the first turn")
    said = machine.say("run", expect=2)
    assert f"process {agent.pid}" in said
    assert "--data" in said
    assert site.report(site.give(fake("echo still here"))).outcome == "success"


def test_the_owner_suspends_and_resumes(machine: Machine, site: ScriptedSite) -> None:
    machine.attach()
    machine.run()
    task = site.give(fake("sleep 600"))
    site.until_phase(task, "running")
    assert "suspended" in machine.say("suspend")
    site.until_phase(task, "suspended")
    site.until(lambda site: site.turns[-1].want is None, "no more asking")
    assert "its owner has suspended this host" in machine.say("status")
    machine.say("resume")
    said = len(site.turns)
    site.until(lambda site: _phase(site.turns[said:], task) == "running", "going on")


def test_cut_downloads_and_uploads_go_on_where_they_stopped(machine: Machine, site: ScriptedSite) -> None:
    machine.attach("--disk", "4g")
    data = random.Random(1).randbytes(3 << 20)
    text = random.Random(2).randbytes(INLINE_OUTPUT_BYTES * 4).hex()
    site.cut_blob_after = 1 << 20
    site.cut_upload_after = 100_000
    machine.run()
    file = site.add_file(data)
    task = site.give(fake(f"write big.txt {text}", inputs=[file]))
    report = site.report(task)
    assert report.outcome == "success"
    assert report.output is None
    assert len(site.outputs[task]) == report.output_bytes
    assert names_in(bytes(site.outputs[task])) == ["big.txt"]
    assert site.output_starts == [0, 100_000]
    ranges = [asked for digest, asked in site.blob_requests if digest == file.digest]
    assert ranges[0] == ""
    assert int(ranges[1].removeprefix("bytes=").rstrip("-")) > 0
    site.report(site.give(fake("echo again", inputs=[file])))
    assert len([1 for digest, _ in site.blob_requests if digest == file.digest]) == len(ranges)


def test_layers_are_fetched_once_and_shared(machine: Machine, site: ScriptedSite) -> None:
    machine.attach()
    base = layer(bin=b"base" * 10_000)
    images = [site.add_image(base, layer(app=name)) for name in (b"one", b"two")]
    machine.run()
    for image in (images[0], images[1], images[0]):
        task = site.give(fake("echo hi"), "science/tool".replace("/", "-"), image)
        assert site.report(task).outcome == "success"
    asked = [digest for digest, _ in site.blob_requests]
    assert len(asked) == len(set(asked)) == 2 + 2 + 3


def test_a_lying_digest_stops_the_task_before_anything_runs(machine: Machine, site: ScriptedSite) -> None:
    machine.attach()
    good = layer(bin=b"harmless")
    image = site.add_image(good)
    lie = layer(bin=b"Harmful!")
    assert len(lie) == len(good)
    (digest,) = [digest for digest, data in site.blobs.items() if data == good]
    site.blobs[digest] = lie
    machine.run()
    report = site.report(site.give(fake("echo hi"), "tool", image))
    assert (report.outcome, report.cause) == ("error", "digest-mismatch")
    assert not site.logs
    assert "running" not in machine.log()


def test_ctrl_c_gives_everything_back_and_leaves_nothing(machine: Machine, site: ScriptedSite) -> None:
    machine.attach()
    agent = machine.run()
    running, waiting = site.give(fake("sleep 600", limits=Limits(cpus=2.0))), site.give(fake("sleep 600"))
    site.until_phase(running, "running")
    agent.send_signal(signal.SIGINT)
    assert agent.wait(10) == 130
    report = site.report(running)
    assert (report.outcome, report.cause) == ("abandoned", "owner-stopped")
    assert "giving 1 task(s) back" in machine.log()
    assert not machine.leftovers()
    assert waiting not in site.reports


def test_sigterm_leaves_tasks_running_for_the_next_start(machine: Machine, site: ScriptedSite) -> None:
    machine.attach()
    agent = machine.run()
    task = site.give(fake("sleep 600"))
    site.until_phase(task, "running")
    agent.terminate()
    assert agent.wait(10) == 0
    assert "1 task(s) go on running" in machine.log()
    assert task not in site.reports
    said = len(site.turns)
    again = machine.run("--until-idle", "0.3")
    site.until(lambda site: _phase(site.turns[said:], task) == "running", "finding it again")
    site.cancel(task)
    assert again.wait(20) == 0
    assert not machine.leftovers()


def test_a_draining_agent_finishes_what_runs(machine: Machine, site: ScriptedSite) -> None:
    machine.attach()
    agent = machine.run("--drain")
    task = site.give(fake("sleep 3"))
    site.until_phase(task, "running")
    agent.terminate()
    site.until(lambda site: site.turns[-1].want is None, "no more asking")
    late = site.give(fake("echo late"))
    assert agent.wait(10) == 0
    assert site.report(task).outcome == "success"
    assert late not in site.reports


def test_an_unknown_key_ends_the_agent_with_advice(machine: Machine, site: ScriptedSite) -> None:
    machine.attach()
    agent = machine.run()
    task = site.give(fake("sleep 600"))
    site.until_phase(task, "running")
    with site.lock:
        site.knows_key = False
        site.newest += 1
        site.lock.notify_all()
    assert agent.wait(20) == 4
    assert f"distributio host attach {site.url}" in machine.log()
    assert not machine.leftovers()


def test_the_doctor_finds_what_is_wrong(machine: Machine, site: ScriptedSite) -> None:
    findings = json.loads(machine.say("doctor", "--runner", "fake", "-o", "json", expect=1))
    assert {one["name"]: one["ok"] for one in findings}["site"] is False
    machine.attach()
    assert "ok       site: Scripted answers" in machine.say("doctor")
    (machine.data / "policy.toml").write_text("cpu = 2\n")
    said = machine.say("doctor", expect=1)
    assert "problem  policy: policy.toml: Object contains unknown field `cpu`" in said
    assert "cpu = 2" not in machine.say("run", expect=2)
