"""How to get verified Debian packages without installing anything, and without root rights.

apt is given a system of its own, in a folder, in which nothing is installed. The machine's package lists are used where
it has any that serve, else a private copy is fetched.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from msgspec import Struct

_LISTS = Path("/var/lib/apt/lists")


class PackagesUnavailable(Exception):
    """Packages could not be had; the message says why and what to do."""


class Package(Struct, frozen=True):
    """A package in a version."""

    name: str
    version: str

    @property
    def word(self) -> str:
        """How apt-get is asked for it."""
        return f"{self.name}={self.version}"

    @property
    def file_glob(self) -> str:
        return f"{self.name}_{self.version.replace(':', '%3a')}_*.deb"


class Apt:
    """apt, with everything it writes kept in `home`. `say` hears what takes time."""

    def __init__(self, home: Path, say: Callable[[str], None], lists: Path = _LISTS) -> None:
        self._say = say
        self._home = home.resolve()
        self._lists = self._home / "lists" if (self._home / "own-lists-serve").exists() else lists
        for folder in ("lists/partial", "archives/partial"):
            (self._home / folder).mkdir(parents=True, exist_ok=True)
        self._status = self._home / "status"
        self._status.touch()
        self._complaint = ""  # of the last update

    def resolve(self, wanted: Sequence[str], left_out: Sequence[str]) -> list[Package]:
        """The wanted packages and all they depend on, except those that match `left_out`; sorted by name."""
        question = [list(wanted), list(left_out)]
        remembered = self._home / "resolved.json"
        known = json.loads(remembered.read_bytes()) if remembered.exists() else {}
        if known.get("lists") == self._state_of_lists() and known.get("question") == question:
            return [Package(*pair) for pair in known["packages"]]
        self._say("asking apt which packages are needed")
        packages = self._simulate(wanted)
        if packages is None and not self._lists_are_own:
            self.update()
            packages = self._simulate(wanted)
        if packages is None:
            cause = f" ({self._complaint})" if self._complaint else ""
            raise PackagesUnavailable(
                f"apt cannot find the packages {' '.join(wanted)}: its package sources lack them or cannot be"
                f" reached{cause}. Check /etc/apt/sources.list* and the network, then try again."
            )
        if self._lists_are_own:
            (self._home / "own-lists-serve").touch()
        kept = [p for p in packages if not any(fnmatch(p.name, pattern) for pattern in left_out)]
        pairs = [(p.name, p.version) for p in kept]
        remembered.write_text(json.dumps({"lists": self._state_of_lists(), "question": question, "packages": pairs}))
        return kept

    def fetch(self, packages: Sequence[Package]) -> dict[str, Path]:
        """The packages' files by name. What is not here yet is downloaded, and checked by apt against signed lists."""
        missing = [p for p in packages if not self._file(p)]
        if missing:
            self._say(f"downloading {len(missing)} Debian packages")
            done = self._run("download", *(p.word for p in missing), cwd=self._home / "archives")
            if done.returncode:
                raise PackagesUnavailable(
                    f"apt-get could not download packages: {last_lines(done.stderr)}."
                    " Check the network; if it speaks of 404, run apt-get update."
                )
        files = {p.name: file for p in packages if (file := self._file(p))}
        if len(files) < len(packages):
            lost = ", ".join(p.name for p in packages if p.name not in files)
            raise PackagesUnavailable(f"apt-get left no file for {lost}. Delete {self._home} and try again.")
        return files

    def update(self) -> None:
        """Fetch package lists for ourselves, and use them from now on."""
        self._say("fetching package lists for this folder (apt-get update)")
        self._lists = self._home / "lists"
        done = self._run("update")
        # One of several sources may be out of reach, which is no failure: whether enough came is seen when resolving.
        self._complaint = last_lines(done.stderr) if done.stderr.strip() else ""

    @property
    def _lists_are_own(self) -> bool:
        return self._lists == self._home / "lists"

    def _simulate(self, wanted: Sequence[str]) -> list[Package] | None:
        done = self._run("--simulate", "install", *wanted)
        lines = re.findall(r"^Inst (\S+) \((\S+) ", done.stdout, re.MULTILINE)
        packages = sorted({Package(name, version) for name, version in lines}, key=lambda package: package.name)
        found = {package.name for package in packages}
        return packages if done.returncode == 0 and found.issuperset(wanted) else None

    def _file(self, package: Package) -> Path | None:
        return next((self._home / "archives").glob(package.file_glob), None)

    def _state_of_lists(self) -> list[list[str | int]]:
        """Changes whenever apt might answer differently."""
        files = sorted(self._lists.glob("*_*")) if self._lists.is_dir() else []
        return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]

    def _run(self, *words: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        options = {
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",  # root would else become a user who cannot write into our folder
            "Acquire::Retries": "3",
            "Acquire::http::Timeout": "20",
            "Acquire::https::Timeout": "20",
            "Debug::NoLocking": "true",
            "Dir::Cache": str(self._home),
            "Dir::Cache::archives": str(self._home / "archives"),
            "Dir::Log": str(self._home),
            "Dir::State::lists": str(self._lists),
            "Dir::State::status": str(self._status),
        }
        command = ["apt-get", "-qq", "-y"]
        for name, value in options.items():
            command += ["-o", f"{name}={value}"]
        environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        return subprocess.run([*command, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def last_lines(text: str) -> str:
    """The end of what a program complained of, for a sentence of ours."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-2:]).rstrip(".") or "it did not say why"
