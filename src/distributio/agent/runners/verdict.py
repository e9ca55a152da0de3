"""How a container's end is told: whose fault it was, and why, in a reason code.

The command answers for its exit code and for the limits it hit; the host answers for its engine, for what somebody
killed here, and for what is lost.
"""

from typing import Any

LIMITS = {
    "memory-limit": "it used more memory than its limit",
    "wall-limit": "it ran longer than its limit",
    "disk-limit": "it wrote more to disk than its limit",
    "log-limit": "it wrote more to its log than its limit",
}
_KILLED = 128 + 9
_NEAR = 0.95  # of the memory limit: a kill there is the kernel's, even where its counters could not be read
_NOT_FOUND = ("not found", "no such file", "permission denied", "is a directory")
_NEVER = ("", "0001-01-01T00:00:00Z")


def limit_hit(cause: str) -> dict[str, Any]:
    """The end of a task that was stopped at a limit."""
    return {"outcome": "failed", "exit_code": None, "cause": cause, "detail": LIMITS[cause]}


def stopped() -> dict[str, Any]:
    """The end of a task that the agent was told to stop."""
    return {"outcome": "error", "exit_code": None, "cause": "stopped", "detail": "it was stopped on request"}


def fault(cause: str, detail: str) -> dict[str, Any]:
    """The end of a task that this host could not run."""
    return {"outcome": "error", "exit_code": None, "cause": cause, "detail": detail[-2000:].strip()}


def not_started(words: str) -> dict[str, Any]:
    """The end of a task whose first process never ran; `words` are the engine's."""
    lowered = words.lower()
    if "exec format error" in lowered:
        return fault("image-bad", words)
    if "exec" in lowered and any(phrase in lowered for phrase in _NOT_FOUND):
        missing = "permission denied" not in lowered
        return {
            "outcome": "failed",
            "exit_code": 127 if missing else 126,
            "cause": "command-not-found",
            "detail": words[-2000:].strip(),
        }
    if "no such image" in lowered or "image not known" in lowered:
        return fault("image-missing", words)
    return fault("engine-error", words)


def ended(code: int, *, oom_kills: int, peak_bytes: int, limit_bytes: int, refused_processes: int) -> dict[str, Any]:
    """The end of a task whose first process ended by itself or by a signal that was not ours."""
    if code == 0:
        return {"outcome": "success", "exit_code": 0, "cause": "", "detail": ""}
    if oom_kills or (code == _KILLED and peak_bytes >= _NEAR * limit_bytes):
        return limit_hit("memory-limit") | {"exit_code": code}
    if refused_processes:
        detail = "it wanted more processes than its limit"
        return {"outcome": "failed", "exit_code": code, "cause": "process-limit", "detail": detail}
    if code == _KILLED:
        return fault("killed", "killed by signal 9, and not by a limit of ours") | {"exit_code": code}
    cause = "command-not-found" if code in (126, 127) else "exit-code"
    return {"outcome": "failed", "exit_code": code, "cause": cause, "detail": f"it ended with exit code {code}"}


def from_state(state: dict[str, Any], words: str, **seen: int) -> dict[str, Any]:
    """The end that the engine's own record tells; `words` are what it said when starting."""
    status = state.get("Status", "")
    if state.get("StartedAt", "") in _NEVER or status in ("created", "configured", "initialized"):
        return not_started(words or str(state.get("Error", "")))
    if status not in ("exited", "stopped"):
        return fault("lost", f"the engine says the container is {status or 'unknown'}")
    code = int(state.get("ExitCode", -1))
    if code < 0:
        return fault("lost", "the engine does not know how the container ended")
    if state.get("OOMKilled"):
        seen["oom_kills"] = max(1, seen.get("oom_kills", 0))
    return ended(code, **seen)
