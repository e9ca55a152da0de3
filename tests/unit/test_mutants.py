"""The laws have teeth: each of these one-line faults in the rules is caught on the roads of small jobs."""

import inspect
from types import ModuleType

import pytest

import laws
from distributio.lifecycle import advance, quorum
from distributio.lifecycle.model import Policy
from distributio.lifecycle.roads import explore

# Module, a line of it as it is written, the same line with a fault.
MUTANTS: tuple[tuple[ModuleType, str, str], ...] = (
    (advance, "task.deadline_at <= now", "task.deadline_at < now"),
    (advance, "return gave_up and not job.is_decided", "return gave_up"),
    (advance, "return gave_up and not job.is_decided", "return task.state is TaskState.OVER"),
    (advance, "target_tasks=len(viable) + 1", "target_tasks=len(viable)"),
    (advance, "if failures > policy.max_failures:", "if failures > policy.max_failures + 1:"),
    (advance, "if errors > policy.max_errors:", "if errors >= policy.max_errors:"),
    (advance, "or (awaited == 0 and room <= 0)", "or room <= 0"),
    (advance, "successes + awaited + room < job.quorum or (awaited == 0 and room <= 0)", "awaited == 0 and room <= 0"),
    (advance, "successes + awaited + room < job.quorum or (", "successes + awaited + room < job.quorum and ("),
    (advance, "if job.is_decided or quorum.wants_check(job):", "if job.is_decided:"),
    (advance, "lambda task: task.state is not TaskState.OVER", "lambda task: task.state is TaskState.READY"),
    (
        advance,
        "return _replace_tasks(job, lambda task: task.is_viable, ",
        "return _replace_tasks(job, lambda _: False, ",
    ),
    (advance, "min(missing, room)", "missing"),
    (advance, "missing = max(job.target_tasks, job.quorum)", "missing = job.target_tasks"),
    (advance, "missing -= task.state is not TaskState.OVER or task.is_viable", "missing -= task.is_viable"),
    (advance, "if job.is_decided and job.hand_over is HandOver.NOT_READY:", "if job.is_decided:"),
    (
        advance,
        "if job.hand_over is HandOver.DONE and job.files",
        "if job.hand_over is not HandOver.NOT_READY and job.files",
    ),
    (advance, "is FilesState.KEPT and not quorum.wants_check(job):", "is FilesState.KEPT:"),
    (advance, "if not task.is_viable or task.validity is Validity.VALID:", "if not task.is_viable:"),
    (advance, "if not quorum.is_sound(judged, opinion.canonical_attempt):", "if False:"),
    (advance, "return judged if opinion.canonical_attempt == job.canonical_attempt else job", "return judged"),
    (quorum, "return quorum // 2 + 1", "return (quorum + 1) // 2"),
    (quorum, "return fresh > 0 and viable >= job.quorum", "return viable >= job.quorum"),
    (quorum, "return fresh > 0 and viable >= job.quorum", "return fresh > 0 and viable > job.quorum"),
    (quorum, "if len(viable) >= job.quorum:", "if viable:"),
    (quorum, "return Validity.VALID if agrees else Validity.INVALID", "return Validity.VALID"),
)


def a_policy(quorum: int, copies: int, **fields: object) -> Policy:
    return Policy(quorum=quorum, target_tasks=quorum, max_tasks=copies, max_errors=1, **fields)  # type: ignore[arg-type]


ROADS: tuple[tuple[Policy, int], ...] = (
    (a_policy(1, 2), 1),
    (Policy(quorum=2, target_tasks=1, max_tasks=3), 1),
    (Policy(quorum=1, target_tasks=3, max_tasks=2), 1),
    (a_policy(2, 3), 1),
    (a_policy(3, 2), 1),
    (a_policy(3, 3), 1),
    (a_policy(1, 2, validator="own"), 2),
    (a_policy(2, 3, validator="own"), 1),
    (a_policy(3, 3, validator="own"), 1),
)


@pytest.mark.parametrize(("module", "line", "fault"), MUTANTS)
def test_a_fault_in_the_rules_is_caught(module: ModuleType, line: str, fault: str) -> None:
    rules = faulty(module, line, fault)
    with pytest.raises((laws.Broken, ValueError)):
        examine_all(rules)


def test_the_rules_in_force_pass() -> None:
    examine_all(advance)


def examine_all(rules: ModuleType) -> None:
    for policy, validators in ROADS:
        laws.examine_roads(explore(policy, validators=validators, rules=rules), rules)


def faulty(module: ModuleType, line: str, fault: str) -> ModuleType:
    """The rules, made anew from their source with one line changed."""
    source = inspect.getsource(module)
    assert source.count(line) == 1, f"the line to change is not there once: {line!r}"
    changed = ModuleType(module.__name__)
    exec(compile(source.replace(line, fault), f"<{module.__name__}: {fault}>", "exec"), changed.__dict__)
    if module is advance:
        return changed
    rules = ModuleType(advance.__name__)
    exec(compile(inspect.getsource(advance), "<advance>", "exec"), rules.__dict__)
    rules.__dict__["quorum"] = changed
    return rules
