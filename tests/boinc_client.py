"""A stock BOINC client for tests: in a folder of its own, on ports of its own, steered through its own command."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from sites import free_port, wait_for

PASSWORD = "test"
_CONFIG = """<cc_config>
<log_flags><task>1</task><sched_op_debug>1</sched_op_debug></log_flags>
<options>
<allow_multiple_clients>1</allow_multiple_clients>
<dont_contact_ref_site>1</dont_contact_ref_site>
<no_info_fetch>1</no_info_fetch>
<no_gpus>1</no_gpus>
<skip_cpu_benchmarks>1</skip_cpu_benchmarks>
<report_results_immediately>1</report_results_immediately>
<fetch_on_update>1</fetch_on_update>
<start_delay>0</start_delay>
<ncpus>2</ncpus>
</options>
</cc_config>
"""
_PREFERENCES = """<global_preferences>
<run_on_batteries>1</run_on_batteries>
<run_if_user_active>1</run_if_user_active>
<suspend_cpu_usage>0</suspend_cpu_usage>
<cpu_usage_limit>100</cpu_usage_limit>
<work_buf_min_days>0.02</work_buf_min_days>
<work_buf_additional_days>0.02</work_buf_additional_days>
<disk_max_used_gb>0</disk_max_used_gb>
<disk_max_used_pct>95</disk_max_used_pct>
<disk_min_free_gb>0.1</disk_min_free_gb>
<ram_max_used_busy_pct>90</ram_max_used_busy_pct>
<leave_apps_in_memory>0</leave_apps_in_memory>
</global_preferences>
"""


class BoincClient:
    """An installation of the client. `ask` is what a person says with boinccmd."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cc_config.xml").write_text(_CONFIG)
        (folder / "global_prefs_override.xml").write_text(_PREFERENCES)
        (folder / "gui_rpc_auth.cfg").write_text(PASSWORD)
        (folder / "gui_rpc_auth.cfg").chmod(0o600)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "BoincClient":
        """Start it and wait until it can be asked."""
        command = [
            "boinc", "--dir", str(self.folder), "--gui_rpc_port", str(self.port), "--allow_multiple_clients",
            "--no_gpus", "--no_info_fetch", "--skip_cpu_benchmarks",
            "--sched_retry_delay_min", "2", "--pers_retry_delay_min", "2",
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        with (self.folder / "output.txt").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=environment,
            )  # fmt: skip
        wait_for(lambda: self._answers(), "the client's control port")
        return self

    def _answers(self) -> bool:
        return "client version" in self.ask("--client_version", check=False).lower()

    def ask(self, *words: str, check: bool = True) -> str:
        """Say something with boinccmd."""
        done = subprocess.run(
            ["boinccmd", "--host", f"127.0.0.1:{self.port}", "--passwd", PASSWORD, *words],
            capture_output=True, text=True, timeout=60, check=False, cwd=self.folder,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"boinccmd {words}: {done.stdout} {done.stderr}"
        return done.stdout + done.stderr

    def tasks(self) -> dict[str, dict[str, str]]:
        """Its tasks by name, with what it says of each."""
        found: dict[str, dict[str, str]] = {}
        for part in re.split(r"^\d+\) -+$", self.ask("--get_tasks"), flags=re.MULTILINE)[1:]:
            facts = dict(re.findall(r"^ *([^:\n]+): (.*)$", part, flags=re.MULTILINE))
            found[facts["name"]] = facts
        return found

    def said(self) -> str:
        """Everything it wrote."""
        return (self.folder / "output.txt").read_text(errors="replace")

    def kill(self) -> None:
        """As a power cut would; what it had started goes on for a moment."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def quit(self) -> None:
        """Ask it to end, and wait for it."""
        assert self.process is not None
        self.ask("--quit", check=False)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def close(self) -> None:
        """Leave nothing running and nothing on the disk."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.quit()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self._remove_containers()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_containers(self) -> None:
        """What the container program keeps in its project folder is mounted while containers exist."""
        for storage in self.folder.glob("projects/*/distributio/engine/storage"):
            subprocess.run(
                ["podman", "--root", str(storage), "system", "reset", "--force"],
                capture_output=True, timeout=60, check=False,
            )  # fmt: skip
        for line in Path("/proc/mounts").read_text().splitlines():
            place = line.split()[1]
            if place.startswith(str(self.folder)):
                subprocess.run(["umount", "-l", place], capture_output=True, check=False, timeout=30)


def poke_until(client: BoincClient, url: str, condition: object, what: str, seconds: float) -> None:
    """Wait for a condition; where the client has nothing to do, tell it to call, or it waits out its own delays."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    poked = time.monotonic()
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s\n{client.said()[-4000:]}"
        if time.monotonic() - poked > 6:
            client.ask("--project", f"{url}/", "update", check=False)
            poked = time.monotonic()
        time.sleep(0.3)
