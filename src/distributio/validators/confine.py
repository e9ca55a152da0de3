"""What a validator's process may do: read its outputs and Python's own files, compute, and answer; nothing else.

Each belt is put on where the machine has it, and the process says which it wears. Linux only, through the C library: there is
nothing to install. Unlike a job, a validator is the site's own code reading strangers' bytes, so a belt that is missing
is said, and not a reason to refuse.
"""

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Iterable

from msgspec import Struct

_NEW_NETWORK, _NEW_USER, _NEW_IPC = 0x40000000, 0x10000000, 0x08000000
_SET_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER, _SET_DUMPABLE, _KEEP_CAPABILITIES = 38, 22, 2, 4, 8
_CAPABILITIES_3, _READ_ANYTHING = 0x20080522, 1 << 2
_NOBODY = 65_534
_LIBC = ctypes.CDLL(None, use_errno=True)


class Bounds(Struct, frozen=True, kw_only=True):
    """What one validator's process may use."""

    memory_bytes: int = 1 << 30
    seconds: float = 60.0  # for one question
    files: int = 256


def put_on(bounds: Bounds, readable: Iterable[str]) -> list[str]:
    """Confine this process for good; return the belts that are in force. `readable` are folders it may read."""
    worn = ["limits"]
    os.setpriority(os.PRIO_PROCESS, 0, 10)
    _limit(bounds)
    if _no_network():
        worn.append("no network")
    if os.geteuid() == 0:
        _be_nobody()
        worn.append("nobody")
    _LIBC.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    if _LIBC.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0:
        if _only_read(readable):
            worn.append("landlock")
        if _no_calls():
            worn.append("seccomp")
    return worn


def _limit(bounds: Bounds) -> None:
    for what, most in (
        (resource.RLIMIT_AS, bounds.memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, bounds.files),
        (resource.RLIMIT_FSIZE, 1 << 16),  # its complaints, which go into a file of ours
    ):
        resource.setrlimit(what, (most, most))


def more_time(seconds: float) -> None:
    """Let this process compute for so long from now on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _no_network() -> bool:
    if os.geteuid() == 0:
        return bool(_LIBC.unshare(_NEW_NETWORK | _NEW_IPC) == 0)
    return bool(_LIBC.unshare(_NEW_USER | _NEW_NETWORK | _NEW_IPC) == 0)


def _be_nobody() -> None:
    """Give root away. Where Python itself lies in a folder of root's, the right to read stays; landlock then bounds it."""
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    keep = not _can_nobody_read(os.__file__) and _has_landlock()
    if keep:
        _LIBC.prctl(_KEEP_CAPABILITIES, 1, 0, 0, 0)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    kept = _READ_ANYTHING if keep else 0
    _LIBC.capset(struct.pack("=Ii", _CAPABILITIES_3, 0), struct.pack("=6I", kept, kept, 0, 0, 0, 0))


def _can_nobody_read(path: str) -> bool:
    os.seteuid(_NOBODY)
    try:
        with open(path, "rb"):
            return True
    except OSError:
        return False
    finally:
        os.seteuid(0)


# --- landlock(7) --------------------------------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EVERY_RIGHT = (1 << 13) - 1  # of its first version: all there is to do with files
_EXECUTE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 2, 1 << 3


def _has_landlock() -> bool:
    return bool(_LIBC.syscall(_CREATE_RULESET, None, 0, 1) > 0)


def _only_read(folders: Iterable[str]) -> bool:
    ruleset = _LIBC.syscall(_CREATE_RULESET, ctypes.c_char_p(struct.pack("Q", _EVERY_RIGHT)), 8, 0)
    if ruleset < 0:
        return False
    for folder in folders:
        try:
            place = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # what is not there need not be readable
        rights = _READ_FILE | _READ_FOLDER if os.path.isdir(folder) else _READ_FILE
        rule = struct.pack("=Qi", rights | _EXECUTE, place)
        _LIBC.syscall(_ADD_RULE, ruleset, 1, ctypes.c_char_p(rule), 0)
        os.close(place)
    done = _LIBC.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return bool(done)


# --- seccomp(2) ---------------------------------------------------------------------------------------------------

# kill, tkill, tgkill, socket, connect, bind, ptrace, fork, vfork, execve, execveat, process_vm_readv and _writev, unshare,
# setns, mount, keyctl, bpf, io_uring_setup, pidfd_open, pidfd_send_signal, pidfd_getfd
_CALLS: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E, 56, 435,
        (62, 200, 234, 41, 42, 49, 101, 57, 58, 59, 322, 310, 311, 272, 308, 165, 250, 321, 425, 434, 424, 438),
    ),
    "aarch64": (
        0xC00000B7, 220, 435,
        (129, 130, 131, 198, 203, 200, 117, 221, 281, 270, 271, 97, 268, 40, 219, 280, 425, 434, 424, 438),
    ),
}  # fmt: skip
_LOAD, _EQUAL, _AT_LEAST, _SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _NOT_PERMITTED, _NO_SUCH_CALL = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
_THREAD = 0x00010000


def _no_calls() -> bool:
    known = _CALLS.get(platform.machine())
    if known is None:
        return False
    architecture, clone, clone3, calls = known
    program = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, 0x40000000),  # numbers of another way to call on the same machine
        (_RETURN, 0, 0, _KILL),
    ]
    for number in calls:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _NOT_PERMITTED)]
    program += [
        (_EQUAL, 0, 1, clone3),  # its flags cannot be seen here; the C library then takes the older call
        (_RETURN, 0, 0, _NO_SUCH_CALL),
        (_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, 16),
        (_SET, 1, 0, _THREAD),
        (_RETURN, 0, 0, _NOT_PERMITTED),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    return bool(_LIBC.prctl(_SET_SECCOMP, _FILTER, ctypes.c_char_p(header), 0, 0) == 0)
