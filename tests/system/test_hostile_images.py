"""Jobs that mean harm, in real containers: each is contained, told by the right cause, and leaves the host as it was."""

import io
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.runner import Candidate, PythonCommands, python
from distributio.agent.runners import selftest
from distributio.agent.runners.container import ContainerRunner
from distributio.agent.runners.contract import Image, Phase, RunnerError
from distributio.wire.native import Limits
from distributio.wire.results_tar import Bounds, verify
from image_fixture import python_image_layout

pytestmark = pytest.mark.system

MEGABYTE = 1 << 20
SMALL = Limits(memory_bytes=96 * MEGABYTE, disk_bytes=40 * MEGABYTE, processes=40, wall_seconds=20, log_bytes=MEGABYTE)


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Candidate]:
    """A container runner with a real image."""
    folder = tmp_path_factory.mktemp("hostile")
    runner = ContainerRunner(folder / "data")
    yield Candidate(lambda: runner, PythonCommands(), python_image_layout(folder / "image"), folder / "slots")
    runner.uninstall()


@pytest.fixture
def host(containers: Candidate) -> Iterator[Candidate]:
    """The runner. Afterwards an ordinary job must succeed and nothing may be left."""
    yield containers
    progress, log, _ = containers.run(containers.commands.echo("still well"))
    assert (progress.outcome, log) == ("success", b"still well\n")
    containers.tidy()
    assert list(containers.runner.leftovers()) == []


def test_a_fork_bomb_meets_its_limit(host: Candidate) -> None:
    progress, log, _ = host.run(
        python(
            "import os, sys, time\n"
            "born = 0\n"
            "try:\n"
            "    while True:\n"
            "        if os.fork() == 0: time.sleep(30); os._exit(0)\n"
            "        born += 1\n"
            "except OSError: print(born, flush=True); sys.exit(1)"
        ),
        limits=SMALL,
    )
    assert progress.outcome == "failed"
    assert progress.cause == "process-limit" if holds(host, "processes") else "exit-code"
    assert 5 < int(log) < SMALL.processes


def test_a_memory_bomb_meets_its_limit(host: Candidate) -> None:
    progress, _, _ = host.run(python("b = bytearray()\nwhile True: b += bytes(1 << 20)"), limits=SMALL)
    assert (progress.outcome, progress.cause) == ("failed", "memory-limit")


def test_a_memory_bomb_of_many_processes_meets_its_limit(host: Candidate) -> None:
    progress, _, _ = host.run(
        python("import os, time\nfor _ in range(3): os.fork()\nb = bytes([1]) * (40 << 20)\ntime.sleep(10)\nos.wait()"),
        limits=SMALL,
    )
    assert (progress.outcome, progress.cause) == ("failed", "memory-limit")


FILL = """
import os
os.makedirs({place!r}, exist_ok=True)
os.chdir({place!r})
{before}
for n in range(3000):
    with open(str(n), 'wb') as out: out.write(bytes(1 << 20))
"""


@pytest.mark.parametrize(
    "before",
    [
        "",
        "os.mkdir('d'); os.chdir('d'); os.chmod('..', 0)",
        "for _ in range(400): os.mkdir('x' * 20); os.chdir('x' * 20)",
    ],
    ids=["openly", "behind a closed door", "deeper than paths are long"],
)
def test_filling_the_results_meets_the_disk_limit(host: Candidate, before: str) -> None:
    progress, _, handle = host.run(python(FILL.format(place="/root/shared/results", before=before)), limits=SMALL)
    assert (progress.outcome, progress.cause) == ("failed", "disk-limit")
    assert host.results(handle) == {}


def test_filling_a_writable_root_meets_the_disk_limit(host: Candidate) -> None:
    progress, _, _ = host.run(python(FILL.format(place="/opt", before="")), limits=SMALL, writable_root=True)
    assert (progress.outcome, progress.cause) == ("failed", "disk-limit")


def test_one_large_file_and_a_hole_meet_the_disk_limit(host: Candidate) -> None:
    large = "out = open('/root/shared/results/large', 'wb')\nfor _ in range(300): out.write(bytes(1 << 20))"
    progress, log, _ = host.run(python(large), limits=SMALL)
    # The kernel refuses the write and the supervisor sees the size: whichever is first ends it.
    assert progress.outcome == "failed"
    assert progress.cause == "disk-limit" or (progress.cause == "exit-code" and b"File too large" in log)
    holes = "for n in range(5): open(f'/root/shared/results/{n}', 'wb').truncate(30 << 20)"
    progress, _, handle = host.run(python(holes), limits=SMALL)
    assert (progress.outcome, progress.cause) == ("failed", "disk-limit")
    assert host.results(handle) == {}


def test_no_other_place_takes_more_than_its_share(host: Candidate) -> None:
    progress, log, _ = host.run(
        python(
            "import errno, os, sys\n"
            "for place in ('/', '/root', '/etc', '/usr', '/tmp', '/var/tmp', '/run', '/dev', '/dev/shm', '/dev/mqueue',\n"
            "              '/proc', '/sys', '/home', '/mnt'):\n"
            "    size = 0\n"
            "    try:\n"
            "        with open(place + '/fill', 'wb') as out:\n"
            "            while size < 500: out.write(bytes(1 << 20)); out.flush(); size += 1\n"
            "    except OSError: pass\n"
            "    try: os.unlink(place + '/fill')\n"
            "    except OSError: pass\n"
            "    print(place, size, flush=True)\n"
            "    if size >= 200: sys.exit(9)\n"
        ),
        limits=Limits(memory_bytes=384 * MEGABYTE, wall_seconds=20),
    )
    assert progress.outcome == "success", log.decode()
    assert b"/ 0\n/root 0\n/etc 0\n/usr 0\n" in log


def test_an_endless_log_is_cut_and_ended(host: Candidate) -> None:
    progress, log, handle = host.run(python("while True: print('spam' * 1000)"), limits=SMALL)
    assert (progress.outcome, progress.cause, len(log)) == ("failed", "log-limit", SMALL.log_bytes)
    assert (Path(handle["slot"]) / "log").stat().st_size == SMALL.log_bytes


def test_spinning_for_ever_meets_the_wall_limit(host: Candidate) -> None:
    command = python(
        "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\n"
        "while True: pass"
    )
    progress, _, _ = host.run(command, limits=Limits(wall_seconds=1, cpus=0.5))
    assert (progress.outcome, progress.cause) == ("failed", "wall-limit")
    if holds(host, "cpu"):
        assert progress.cpu_seconds < 0.9


def test_nothing_of_the_hosts_network_is_reached(host: Candidate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0distributio-test")
        abstract.listen()
        progress, log, _ = host.run(
            python(
                "import socket\n"
                "def attempt(name, action):\n"
                "    try: action()\n"
                "    except OSError: return\n"
                "    print(name, flush=True)\n"
                f"attempt('loopback', lambda: socket.create_connection(('127.0.0.1', {listener.getsockname()[1]}), 1))\n"
                "attempt('abstract', lambda: socket.socket(socket.AF_UNIX).connect('\\0distributio-test'))\n"
                "attempt('outside', lambda: socket.create_connection(('192.0.2.1', 80), 1))\n"
                "attempt('name', lambda: socket.getaddrinfo('example.org', 80))\n"
                "for family in (3, 4, 16, 17, 30, 38, 40):\n"
                "    attempt(f'family {family}', lambda: socket.socket(family, socket.SOCK_RAW))\n"
                "    attempt(f'family {family}', lambda: socket.socket(family, socket.SOCK_STREAM))\n"
                "attempt('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))\n"
                "print('tried')"
            )
        )
    assert (progress.outcome, log) == ("success", b"tried\n")


def test_the_kernel_is_closed_where_jobs_have_no_business(host: Candidate) -> None:
    progress, log, _ = host.run(
        python(
            "import ctypes, os, platform\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "intel = platform.machine() == 'x86_64'\n"
            "numbers = {'unshare': (272, 97), 'keyctl': (250, 219), 'io_uring_setup': (425, 425), 'bpf': (321, 280),\n"
            "           'perf_event_open': (298, 241), 'mount': (165, 40), 'ptrace': (101, 117), 'userfaultfd': (323, 282),\n"
            "           'setns': (308, 268), 'kexec_load': (246, 104), 'init_module': (175, 105), 'add_key': (248, 217)}\n"
            "for name, pair in numbers.items():\n"
            "    ctypes.set_errno(0)\n"
            "    got = libc.syscall(pair[0 if intel else 1], 0x10000000, 0, 0, 0, 0)\n"
            "    if got != -1 or ctypes.get_errno() != 1: print(name, got, ctypes.get_errno())\n"
            "pid = libc.syscall(56 if intel else 220, 0x10000000 | 17, 0, 0, 0, 0)\n"
            "if pid == 0: os._exit(0)\n"
            "if pid > 0: print('clone made a user namespace')\n"
            "try: os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0)); print('mknod')\n"
            "except OSError: pass\n"
            "print(open('/proc/self/status').read().count('CapEff:\\t0000000000000000'))"
        )
    )
    assert (progress.outcome, log) == ("success", b"1\n")


def test_files_of_the_host_are_not_there(host: Candidate, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    os.chmod(secret, 0o644)
    kernel = ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper", "/proc/kcore")
    progress, log, _ = host.run(
        python(
            "import os\n"
            f"print(os.path.exists({str(secret)!r}), os.path.exists({str(Path(__file__))!r}))\n"
            f"for path in {kernel!r}:\n"
            "    try: open(path, 'r+b').write(b'x'); print('wrote', path)\n"
            "    except OSError: pass\n"
            "print(sorted(int(p) for p in os.listdir('/proc') if p.isdigit()))"
        )
    )
    assert (progress.outcome, log) == ("success", b"False False\n[1]\n")


def test_links_in_the_results_lead_nowhere(host: Candidate) -> None:
    progress, _, handle = host.run(
        python(
            "import os, socket\n"
            "os.chdir('/root/shared/results')\n"
            "os.symlink('/etc/passwd', 'passwd'); os.symlink('/', 'root'); os.symlink('../../../../etc', 'up')\n"
            "os.mkfifo('pipe'); socket.socket(socket.AF_UNIX).bind('sock')\n"
            "open('good', 'w').write('kept'); os.link('good', 'twice')\n"
            "open('bad\\nname', 'w').write('x'); open('suid', 'w').write('s'); os.chmod('suid', 0o4755)"
        )
    )
    assert progress.outcome == "success"
    assert host.results(handle) == {"good": b"kept", "twice": b"kept", "suid": b"s"}


def test_results_that_are_a_link_themselves_show_nothing_of_the_host(host: Candidate) -> None:
    progress, _, handle = host.run(
        python("import os; os.rename('/root/shared', '/root/other'); os.symlink('/etc', '/root/shared')"),
        writable_root=True,
    )
    assert progress.phase is Phase.ENDED
    assert host.results(handle) == {}


def test_an_image_whose_volume_is_a_mount_of_the_hosts_is_refused(host: Candidate, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    shutil.copytree(host.image.layout, layout)
    image = changed(layout, host.image.manifest_digest, Volumes={"/etc:/stolen": {}}, User="65534")
    host.runner.prepare(image)
    own = Candidate(host.make, host.commands, image, host.slots)
    with pytest.raises(RunnerError) as refusal:
        own.start(python("pass"))
    assert refusal.value.code == "image-bad"
    host.runner.forget_image(image.manifest_digest)


def test_an_images_volumes_are_counted(host: Candidate, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    shutil.copytree(host.image.layout, layout)
    image = changed(layout, host.image.manifest_digest, Volumes={"/data": {}}, Healthcheck={"Test": ["CMD", "/bad"]})
    own = Candidate(host.make, host.commands, image, host.slots)
    progress, _, _ = own.run(python(FILL.format(place="/data", before="")), limits=SMALL)
    assert (progress.outcome, progress.cause) == ("failed", "disk-limit")
    own.tidy()
    host.runner.forget_image(image.manifest_digest)


def test_a_job_cannot_pass_as_the_engine(host: Candidate) -> None:
    progress, _, _ = host.run(python("import sys; print('Error: no such image', file=sys.stderr); sys.exit(125)"))
    assert (progress.outcome, progress.cause, progress.exit_code) == ("failed", "exit-code", 125)


def test_twelve_jobs_four_at_a_time_leave_nothing(host: Candidate) -> None:
    waiting = list(range(12))
    running: list[tuple[int, dict[str, object]]] = []
    done = set()
    while waiting or running:
        while waiting and len(running) < 4:
            number = waiting.pop()
            running.append((number, host.start(host.commands.write("n", str(number)))))
        number, handle = running.pop(0)
        progress = host.wait(handle)
        assert progress.outcome == "success", progress
        output = io.BytesIO()
        host.runner.collect(handle, output)
        done.add(verify(io.BytesIO(output.getvalue()), Bounds()).digest)
        host.runner.remove(handle)
    assert len(done) == 12
    host.handles.clear()
    assert not [entry for entry in os.listdir(tempfile.gettempdir()) if entry.startswith("distributio-selftest")]


def holds(host: Candidate, protection: str) -> bool:
    """Whether the kernel itself holds a limit here; without it the runner does what it can."""
    return protection in host.runner.probe().sandbox


def changed(layout: Path, manifest_digest: str, **config: object) -> Image:
    """An image like another, with other settings in its configuration."""
    blobs = layout / "blobs" / "sha256"
    manifest = json.loads((blobs / manifest_digest[7:]).read_bytes())
    document = json.loads((blobs / manifest["config"]["digest"][7:]).read_bytes())
    document["config"] = document.get("config", {}) | config
    content = json.dumps(document).encode()
    manifest["config"] |= {"digest": put(blobs, content), "size": len(content)}
    return Image(manifest_digest=put(blobs, json.dumps(manifest).encode()), layout=layout)


def put(blobs: Path, content: bytes) -> str:
    """Keep a blob by its digest."""
    digest = selftest.digest_of(content)
    (blobs / digest.removeprefix("sha256:")).write_bytes(content)
    return digest
