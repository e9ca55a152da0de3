"""Which files of this machine a job gets, and which will not be sent."""

import glob
import re
from pathlib import Path

from msgspec import Struct

from distributio.cli.exits import Stop

INPUT_FOLDER = "/input"  # where --input puts what was given no path

_READ_ONLY = frozenset({"ro", "readonly"})
_LABELS_ONLY = frozenset({"z", "Z", "cached", "delegated", "consistent", "rprivate", "private"})
_VOLUME = re.compile(r"(?P<source>.+?):(?P<path>/[^:]*)(?::(?P<options>[A-Za-z,]*))?", re.DOTALL)
_INPUT = re.compile(r"(?P<source>.+?)(?::(?P<path>/[^:]*))?", re.DOTALL)
_NAMED_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SYSTEM_FOLDERS = frozenset(
    Path("/", name)
    for name in ("", "bin", "boot", "etc", "home", "lib", "lib64", "opt", "root", "sbin", "srv", "usr", "var")
)
_NOT_FILES = tuple(Path(name) for name in ("/proc", "/sys", "/dev", "/run", "/var/run"))

_COPIES = "The job runs on another machine, so it gets a copy of your files and cannot change them here."
_WRITE_RESULTS = "write results to /root/shared/results, and they come back to you."


class LocalInput(Struct, frozen=True):
    """A file or folder here, and where it will be inside the container."""

    source: Path
    path: str


def from_volume(text: str, base: Path) -> LocalInput:
    """`-v LOCAL:PATH:ro`."""
    match = _VOLUME.fullmatch(text)
    if match is None:
        raise Stop(
            f"-v {text}: there are no volumes that outlive a job. Write it as LOCAL:/PATH:ro to send files with it."
        )
    options = set(filter(None, (match["options"] or "").split(",")))
    source = match["source"]
    unknown = options - _READ_ONLY - _LABELS_ONLY - {"rw"}
    if unknown:
        raise Stop(
            f"-v {text}: the option {', '.join(sorted(unknown))} cannot be granted. Write {source}:{match['path']}:ro."
        )
    if not options & _READ_ONLY or "rw" in options:
        raise Stop(f"-v {text}: {_COPIES} Write {source}:{match['path']}:ro, and {_WRITE_RESULTS}")
    if _NAMED_VOLUME.fullmatch(source) and not (base / source).exists():
        raise Stop(
            f"-v {text}: there is no file or folder {source} here, and no volumes that outlive a job. "
            f"Name a file or folder of this machine, such as ./{source}."
        )
    return checked(source, match["path"], base)


def from_mount(text: str, base: Path) -> LocalInput | tuple[str, str]:
    """`--mount type=bind,source=...,target=...,readonly`; for type=tmpfs, its path and options."""
    pairs = dict(part.partition("=")[::2] for part in text.split(","))
    kind = pairs.get("type", "volume")
    path = pairs.get("target") or pairs.get("destination") or pairs.get("dst") or ""
    source = pairs.get("source") or pairs.get("src") or ""
    if kind == "tmpfs" and path:
        return path, f"size={pairs['tmpfs-size']}" if "tmpfs-size" in pairs else ""
    if kind != "bind" or not source or not path.startswith("/"):
        raise Stop(
            f"--mount {text}: only type=bind with source, target and readonly, and type=tmpfs, can be granted. "
            "Send files with `-v LOCAL:/PATH:ro`."
        )
    if not any(pairs.get(name, "false") in ("", "true", "1") for name in ("readonly", "ro")):
        raise Stop(f"--mount {text}: {_COPIES} Add readonly, and {_WRITE_RESULTS}")
    return checked(source, path, base)


def from_input(text: str, base: Path) -> list[LocalInput]:
    """`--input LOCAL[:PATH]`; a pattern is several, put into the folder PATH."""
    if re.match(r"[a-z][a-z0-9+.-]*://", text):
        raise Stop(f"--input {text}: addresses cannot be sent yet. Fetch the file here first, and name the file.")
    match = _INPUT.fullmatch(text)
    if match is None:
        raise Stop("--input needs a file or a folder: --input LOCAL[:PATH].")
    source, path = match["source"], match["path"]
    if (base / source).exists() or not glob.has_magic(source):
        return [checked(source, path or f"{INPUT_FOLDER}/{(base / source).resolve().name}", base)]
    found = sorted(glob.glob(source, root_dir=base))
    if not found:
        raise Stop(f"--input {text}: no file here has such a name. Check the pattern and the folder you are in.")
    folder = (path or INPUT_FOLDER).rstrip("/")
    return [checked(name, f"{folder}/{Path(name).name}", base) for name in found]


def checked(source: str, path: str, base: Path) -> LocalInput:
    """The input, if it is there and may be sent to strangers' machines."""
    full = (base / Path(source).expanduser()).resolve()
    if full in _SYSTEM_FOLDERS or any(full.is_relative_to(folder) for folder in _NOT_FILES):
        raise Stop(
            f"{source} is a part of this system, not data: it will not be sent to other people's machines. "
            "Name the files the job needs."
        )
    if not full.exists():
        raise Stop(f"There is no file or folder {source}. Check the name and the folder you are in.")
    if not (full.is_file() or full.is_dir()):
        raise Stop(f"{source} is neither a file nor a folder and cannot be sent to another machine.")
    if not path.startswith("/") or path == "/" or ".." in Path(path).parts:
        raise Stop(f"{path!r} is not a place for {source}: write an absolute path inside the container, such as /data.")
    return LocalInput(full, path.rstrip("/"))
