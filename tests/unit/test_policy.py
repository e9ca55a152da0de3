"""The owner's limits are read or refused with a reason, and decide what may run now."""

import pytest
from msgspec.structs import replace

from distributio.agent.policy import (
    Machine,
    OwnerPolicy,
    PolicyError,
    allowed,
    cache_bytes,
    lent,
    parse,
    size_bytes,
    template,
)

GIB = 1 << 30
MACHINE = Machine(cpus=8, memory_bytes=16 * GIB, disk_free_bytes=100 * GIB, gpus=2, weekday=2, minute=12 * 60)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512m", 512 << 20),
        ("8g", 8 * GIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("100", 100),
        ("2T", 2 << 40),
        ("64kb", 64 << 10),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert size_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('memory = "much"', "memory: 'much' is not a size"),
        ("cpu = 2", "The keys are: cpus"),
        ("cpus = -1", "not negative"),
        ("look_ahead = 3", "between 0 and 1"),
        ('hours = "late"', '"22:00-07:00"'),
        ('hours = "25:00-07:00"', '"22:00-07:00"'),
        ('days = "mon-sometime"', '"mon-fri"'),
        ("cpus = ", "not TOML"),
        ('cpus = "two"', "cpus"),
    ],
)
def test_what_cannot_be_read_is_refused_with_an_example(text: str, says: str) -> None:
    with pytest.raises(PolicyError) as refused:
        parse(text)
    assert says in str(refused.value)


def test_the_template_says_what_was_asked_and_can_be_read() -> None:
    policy = parse(template(2, "4g", "20g"))
    assert policy == OwnerPolicy(cpus=2, memory="4g", disk="20g")
    assert cache_bytes(policy) == 10 * GIB


def test_no_more_is_lent_than_there_is() -> None:
    most = lent(OwnerPolicy(cpus=64, memory="1t", disk="1t", gpus=9), MACHINE)
    assert (most.cpus, most.memory_bytes, most.gpus) == (8, 16 * GIB, 2)
    assert most.disk_bytes == 98 * GIB


def test_unset_limits_leave_the_owner_a_quarter_of_the_memory() -> None:
    most = lent(OwnerPolicy(), MACHINE)
    assert (most.cpus, most.memory_bytes, most.gpus) == (8, 12 * GIB, 0)


def test_a_full_disk_lends_nothing() -> None:
    assert lent(OwnerPolicy(), replace(MACHINE, disk_free_bytes=GIB)).disk_bytes == 0


def at(policy: OwnerPolicy, **machine: object) -> tuple[bool, str]:
    now = allowed(policy, replace(MACHINE, **machine))
    return now.may_compute, "; ".join(now.why_not)


def test_hours_may_span_midnight() -> None:
    night = OwnerPolicy(hours="22:00-07:00")
    assert at(night, minute=23 * 60) == (True, "")
    assert at(night, minute=6 * 60 + 59) == (True, "")
    assert not at(night, minute=7 * 60)[0]
    assert "hours 22:00-07:00" in at(night, minute=12 * 60)[1]
    assert at(OwnerPolicy(hours="09:00-17:00"), minute=12 * 60)[0]
    assert not at(OwnerPolicy(hours="09:00-17:00"), minute=17 * 60)[0]


def test_days_may_span_the_week() -> None:
    assert at(OwnerPolicy(days="mon-fri"), weekday=4)[0]
    assert not at(OwnerPolicy(days="mon-fri"), weekday=5)[0]
    assert at(OwnerPolicy(days="sat-mon"), weekday=0)[0]
    assert not at(OwnerPolicy(days="sat, sun"), weekday=2)[0]


def test_the_owner_comes_first_when_asked_for() -> None:
    polite = OwnerPolicy(only_when_idle=True, idle_load=0.25)
    assert at(polite, owner_load=1.9)[0]
    assert not at(polite, owner_load=2.1)[0]
    assert at(OwnerPolicy(), owner_load=8.0)[0]


def test_work_that_runs_bears_more_load_than_work_that_would_begin() -> None:
    polite = OwnerPolicy(only_when_idle=True, idle_load=0.25)
    busy = replace(MACHINE, owner_load=3.0)
    assert not allowed(polite, busy).may_compute
    assert allowed(polite, busy, computing=True).may_compute


def test_battery_heat_and_the_owner_word_stop_everything() -> None:
    assert not at(OwnerPolicy(), on_battery=True)[0]
    assert at(OwnerPolicy(on_battery=True), on_battery=True)[0]
    assert not at(OwnerPolicy(max_celsius=80), celsius=85.0)[0]
    assert at(OwnerPolicy(max_celsius=80), celsius=None)[0]
    stopped = allowed(OwnerPolicy(hours="22:00-07:00"), replace(MACHINE, on_battery=True), suspended=True)
    assert len(stopped.why_not) == 3
