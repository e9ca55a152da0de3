"""The fake and the container runner pass one examination; what only containers can do is examined besides."""

import hashlib
import io
import json
import os
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contract.runner import Candidate, Commands, PythonCommands, RunnerExamination, python
from distributio.agent.runners import selftest
from distributio.agent.runners.container import ContainerRunner
from distributio.agent.runners.contract import Handle, Image, Phase, Runner, RunnerError
from distributio.agent.runners.fake import FakeRunner
from distributio.wire.native import Input, Limits
from image_fixture import python_image_layout


class FakeCommands(Commands):
    """What the fake runner understands."""

    def echo(self, *lines: str, pause: float = 0.0) -> list[str]:
        return [word for line in lines for word in ("echo", line, ";", "sleep", str(pause), ";")]

    def sleep(self, seconds: float) -> list[str]:
        return ["sleep", str(seconds)]

    def exit(self, code: int) -> list[str]:
        return ["exit", str(code)]

    def write(self, path: str, text: str) -> list[str]:
        return ["write", path, text]

    def progress(self, fraction: float, seconds: float) -> list[str]:
        return ["progress", str(fraction), ";", "sleep", str(seconds)]


class TestFake(RunnerExamination):
    @pytest.fixture
    def candidate(self, tmp_path: Path) -> Candidate:
        layout = tmp_path / "layout"
        image = Image(manifest_digest=selftest.write_layout(layout, "amd64"), layout=layout)
        return Candidate(lambda: FakeRunner(tmp_path), FakeCommands(), image, tmp_path / "slots")

    def test_a_host_can_be_made_to_fail(self, exam: Candidate) -> None:
        progress, _, _ = exam.run(["echo", "so far", ";", "fail-host"])
        assert (progress.outcome, progress.cause) == ("error", "engine-error")

    def test_it_claims_to_be_what_it_is_told(self, tmp_path: Path) -> None:
        assert FakeRunner(tmp_path, name="container").name == "container"


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Candidate]:
    """A container runner with a real image; engine storage and all are removed afterwards."""
    folder = tmp_path_factory.mktemp("containers")
    image = python_image_layout(folder / "image")

    def make() -> Runner:
        return ContainerRunner(folder / "data", grace_seconds=1.0)

    yield Candidate(make, PythonCommands(), image, folder / "slots")
    reset = make()
    assert isinstance(reset, ContainerRunner)
    reset.uninstall()


@pytest.mark.system
class TestContainer(RunnerExamination):
    @pytest.fixture
    def candidate(self, containers: Candidate) -> Candidate:
        return containers

    # --- what the job asks for --------------------------------------------------------------------------------

    def test_inputs_are_where_they_were_asked_for(self, exam: Candidate, tmp_path: Path) -> None:
        single, folder = tmp_path / "single", tmp_path / "folder.tar"
        single.write_bytes(b"one file")
        with tarfile.open(folder, "w") as tar:
            for name, kind in (("sub", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE), ("sub/inner", tarfile.REGTYPE)):
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.size = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else "", 0
                info.mode = 0o755
                content = b"#!inner" if kind == tarfile.REGTYPE else b""
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        places = [("/data/one.txt", single, False), ("/work/set", folder, True), ("/tmp/in/two.txt", single, False)]
        given, files = [], {}
        for path, file, is_folder in places:
            digest = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
            files[digest] = file
            given.append(Input(path=path, digest=digest, size_bytes=file.stat().st_size, is_folder=is_folder))
        progress, log, _ = exam.run(
            python(
                "import os, stat\n"
                "print(open('/data/one.txt').read(), open('/tmp/in/two.txt').read(), os.listdir('/work/set'))\n"
                "print(open('/work/set/sub/inner').read(), os.access('/work/set/sub/inner', os.X_OK))\n"
                "open('/tmp/mine', 'w').write('x')\n"
                "try: open('/data/one.txt', 'w')\n"
                "except OSError as refused: print(refused.strerror)"
            ),
            files,
            inputs=given,
        )
        assert progress.outcome == "success", log
        assert log == b"one file one file ['sub']\n#!inner True\nRead-only file system\n"

    def test_a_writable_input_is_a_copy(self, exam: Candidate, tmp_path: Path) -> None:
        file = tmp_path / "notes"
        file.write_bytes(b"mine")
        digest = "sha256:" + hashlib.sha256(b"mine").hexdigest()
        given = [Input(path="/desk/notes", digest=digest, size_bytes=4, read_only=False)]
        command = python("open('/desk/notes', 'a').write('!'); print(open('/desk/notes').read())")
        progress, log, _ = exam.run(command, {digest: file}, inputs=given)
        assert (progress.outcome, log, file.read_bytes()) == ("success", b"mine!\n", b"mine")

    def test_the_environment_folder_and_entrypoint_are_the_jobs(self, exam: Candidate) -> None:
        odd = {"A": "blank and 'quote' \" $HOME ü\nline", "B": ""}
        _, log, _ = exam.run(
            ["-c", "import os, sys; print(ascii(os.environ['A']), os.environ['B'], os.getcwd(), sys.argv[1])", "--rm"],
            entrypoint=["python"],
            environment=odd,
            workdir="/usr",
        )
        assert log.decode() == f"{odd['A']!a}  /usr --rm\n"

    def test_results_of_another_user_come_back(self, exam: Candidate) -> None:
        command = python(
            "import os; print(os.getuid()); open(os.environ['DISTRIBUTIO_RESULTS'] + '/r', 'w').write('r')\n"
            "os.chmod(os.environ['DISTRIBUTIO_RESULTS'] + '/r', 0)"
        )
        progress, log, handle = exam.run(command, user="1234:1234")
        assert (progress.outcome, log) == ("success", b"1234\n")
        assert exam.results(handle) == {"r": b"r"}

    def test_the_root_is_writable_only_on_request(self, exam: Candidate) -> None:
        command = python("open('/etc/new', 'w').write('x')")
        assert exam.run(command)[0].outcome == "failed"
        assert exam.run(command, writable_root=True)[0].outcome == "success"

    def test_tmpfs_shared_memory_and_limits_are_as_asked(self, exam: Candidate) -> None:
        command = python(
            "import os, resource\n"
            "size = lambda p: os.statvfs(p).f_blocks * os.statvfs(p).f_frsize >> 20\n"
            "print(size('/scratch'), size('/dev/shm'), resource.getrlimit(resource.RLIMIT_NOFILE))"
        )
        asked = {"tmpfs": {"/scratch": "rw,size=24m"}, "shm_bytes": 16 << 20, "ulimits": {"nofile": "100:200"}}
        assert exam.run(command, **asked)[1] == b"24 16 (100, 200)\n"

    def test_ordinary_programs_run_in_the_sandbox(self, exam: Candidate) -> None:
        progress, log, _ = exam.run(
            python(
                "import asyncio, concurrent.futures, multiprocessing, socket, sqlite3, subprocess, tempfile, threading\n"
                "def work(n): return n * n\n"
                "if __name__ == '__main__':\n"
                "    pool = multiprocessing.get_context('fork').Pool(2); print(pool.map(work, [1, 2, 3])); pool.close()\n"
                "    with concurrent.futures.ThreadPoolExecutor(4) as threads: print(sum(threads.map(work, range(9))))\n"
                "    print(subprocess.run(['python', '-c', 'print(7)'], capture_output=True).stdout)\n"
                "    base = sqlite3.connect(tempfile.mktemp()); base.execute('create table t(x)'); print('sqlite')\n"
                "    one, other = socket.socketpair(); one.send(b'hi'); print(other.recv(2))\n"
                "    server = socket.create_server(('127.0.0.1', 0))\n"
                "    print(socket.create_connection(server.getsockname()).getpeername()[0])\n"
                "    async def main(): return await asyncio.to_thread(work, 5)\n"
                "    print(asyncio.run(main()))\n"
            )
        )
        assert progress.outcome == "success", log.decode()
        assert log == b"[1, 4, 9]\n204\nb'7\\n'\nsqlite\nb'hi'\n127.0.0.1\n25\n"

    @pytest.mark.parametrize(
        "wish",
        [
            {"inputs": [Input(path="/etc:/host", digest="sha256:" + "0" * 64, size_bytes=1, read_only=False)]},
            {"inputs": [Input(path="relative", digest="sha256:" + "0" * 64, size_bytes=1)]},
            {"inputs": [Input(path="/a/../b", digest="sha256:" + "0" * 64, size_bytes=1)]},
            {"tmpfs": {"/x:/y": ""}},
            {"tmpfs": {"/x": "suid"}},
            {"user": "--privileged"},
            {"workdir": "/a:/b"},
            {"environment": {"A=B": "c"}},
            {"environment": {"A": "\0"}},
            {"ulimits": {"nofile": "x"}},
            {"ulimits": {"rtprio": "9"}},
        ],
    )
    def test_wishes_that_would_mean_something_else_are_refused(self, exam: Candidate, wish: dict[str, object]) -> None:
        with pytest.raises(RunnerError) as refusal:
            exam.start(python("pass"), {"sha256:" + "0" * 64: Path("/dev/null")}, **wish)
        assert refusal.value.code == "spec-bad"

    def test_the_network_is_the_owners_to_lend(self, exam: Candidate) -> None:
        with pytest.raises(RunnerError) as refusal:
            exam.start(python("pass"), network=True)
        assert refusal.value.code == "network-not-allowed"

    def test_an_image_for_another_machine_is_refused(self, exam: Candidate, tmp_path: Path) -> None:
        other = "arm64" if selftest.host_platform() == "linux/amd64" else "amd64"
        image = Image(manifest_digest=selftest.write_layout(tmp_path, other), layout=tmp_path)
        with pytest.raises(RunnerError) as refusal:
            exam.runner.prepare(image)
        assert refusal.value.code == "image-platform"

    # --- what is measured -------------------------------------------------------------------------------------

    def test_the_log_is_readable_at_once(self, exam: Candidate) -> None:
        command = python("import time\nfor _ in range(5): print(time.time(), flush=True); time.sleep(0.2)")
        handle = exam.start(command)
        lags, offset = [], 0
        while exam.runner.poll(handle).phase is not Phase.ENDED:
            for line in exam.runner.read_log(handle, offset, 1000).splitlines(keepends=True):
                offset += len(line)
                lags.append(time.time() - float(line))
            time.sleep(0.005)
        assert len(lags) == 5
        assert min(lags) < 0.3

    def test_time_processor_and_memory_are_measured(self, exam: Candidate) -> None:
        command = python("import time\nb = bytearray(60 << 20)\nwhile time.process_time() < 0.8: pass")
        progress, _, _ = exam.run(command)
        assert 0.8 <= progress.wall_seconds < 60
        assert 0.4 < progress.cpu_seconds < 10
        assert 60 << 20 <= progress.memory_bytes < 300 << 20

    def test_what_the_self_test_saw_is_remembered(self, exam: Candidate) -> None:
        began = time.monotonic()
        assert exam.make().probe() == exam.runner.probe()
        assert time.monotonic() - began < 2.0

    # --- what may be killed -----------------------------------------------------------------------------------

    def test_a_killed_supervisor_is_replaced_and_the_work_goes_on(self, exam: Candidate) -> None:
        handle = exam.start(exam.commands.echo("one", "two", pause=0.8))
        exam.wait_for_log(handle, b"one")
        kill(supervisor_of(handle))
        progress = exam.wait(handle)
        assert progress.outcome == "success"
        assert b"two" in exam.runner.read_log(handle, 0, 1000)

    def test_a_limit_holds_for_a_supervisor_that_was_replaced(self, exam: Candidate) -> None:
        handle = exam.start(exam.commands.echo("up", "never", pause=30), limits=Limits(wall_seconds=1.5))
        exam.wait_for_log(handle, b"up")
        kill(supervisor_of(handle))
        assert exam.wait(handle).cause == "wall-limit"

    def test_a_killed_log_reader_is_replaced(self, exam: Candidate) -> None:
        handle = exam.start(exam.commands.echo("one", "two", pause=0.8))
        exam.wait_for_log(handle, b"one")
        kill(lambda words: handle["name"] in words and "--attach" in words)
        progress = exam.wait(handle)
        assert progress.outcome == "success"
        assert b"two" in exam.runner.read_log(handle, 0, 1000)

    def test_a_container_killed_from_outside_is_the_hosts_fault(self, exam: Candidate) -> None:
        handle = exam.start(exam.commands.echo("up", "never", pause=30))
        exam.wait_for_log(handle, b"up")
        kill(lambda words: words[:2] == ["python", "-c"] and "'up', 'never'" in words[2])
        progress = exam.wait(handle)
        assert (progress.outcome, progress.cause, progress.exit_code) == ("error", "killed", 137)

    def test_an_engine_killed_under_its_container_is_the_hosts_fault(self, exam: Candidate) -> None:
        handle = exam.start(exam.commands.echo("up", "more", pause=30))
        exam.wait_for_log(handle, b"up")
        kill(lambda words: words[0].endswith("conmon") and handle["name"] in words)
        progress = exam.wait(handle)
        assert progress.outcome == "error"
        assert progress.cause in ("lost", "killed", "engine-error")
        exam.runner.remove(handle)
        assert not [words for words in commands() if words[:2] == ["python", "-c"] and "'up', 'more'" in words[2]]

    def test_kindness_gives_the_command_time_to_end(self, exam: Candidate) -> None:
        handle = exam.start(
            python(
                "import signal, sys, time\n"
                "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(0)))\n"
                "print('up', flush=True); time.sleep(30)"
            )
        )
        exam.wait_for_log(handle, b"up")
        exam.runner.stop(handle)
        assert exam.wait(handle).cause == "stopped"
        assert b"saved" in exam.runner.read_log(handle, 0, 100)

    def test_kindness_ends(self, exam: Candidate) -> None:
        handle = exam.start(exam.commands.echo("up", "never", pause=30))
        exam.wait_for_log(handle, b"up")
        exam.runner.stop(handle)
        assert exam.wait(handle).cause == "stopped"

    def test_a_restart_of_the_machine_is_a_loss_not_a_success(self, exam: Candidate) -> None:
        handle = exam.start(exam.commands.echo("up", "more", pause=30))
        exam.wait_for_log(handle, b"up")
        kill(supervisor_of(handle))
        started = Path(handle["slot"]) / "started.json"
        started.write_text(json.dumps(json.loads(started.read_text()) | {"boot": "an earlier one"}))
        progress = exam.wait(handle)
        assert (progress.outcome, progress.cause) == ("error", "lost")

    def test_two_agents_on_one_machine_do_not_meet(self, exam: Candidate, tmp_path: Path) -> None:
        handle = exam.start(exam.commands.echo("up", pause=20))
        exam.wait_for_log(handle, b"up")
        other = ContainerRunner(tmp_path / "other")
        assert list(other.leftovers()) == []
        other.uninstall()
        assert exam.runner.poll(handle).phase is Phase.RUNNING


def commands() -> list[list[str]]:
    """The command lines of all processes."""
    return [words for _, words in processes()]


def processes() -> list[tuple[int, list[str]]]:
    """All processes with their command lines."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            except OSError:
                continue
            if words:
                found.append((int(entry), words))
    return found


def supervisor_of(handle: Handle) -> Callable[[list[str]], bool]:
    """Whether a command line is that of a task's supervisor."""
    return lambda words: "distributio.agent.runners.supervise" in words and words[-1] == handle["slot"]


def kill(which: Callable[[list[str]], bool]) -> None:
    """Kill the processes with such command lines, of which there is at least one."""
    matching = [pid for pid, words in processes() if which(words)]
    assert matching
    for pid in matching:
        os.kill(pid, signal.SIGKILL)
