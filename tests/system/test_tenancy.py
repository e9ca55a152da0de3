"""People, projects, members and limits, as an operator sets them and as others meet them."""

import msgspec
import pytest

from distributio.wire.native import NewProject, NewUser, ProjectChange, ProjectView, UserView
from sites import API, Guest, RunningSite

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("tenancy")]


def _project(operator: Guest, name: str) -> None:
    operator.ask("POST", f"{API}/projects", 201, content=msgspec.json.encode(NewProject(name=name)))


def _user(operator: Guest, name: str, project: str = "", role: str = "member") -> Guest:
    body = msgspec.json.encode(NewUser(name=name, project=project, role=role))
    answer = operator.ask("POST", f"{API}/users", 201, content=body)
    made = msgspec.json.decode(answer.content, type=UserView)
    return operator.site.guest(made.token)


def _change(who: Guest, project: str, status: int = 200, **change: object) -> ProjectView | None:
    body = msgspec.json.encode(msgspec.convert(change, ProjectChange))
    answer = who.ask("PATCH", f"{API}/projects/{project}", status, content=body)
    return msgspec.json.decode(answer.content, type=ProjectView) if status == 200 else None


def test_a_new_member_works_in_the_project_and_sees_no_other(shared_site: RunningSite) -> None:
    operator = shared_site.operator()
    _project(operator, "optics")
    _project(operator, "acoustics")
    member = _user(operator, "first", "optics")
    stranger = _user(operator, "second", "acoustics")
    batch = member.submit(2)
    assert member.batch(batch).project == "optics"
    stranger.ask("GET", f"{API}/batches/{batch}", 404)
    stranger.ask("POST", f"{API}/batches/{batch}/cancel", 404)
    stranger.ask("GET", f"{API}/jobs/{batch}.1/log", 404)
    assert stranger.get("/batches")["items"] == []


def test_a_limit_on_jobs_in_flight_is_kept_and_lifted(shared_site: RunningSite) -> None:
    operator = shared_site.operator()
    _project(operator, "limited")
    member = _user(operator, "third", "limited")
    _change(operator, "limited", limits={"jobs_in_flight": 3})
    batch = member.submit(3)
    body = {"spec": {"runner": "fake"}, "count": 1}
    refused = member.ask("POST", f"{API}/batches", 403, json=body).json()
    assert refused["code"] == "quota-exceeded"
    assert "3" in refused["detail"]
    member.ask("POST", f"{API}/batches/{batch}/cancel")
    again = member.submit(3)
    changed = _change(operator, "limited", limits={"jobs_in_flight": None})
    assert changed is not None
    assert changed.limits == {}
    assert changed.usage["jobs_in_flight"] == 3
    assert again != batch
    member.submit(5)


def test_managers_change_members_and_operators_change_limits(shared_site: RunningSite) -> None:
    operator = shared_site.operator()
    _project(operator, "managed")
    manager = _user(operator, "fourth", "managed", role="manager")
    reader = _user(operator, "fifth", "managed", role="reader")
    _change(manager, "managed", 403, limits={"jobs_in_flight": 10**6})
    _change(manager, "managed", 403, weight=100)
    _change(reader, "managed", 403, members={"fifth": "manager"})
    reader.ask("POST", f"{API}/batches", 403, json={"spec": {"runner": "fake"}})
    changed = _change(manager, "managed", members={"fifth": "member"})
    assert changed is not None
    assert changed.members == {"fourth": "manager", "fifth": "member"}
    reader.submit(1)
    _change(manager, "managed", members={"fifth": None})
    reader.ask("POST", f"{API}/batches", 404, json={"spec": {"runner": "fake"}})


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"limits": {"unicorns": 3}}, 422),
        ({"members": {"operator": "emperor"}}, 422),
        ({"members": {"nobody at all": "member"}}, 404),
    ],
)
def test_what_is_not_known_is_refused(shared_site: RunningSite, change: dict[str, object], status: int) -> None:
    _change(shared_site.operator(), "default", status, **change)


def test_a_project_that_is_switched_off_gets_no_work_and_says_why(shared_site: RunningSite) -> None:
    operator = shared_site.operator()
    _project(operator, "paused")
    member = _user(operator, "sixth", "paused")
    batch = member.submit(1)
    _change(operator, "paused", enabled=False)
    host = member.attach()
    sent = [assignment.job for assignment in host.turn(want=50).assignments]
    assert f"{batch}.1" not in sent
    refused = member.ask("POST", f"{API}/batches", 403, json={"spec": {"runner": "fake"}}).json()
    assert refused["code"] == "project-disabled"
    codes = [each["code"] for each in member.get(f"/jobs/{batch}.1/explain")["because"]]
    assert "project-disabled" in codes
    _change(operator, "paused", enabled=True)
    assert f"{batch}.1" in [assignment.job for assignment in member.attach().turn(want=50).assignments]


def test_only_operators_see_everybody(shared_site: RunningSite) -> None:
    operator = shared_site.operator()
    _project(operator, "seen")
    member = _user(operator, "seventh", "seen", role="manager")
    member.ask("GET", f"{API}/users", 403)
    member.ask("GET", f"{API}/projects", 403)
    names = [user["name"] for user in operator.get("/users")["items"]]
    assert {"operator", "seventh"} <= set(names)


def test_a_name_is_taken_once(shared_site: RunningSite) -> None:
    operator = shared_site.operator()
    refused = operator.ask("POST", f"{API}/projects", 409, json={"name": "default"}).json()
    assert refused["code"] == "name-taken"
