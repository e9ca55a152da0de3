"""The program for BOINC clients is whole without any package, and speaks to the client as BOINC programs do."""

import base64
import json
import mmap
import os
import subprocess
import sys
import threading
import time
import types
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pytest

from distributio.agent import plain_structs
from distributio.agent.boinc_slot import Slot, SlotTaken
from distributio.agent.boinc_task import ContainerTask, read_assignment, words_of
from distributio.agent.runners.contract import Capabilities, Handle, Image, Phase, Progress, RunnerError
from distributio.server import boinc_bundle
from distributio.wire import native
from distributio.wire.native import Assignment, Input, Limits, Spec

ASSIGNMENT = Assignment(
    task=7,
    job="1.1",
    project="default",
    spec=Spec(
        image="a",
        command=["x", "é"],
        limits=Limits(cpus=2),
        inputs=[Input(path="/i", digest="sha256:" + "0" * 64, size_bytes=1)],
    ),
    image_manifest="sha256:" + "1" * 64,
)


@pytest.fixture
def slot_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "slots" / "0"
    folder.mkdir(parents=True)
    project = tmp_path / "projects" / "site"
    project.mkdir(parents=True)
    (folder / "init_data.xml").write_text(
        f"<app_init_data>\n<project_dir>{project}</project_dir>\n<client_pid>{os.getpid()}</client_pid>\n"
        "<wu_cpu_time>1.5</wu_cpu_time>\n<project_preferences>\n<bad & xml\n</project_preferences>\n</app_init_data>\n"
    )
    (folder / "boinc_mmap_file").write_bytes(bytes(8192))
    return folder


def word(assignment: Assignment) -> str:
    return base64.urlsafe_b64encode(zlib.compress(msgspec.json.encode(assignment))).decode()


@pytest.fixture
def slot(slot_folder: Path) -> Iterator[Slot]:
    slot = Slot(slot_folder)
    yield slot
    slot.close()


# --- one file -----------------------------------------------------------------------------------------------------


def test_equal_sources_make_equal_bytes() -> None:
    assert boinc_bundle.build() == boinc_bundle.build()


def test_the_program_needs_nothing_but_python(slot_folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "projects" / "site" / "program.pyz"
    program.write_bytes(boinc_bundle.build())
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(program), f"--assignment={word(ASSIGNMENT)}"],
        cwd=slot_folder, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    # There is no engine on that path: the task is given back, and says why.
    assert done.returncode == 206, done.stderr
    assert (slot_folder / "boinc_finish_called").read_text() == "206\n"
    words = json.loads(done.stderr.rpartition("##distributio report ")[2])
    assert (words["outcome"], words["cause"]) == ("abandoned", "runner-missing")
    assert "podman" in words["detail"]


@pytest.mark.parametrize("value", [ASSIGNMENT, Spec(), Limits(gpus=1)])
def test_plain_structs_read_what_msgspec_wrote(value: Any) -> None:
    plain = _plain_module()
    kind = getattr(plain, type(value).__name__)
    read = plain_structs.json.decode(msgspec.json.encode(value), type=kind)
    assert msgspec.json.decode(plain_structs.json.encode(read), type=type(value)) == value


def _plain_module() -> Any:
    """wire.native over plain structs instead of msgspec."""
    module = types.ModuleType("plain_native")
    sys.modules["plain_native"] = module
    kept = {name: sys.modules.get(name) for name in ("msgspec", "msgspec.structs")}
    sys.modules["msgspec"] = plain_structs
    sys.modules["msgspec.structs"] = plain_structs.structs
    try:
        exec(Path(native.__file__).read_text(), module.__dict__)
    finally:
        for name, known in kept.items():
            if known is not None:
                sys.modules[name] = known
    return module


@pytest.mark.parametrize(
    ("data", "kind"), [(b"{", int), (b'"a"', int), (b"true", int), (b"1", str), (b"[1]", list[str]), (b"null", str)]
)
def test_plain_structs_refuse_what_msgspec_refuses(data: bytes, kind: Any) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(data, type=kind)
    with pytest.raises(plain_structs.DecodeError):
        plain_structs.json.decode(data, type=kind)


# --- the slot -----------------------------------------------------------------------------------------------------


def test_only_one_process_works_in_a_slot(slot_folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from distributio.agent.boinc_slot import Slot\n"
        "slot = Slot(Path.cwd()); print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], cwd=slot_folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(SlotTaken):
            Slot(slot_folder)
    finally:
        other.communicate()


def test_a_name_leads_to_where_the_file_really_is(slot: Slot, slot_folder: Path) -> None:
    (slot_folder / "in").write_text("<soft_link>../../projects/site/f_1</soft_link>\n")
    (slot_folder / "plain").write_text("text")
    assert slot.resolve("in") == slot_folder.parent.parent / "projects" / "site" / "f_1"
    assert slot.resolve("plain") == slot_folder / "plain"
    assert slot.resolve("missing") == slot_folder / "missing"


def test_messages_wait_until_they_are_read(slot: Slot, slot_folder: Path) -> None:
    slot.report(2.0, 1.0, 0.25)
    with open(slot_folder / "boinc_mmap_file", "r+b") as file, mmap.mmap(file.fileno(), 8192) as memory:
        said = memory[5 * 1024 + 1 : 6 * 1024].split(b"\0")[0].decode()
        assert "<current_cpu_time>3.500000e+00</current_cpu_time>" in said
        assert "<fraction_done>2.500000e-01</fraction_done>" in said
        assert not slot.put("status", "more")
        memory[5 * 1024] = 0
        assert slot.put("status", "more")
        memory[1 : 1 + 11] = b"<suspend/>\0"
        memory[0] = 1
        assert slot.take("control") == "<suspend/>"
        assert slot.take("control") == ""


# --- the task -----------------------------------------------------------------------------------------------------


class Scripted:
    """A runner whose every move a test chooses."""

    name = "container"

    def __init__(self) -> None:
        self.did: list[str] = []
        self.progress = [Progress(phase=Phase.RUNNING), Progress(phase=Phase.ENDED, outcome="success", exit_code=0)]
        self.works = True
        self.has = False
        self.left: list[Handle] = []

    def probe(self) -> Capabilities:
        return Capabilities(works=self.works, problem="" if self.works else "no engine")

    def has_image(self, manifest_digest: str) -> bool:
        return self.has

    def prepare(self, image: Image) -> None:
        self.did.append("prepare " + " ".join(sorted(path.name for path in (image.layout / "blobs/sha256").iterdir())))

    def forget_image(self, manifest_digest: str) -> None: ...

    def start(self, assignment: Assignment, inputs: dict[str, Path], slot: Path) -> Handle:
        self.did.append("start")
        return {"name": "c1", "slot": str(slot)}

    def poll(self, handle: Handle) -> Progress:
        return self.progress.pop(0) if len(self.progress) > 1 else self.progress[0]

    def read_log(self, handle: Handle, offset: int, most: int) -> bytes:
        return b"said\n"[offset : offset + most]

    def suspend(self, handle: Handle) -> bool:
        self.did.append("suspend")
        return True

    def resume(self, handle: Handle) -> None:
        self.did.append("resume")

    def stop(self, handle: Handle, *, at_once: bool = False) -> None:
        self.did.append("stop")

    def collect(self, handle: Handle, output: BinaryIO) -> int:
        output.write(b"tar")
        return 1

    def remove(self, handle: Handle) -> None:
        self.did.append(f"remove {handle['name']}")

    def leftovers(self) -> Any:
        return iter(self.left)


@pytest.fixture
def runner() -> Scripted:
    return Scripted()


@pytest.fixture
def task(slot: Slot, slot_folder: Path, runner: Scripted) -> ContainerTask:
    (slot_folder / "blobs").mkdir()
    (slot_folder / "blobs" / ("1" * 64)).write_text("<soft_link>../../projects/site/f_1</soft_link>\n")
    return ContainerTask(slot, ASSIGNMENT, runner, slot_folder.parent.parent)


def test_a_task_is_read_from_a_word_or_a_file(slot: Slot, slot_folder: Path) -> None:
    assert read_assignment([f"--assignment={word(ASSIGNMENT)}"], slot) == ASSIGNMENT
    (slot_folder / "assignment").write_bytes(zlib.compress(msgspec.json.encode(ASSIGNMENT)))
    assert read_assignment(["--assignment-file=assignment"], slot) == ASSIGNMENT
    with pytest.raises(RunnerError):
        read_assignment([], slot)


def test_a_task_goes_from_its_image_to_its_results(task: ContainerTask, runner: Scripted) -> None:
    handle = task.begin()
    progress = task.follow(handle)
    assert progress is not None
    words = task.conclude(handle, progress)
    assert runner.did == ["prepare " + "1" * 64, "start", "remove c1"]
    assert (words["outcome"], words["exit_code"]) == ("success", 0)
    assert (task.slot.folder / "results.tar").read_bytes() == b"tar"
    assert (task.slot.folder / "log.txt").read_bytes() == b"said\n"


def test_a_container_is_found_again(task: ContainerTask, runner: Scripted) -> None:
    runner.has = True
    task.begin()
    task.begin()
    assert runner.did == ["start", "resume"]


def test_what_the_machine_lost_is_started_anew_and_not_for_ever(task: ContainerTask, runner: Scripted) -> None:
    runner.has = True
    runner.progress = [Progress(phase=Phase.ENDED, outcome="error", cause="lost")]
    for _ in range(3):
        task.begin()
    with pytest.raises(RunnerError, match="lost 3 times"):
        task.begin()
    assert runner.did.count("start") == 3


def test_what_the_client_forgot_is_removed(task: ContainerTask, runner: Scripted, tmp_path: Path) -> None:
    runner.has = True
    task.begin()
    runner.left = [
        {"name": "c1", "slot": str(task.run_folder)},
        {"name": "c0", "slot": str(task.run_folder)},
        {"name": "old", "slot": str(tmp_path / "gone" / "run")},
    ]
    task.begin()
    assert runner.did == ["start", "remove c0", "remove old", "resume"]


def test_a_wish_to_end_suspends_the_container_and_an_abort_removes_it(task: ContainerTask, runner: Scripted) -> None:
    runner.has = True
    runner.progress = [Progress(phase=Phase.RUNNING)]
    handle = task.begin()
    task.slot.quit.set()
    assert task.follow(handle) is None
    assert runner.did == ["start", "suspend"]
    task.slot.abort.set()
    runner.progress = [Progress(phase=Phase.LOST)]
    assert task.follow(handle) is None
    assert runner.did == ["start", "suspend", "stop", "remove c1"]


def test_a_suspended_task_waits(task: ContainerTask, runner: Scripted) -> None:
    runner.has = True
    runner.progress = [Progress(phase=Phase.RUNNING)]
    handle = task.begin()
    task.slot.suspended.set()
    following = threading.Thread(target=lambda: task.follow(handle))
    following.start()
    _until(lambda: "suspend" in runner.did)
    task.slot.suspended.clear()
    _until(lambda: "resume" in runner.did)
    task.slot.quit.set()
    following.join(10)
    assert not following.is_alive()


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_host_without_an_engine_says_so(task: ContainerTask, runner: Scripted) -> None:
    runner.works = False
    with pytest.raises(RunnerError) as refused:
        task.begin()
    assert refused.value.code == "runner-missing"


def test_last_words_are_on_one_line() -> None:
    assert "\n" not in words_of("error", "engine-error", "a\nb")["detail"]
