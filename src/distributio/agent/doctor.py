"""What on this machine keeps it from computing well, and what to do about each."""

import getpass
import os
import shutil
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

from msgspec import Struct

from distributio.agent import engines, policy
from distributio.agent.folder import Folder, NotAttached
from distributio.agent.hardware import cpus, memory_bytes
from distributio.agent.runners.contract import RunnerError
from distributio.agent.site import KeyUnknown, Refused, Site, SiteAway

_CLOCK_SECONDS = 60.0
_LEAST_DISK_BYTES = 2 << 30
_SUBORDINATE_IDS = 65_536
_CONTROLLERS = frozenset({"cpu", "memory", "pids"})


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that was looked at. `advice` says what to do where `ok` is false."""

    name: str
    ok: bool
    detail: str
    advice: str = ""


def examine(folder: Folder, runner: str | None) -> Iterator[Finding]:
    """Look at everything, one after the other."""
    name = runner or _runner_of(folder)
    yield _policy(folder)
    yield _disk(folder)
    if name == "container":
        yield _subordinate_ids()
        yield _control_groups()
    yield from _runner(folder, name)
    yield from _site(folder)


def _runner_of(folder: Folder) -> str:
    try:
        return folder.membership().runner
    except NotAttached:
        return "container"


def _policy(folder: Folder) -> Finding:
    path = folder.policy_path
    if not path.exists():
        return Finding(name="policy", ok=True, detail=f"no {path}: everything is lent but a quarter of the memory")
    try:
        folder.policy()
    except policy.PolicyError as error:
        return Finding(name="policy", ok=False, detail=str(error), advice=f"Correct {path}.")
    return Finding(
        name="policy", ok=True, detail=f"{cpus()} cpus and {memory_bytes() / 2**30:.1f} GiB here; limits in {path}"
    )


def _disk(folder: Folder) -> Finding:
    usage = shutil.disk_usage(folder.root)
    detail = f"{usage.free / 2**30:.1f} GiB free at {folder.root}"
    if usage.free < _LEAST_DISK_BYTES:
        advice = "Make room, or move the data to a larger disk with --data (or DISTRIBUTIO_HOST_DATA)."
        return Finding(name="disk", ok=False, detail=detail, advice=advice)
    return Finding(name="disk", ok=True, detail=detail)


def _subordinate_ids() -> Finding:
    if os.geteuid() == 0:
        return Finding(name="subuid", ok=True, detail="not needed by root")
    user = getpass.getuser()
    missing = [path for path in ("/etc/subuid", "/etc/subgid") if _ids_in(Path(path), user) < _SUBORDINATE_IDS]
    if missing:
        return Finding(
            name="subuid",
            ok=False,
            detail=f"{user} has fewer than {_SUBORDINATE_IDS} subordinate ids in {' and '.join(missing)}",
            advice=f"Run: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
        )
    return Finding(name="subuid", ok=True, detail=f"{user} has subordinate user and group ids")


def _ids_in(path: Path, user: str) -> int:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    parts = [line.split(":") for line in lines]
    mine = {user, str(os.getuid())}
    return sum(int(part[2]) for part in parts if len(part) == 3 and part[0] in mine and part[2].isdigit())


def _control_groups() -> Finding:
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.controllers").exists():
        return Finding(
            name="cgroups",
            ok=os.geteuid() == 0,
            detail="control groups of version 1",
            advice="As an ordinary user limits need version 2: boot with systemd.unified_cgroup_hierarchy=1.",
        )
    own = Path("/proc/self/cgroup").read_text(encoding="ascii").strip().rpartition("::")[2]
    slice_path = root / own.lstrip("/")
    if os.geteuid() != 0:
        slice_path = root / f"user.slice/user-{os.getuid()}.slice/user@{os.getuid()}.service"
    here = slice_path / "cgroup.controllers"
    available = set(here.read_text(encoding="ascii").split()) if here.exists() else set()
    if missing := _CONTROLLERS - available:
        return Finding(
            name="cgroups",
            ok=False,
            detail=f"the controllers {', '.join(sorted(missing))} are not delegated to us",
            advice="Create /etc/systemd/system/user@.service.d/delegate.conf with [Service] Delegate=cpu cpuset io memory "
            "pids, run systemctl daemon-reload, and log in again.",
        )
    return Finding(name="cgroups", ok=True, detail="version 2 with cpu, memory and pids")


def _runner(folder: Folder, name: str) -> Iterator[Finding]:
    try:
        seen = engines.load(name, folder).probe()
    except (RunnerError, engines.UnknownRunner, policy.PolicyError) as error:
        yield Finding(name="engine", ok=False, detail=str(error), advice="Install podman: sudo apt install podman")
        return
    if not seen.works:
        yield Finding(name="engine", ok=False, detail=f"the {name} runner failed its self-test", advice=seen.problem)
        return
    sandbox = f" with {', '.join(seen.sandbox)}" if seen.sandbox else ""
    yield Finding(name="engine", ok=True, detail=f"{seen.engine or name} passed its self-test{sandbox}")
    for missing in seen.missing:
        # Work is done without it, at sites that accept such hosts; so it is told and does not fail the examination.
        yield Finding(name="protection", ok=True, detail=f"not in force: {missing}")


def _site(folder: Folder) -> Iterator[Finding]:
    try:
        member = folder.membership()
    except NotAttached as error:
        yield Finding(name="site", ok=False, detail="no site was joined", advice=str(error))
        return
    site = Site(member.url, f"Host {member.host}:{member.key}")
    try:
        _, date = site.is_alive()
    except (SiteAway, Refused, KeyUnknown) as error:
        advice = "See whether the address is right and the network and the site are up; work goes on meanwhile."
        yield Finding(name="site", ok=False, detail=str(error), advice=advice)
        return
    finally:
        site.close()
    yield Finding(name="site", ok=True, detail=f"{member.site_name} answers at {member.url}")
    if date:
        yield _clock(time.time() - parsedate_to_datetime(date).timestamp())


def _clock(difference: float) -> Finding:
    if abs(difference) > _CLOCK_SECONDS:
        return Finding(
            name="clock",
            ok=False,
            detail=f"this machine's clock is {difference:+.0f} s from the site's",
            advice="Turn on time synchronisation: sudo timedatectl set-ntp true",
        )
    return Finding(name="clock", ok=True, detail=f"within {max(1.0, abs(difference)):.0f} s of the site's")
