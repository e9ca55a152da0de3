"""The pages as a browser without scripts sees them: whole, well formed, escaped, and shown to those who may see them."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import httpx2
import pytest

from distributio.server.app import ROUTES
from distributio.server.pages import sessions
from distributio.store import accounts
from distributio.wire.native import JobChoice, Limits, LogAnswer, Spec, TaskReport
from sites import Guest, GuestHost, RunningSite, running, success, wait_for

pytestmark = pytest.mark.system

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&{{7*7}}"
VOID = {"meta", "link", "input", "img", "br", "hr", "rect", "line", "circle"}
NEVER_FITS = Spec(runner="fake", command=["x"], limits=Limits(gpus=8))
PRIVATE = "secret-of-alice"


class Document(HTMLParser):
    """A page, read strictly: every element that opens closes, and nothing could run that is not a file of ours."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        assert len(values) == len(attrs), f"an attribute twice in {self.get_starttag_text()}"
        self.tags.append((tag, values))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID, f"<{tag}/> does not close itself in HTML"
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes something else, near {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """What a reader sees."""
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of this name."""
        return [attributes for name, attributes in self.tags if name == tag]


class Browser:
    """A browser without scripts: it keeps cookies, and sends forms as they are on the page."""

    def __init__(self, site: RunningSite, token: str = "") -> None:
        self.http = httpx2.Client(base_url=site.url, timeout=30)
        site.guests.append(self)
        if token:
            self.sign_in(token)

    def close(self) -> None:
        """Hang up."""
        self.http.close()

    def sign_in(self, token: str) -> httpx2.Response:
        """As a person does it."""
        answer = self.send("/login", "/login", token=token)
        assert answer.status_code == 303, answer.text
        return answer

    def page(self, path: str, status: int = 200) -> Document:
        """A page, examined."""
        answer = self.http.get(path)
        assert answer.status_code == status, f"{path}: {answer.status_code} {answer.text[:300]}"
        return examine(answer)

    def send(self, path: str, action: str, **fields: str) -> httpx2.Response:
        """Fill in the form with this action on the page at this path, and send it."""
        return self.http.post(action, data={sessions.KEY_FIELD: self.form_key(path, action), **fields})

    def form_key(self, path: str, action: str) -> str:
        """The key in the form with this action."""
        text = self.http.get(path).text
        found = re.search(rf'action="{re.escape(action)}".*?name="form_key" value="(\w+)"', text, re.DOTALL)
        assert found, f"no form for {action} on {path}"
        return found[1]


def examine(answer: httpx2.Response) -> Document:
    """A page is HTML that only files of ours can make do anything, and that everybody can use."""
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page = Document(answer.text)
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names)), f"an id twice: {sorted(name for name in names if names.count(name) > 1)}"
    for tag, attributes in page.tags:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")], f"a handler in <{tag}>"
        if attributes.get("rel") == "boinc_scheduler":
            # Data for BOINC clients, which need the whole address; browsers do nothing with it.
            assert re.fullmatch(r"https?://[^/]+(/[^?#]*)?/boinc/scheduler", attributes["href"])
            continue
        for name in ("src", "href", "action"):
            assert not re.match(r"(?i)\s*(javascript|data|https?):|//", attributes.get(name, "")), attributes
    assert all(attributes.get("src") for attributes in page.all("script")), "an inline script"
    assert not page.all("style")
    assert len(page.all("main")) == len(page.all("h1")) == len(page.all("title")) == 1
    assert page.all("html")[0]["lang"] == "en"
    assert all(attributes.get("scope") for attributes in page.all("th"))
    labels = {attributes.get("for") for attributes in page.all("label")}
    for field in page.all("input"):
        assert field.get("type") == "hidden" or field.get("id") in labels or field.get("aria-hidden"), field
    for form in page.all("form"):
        assert form["method"] == "post"
    referred = [attributes[name] for _, attributes in page.tags for name in _REFERENCES if name in attributes]
    assert {name for value in referred for name in value.split()} <= set(names)
    return page


_REFERENCES = ("aria-labelledby", "aria-describedby", "for")


class World:
    """A site with everything on it that pages show: two projects, hosts, jobs in every state, hostile names."""

    def __init__(self, site: RunningSite) -> None:
        self.site = site
        self.browsers: dict[str, Browser] = {}
        self.operator = site.operator()
        self.alice = site.member("alice", PRIVATE)
        self.bob = site.member("bob", "bobs")
        self.reader = site.member("reader", PRIVATE, "reader")
        self.host = self.bob.attach(name=f"host {EVIL}", sandbox=["userns", EVIL], cpu_model=EVIL)
        spec = Spec(runner="fake", command=["echo", EVIL], environment={"A": EVIL})
        choices = [JobChoice(name=f"{EVIL} {number}", variables={"v": EVIL}) for number in range(3)]
        self.batch = self.alice.submit(spec=spec, name=f"{PRIVATE} {EVIL}", labels={EVIL: EVIL}, jobs=choices)
        tasks = [one.task for one in self.host.turn(want=2, wait_seconds=5).assignments]
        self.log(self.host, tasks[0], b"first line\n\x1b[31mred\x1b[0m " + EVIL.encode() + b"\n\xff\x00\n")
        self.host.turn(
            success(tasks[0], out=b"42"),
            TaskReport(task=tasks[1], outcome="failed", exit_code=3, cause="exit-code", wall_seconds=1.5),
        )
        self.waiting = self.alice.submit(spec=NEVER_FITS, name="never fits")

    def log(self, host: GuestHost, task: int, data: bytes) -> LogAnswer:
        """Let the host tell a piece of log."""
        answer = host.http.post(f"/api/v1/host/tasks/{task}/log?offset=0", content=data)
        assert answer.status_code == 200, answer.text
        return LogAnswer(size_bytes=answer.json()["size_bytes"])

    def browser(self, guest: Guest) -> Browser:
        """This person at a browser, signed in."""
        if guest.token not in self.browsers:
            self.browsers[guest.token] = Browser(self.site, guest.token)
        return self.browsers[guest.token]


@pytest.fixture(scope="module")
def world(shared_site: RunningSite) -> World:
    """A world that the tests of the module look at."""
    return World(shared_site)


def pages_of(world: World) -> list[str]:
    """Every page that alice may see."""
    batch = f"/batches/{world.batch}"
    filters = [f"{batch}?state={state}" for state in ("waiting", "done", "failed")]
    jobs = [f"/jobs/{world.batch}.{position}" for position in (1, 2, 3)]
    return [
        "/", "/status", "/account", "/batches", "/batches?state=ended", "/batches?limit=1", "/hosts", batch, *filters,
        f"{batch}?limit=1", *jobs, f"{jobs[0]}?attempt=0", f"/batches/{world.waiting}", f"/jobs/{world.waiting}.1",
    ]  # fmt: skip


def test_every_page_is_whole_and_escaped(world: World) -> None:
    browser = world.browser(world.alice)
    for path in pages_of(world):
        page = browser.page(path)
        assert "{{" not in page.text.replace(EVIL, "").replace("{{7*7}}", ""), path
        assert "49" not in page.text.split(), path
        assert not [image for image in page.all("img") if "mark." not in image.get("src", "")], path
    job = browser.page(f"/jobs/{world.batch}.1")
    assert EVIL in job.text
    assert "first line" in job.text
    assert "\x1b" not in job.text
    assert "red <script>" in job.text


def test_hostile_facts_of_hosts_are_escaped(world: World) -> None:
    page = world.browser(world.bob).page(f"/hosts/{world.host.id}")
    assert page.text.count(EVIL) >= 3
    assert "userns" in page.text
    assert "failed" in page.text


def test_strangers_see_the_public_pages_and_no_private_word(world: World) -> None:
    browser = Browser(world.site)
    for path in ("/", "/status", "/login"):
        page = browser.page(path)
        for private in (PRIVATE, "alice", "bobs", "alert(", world.host.id):
            assert private not in page.text, f"{private} on {path}"
    home = browser.page("/")
    assert world.site.url in home.text
    assert "distributio host attach" in home.text
    assert "distributio run" in home.text
    assert "3 jobs under way, 1 done" in home.text
    assert "All is well." in browser.page("/status").text


@pytest.mark.parametrize("path", ["/batches", "/account", "/hosts", "/jobs/1.1?attempt=0", "/batches/999"])
def test_strangers_are_asked_to_sign_in_and_come_back(world: World, path: str) -> None:
    browser = Browser(world.site)
    answer = browser.http.get(path)
    assert answer.status_code == 303
    place = answer.headers["location"]
    assert place.startswith("/login?next=/")
    back = [field["value"] for field in browser.page(place).all("input") if field.get("name") == "next"]
    assert browser.send(place, "/login", token=world.operator.token, next=back[0]).headers["location"] == path


@pytest.mark.parametrize("back", ["https://evil.example/", "//evil.example", "/\\evil.example", "/a\tb", "nowhere"])
def test_signing_in_leads_nowhere_else(world: World, back: str) -> None:
    answer = Browser(world.site).send("/login", "/login", token=world.alice.token, next=back)
    assert answer.headers["location"] == "/"


def test_the_session_is_a_cookie_that_scripts_and_other_sites_cannot_use(world: World) -> None:
    browser = Browser(world.site)
    answer = browser.sign_in(world.alice.token)
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert world.alice.token not in str(answer.headers)
    secret = browser.http.cookies[f"distributio_session_{world.site.port}"]
    assert accounts.hash_of(secret) in world.site.look(lambda t: [row[0] for row in t.rows("SELECT hash FROM tokens")])
    assert browser.send("/", "/logout").status_code == 303
    browser.http.cookies.set(f"distributio_session_{world.site.port}", secret)
    assert browser.http.get("/batches").status_code == 303


def test_behind_a_proxy_addresses_have_its_path_and_cookies_go_by_https_only(tmp_path: Path) -> None:
    for site in running(RunningSite(tmp_path, site_url="https://grid.example/x")):
        browser = Browser(site)
        for path in ("/login", "/x/login"):
            answer = browser.http.get(path)
            cookie = answer.headers["set-cookie"]
            assert cookie.startswith("distributio_guest=")
            assert {"Secure", "HttpOnly", "SameSite=strict", "Path=/x"} <= set(cookie.split("; "))
            page = examine(answer)
            places = [
                attributes[name]
                for _, attributes in page.tags
                for name in ("href", "src", "action")
                if name in attributes
            ]
            assert all(place.startswith(("/x/", "#")) for place in places), places
        assert (
            browser.http.get("/x/batches?state=ended").headers["location"] == "/x/login?next=/batches%3Fstate%3Dended"
        )


def test_a_wrong_token_is_told_so(world: World) -> None:
    browser = Browser(world.site)
    answer = browser.send("/login", "/login", token=f"dio_{EVIL}")
    assert answer.status_code == 403
    assert "does not know this token" in examine(answer).text


def test_a_session_ends(world: World) -> None:
    browser = Browser(world.site, world.alice.token)
    secret = browser.http.cookies[f"distributio_session_{world.site.port}"]
    world.site.look(
        lambda t: t.run("UPDATE tokens SET expires_at = 1 WHERE hash = :hash", hash=accounts.hash_of(secret))
    )
    browser = Browser(world.site)
    browser.http.cookies.set(f"distributio_session_{world.site.port}", secret)
    # It was never used before it ended, so nobody believes it from memory.
    assert browser.http.get("/account").status_code == 303


def test_what_a_bound_session_makes_ends_with_it(world: World) -> None:
    _, secret = world.site.look(
        lambda t: accounts.create_token(
            t, accounts.caller_by_token(t, world.alice.token).user_id, None, "bound", 0, 32503680000.0
        )
    )
    for token, ends in ((secret, True), (world.alice.token, False)):
        page = examine(Browser(world.site, token).send("/account", "/account/tokens", name="new one"))
        made = re.search(r"dio_[\w-]+", page.text)
        assert made
        caller = world.site.look(accounts.caller_by_token, made[0])
        assert (caller.expires_at is not None) == ends


def test_forms_from_elsewhere_are_refused(world: World) -> None:
    browser = world.browser(world.alice)
    cancel = f"/batches/{world.waiting}/cancel"
    key = browser.form_key(f"/batches/{world.waiting}", cancel)
    other = world.browser(world.bob).form_key("/account", "/account/tokens")
    for data, headers in (
        ({}, {}),
        ({sessions.KEY_FIELD: ""}, {}),
        ({sessions.KEY_FIELD: other}, {}),
        ({sessions.KEY_FIELD: key}, {"Sec-Fetch-Site": "cross-site"}),
        ({sessions.KEY_FIELD: key}, {"Sec-Fetch-Site": "same-site"}),
    ):
        answer = browser.http.post(cancel, data=data, headers=headers)
        assert answer.status_code == 403
        assert "form" in examine(answer).text
    assert browser.http.post(cancel, content=b"x" * 70_000).status_code == 413
    assert world.alice.batch(world.waiting).state == "active"
    assert Browser(world.site).http.post("/login", data={"token": world.alice.token}).status_code == 403


def test_every_post_of_the_pages_asks_for_the_form_key(world: World) -> None:
    browser = world.browser(world.alice)
    posts = [route for route in ROUTES if route.method == "POST" and route.access in sessions.ACCESS]
    assert len(posts) >= 7
    for route in posts:
        path = route.path.format(batch=world.batch, job=f"{world.batch}.1", host=world.host.id, token=1)
        assert browser.http.post(path).status_code == 403, path


def test_another_projects_things_are_not_there(world: World) -> None:
    browser = world.browser(world.bob)
    for path in (
        f"/batches/{world.batch}",
        f"/batches/{world.batch}/events",
        f"/jobs/{world.batch}.1",
        f"/jobs/{world.batch}.1/log",
        f"/jobs/{world.batch}.1/log?follow=1",
        f"/jobs/{world.batch}.1/results.tar",
        f"/jobs/{world.batch}.1/result.json",
        "/batches/999999",
        "/jobs/nonsense",
        "/hosts/h0000000000",
    ):
        page = browser.page(path, 404)
        assert PRIVATE not in page.text
        assert "bob" in page.text
    for action in (f"/batches/{world.batch}/cancel", f"/batches/{world.batch}/rerun", f"/jobs/{world.batch}.1/cancel"):
        key = browser.form_key("/account", "/account/tokens")
        assert browser.http.post(action, data={sessions.KEY_FIELD: key}).status_code == 404
    assert PRIVATE not in browser.page("/batches").text
    assert PRIVATE not in browser.page("/").text
    assert world.browser(world.alice).page(f"/hosts/{world.host.id}", 404)
    # The lender of the host sees that it had a task, not whose.
    assert PRIVATE not in browser.page(f"/hosts/{world.host.id}").text
    assert f"Job {world.batch}." not in browser.page(f"/hosts/{world.host.id}").text


def test_names_of_hosts_are_for_their_owner_and_the_operator(world: World) -> None:
    path = f"/jobs/{world.batch}.1"
    assert "host <script>" not in world.browser(world.alice).page(path).text
    assert world.host.id in world.browser(world.alice).page(path).text
    assert "host <script>" in world.browser(world.operator).page(path).text


def test_readers_read_and_change_nothing(world: World) -> None:
    browser = world.browser(world.reader)
    page = browser.http.get(f"/batches/{world.waiting}")
    assert page.status_code == 200
    assert "/cancel" not in page.text
    key = browser.form_key("/account", "/account/tokens")
    answer = browser.http.post(f"/batches/{world.waiting}/cancel", data={sessions.KEY_FIELD: key})
    assert answer.status_code == 403
    assert "role" in examine(answer).text


def test_a_batch_tells_why_jobs_fail_and_why_they_wait(world: World) -> None:
    browser = world.browser(world.alice)
    page = browser.page(f"/batches/{world.batch}").text
    assert "The command ended with an exit code other than 0. Exit code 3." in page
    assert f"distributio logs {world.batch}.2" in page
    assert "Waiting: no host of the 1 could run it." in browser.page(f"/batches/{world.waiting}").text
    failed = browser.page(f"/batches/{world.batch}?state=failed").text
    assert f"{world.batch}.2" in failed
    assert browser.page(f"/batches/{world.batch}?state=nonsense", 422)


def test_results_and_log_are_there_for_the_taking(world: World) -> None:
    browser = world.browser(world.alice)
    path = f"/jobs/{world.batch}.1"
    wait_for(lambda: f"{path}/results.tar" in browser.http.get(path).text, "the results' being handed over")
    assert (
        browser.http.get(f"{path}/results.tar").content == world.alice.ask("GET", f"/api/v1{path}/results.tar").content
    )
    log = browser.http.get(f"{path}/log")
    assert log.headers["content-type"] == "text/plain; charset=utf-8"
    assert b"first line" in log.content
    with browser.http.stream("GET", f"{path}/log?follow=1") as news:
        assert news.headers["content-type"].startswith("text/event-stream")
        assert "event: end" in news.read().decode()


def test_cancel_and_rerun(world: World) -> None:
    browser = world.browser(world.alice)
    number = world.alice.submit(spec=NEVER_FITS, count=2, name="to be cancelled")
    here = f"/batches/{number}"
    assert browser.send(here, f"{here}/cancel").headers["location"] == here
    assert world.alice.batch(number).counts["cancelled"] == 2
    again = browser.send(here, f"{here}/rerun").headers["location"]
    assert again == f"/batches/{number + 1}"
    job = f"/jobs/{number + 1}.1"
    assert browser.send(job, f"{job}/cancel").headers["location"] == job
    assert world.alice.job(f"{number + 1}.1").state == "cancelled"


def test_a_host_is_detached_by_its_owner(world: World) -> None:
    host = world.bob.attach(name="short-lived")
    browser = world.browser(world.bob)
    here = f"/hosts/{host.id}"
    assert "short-lived" in browser.page("/hosts").text
    assert browser.send(here, f"{here}/detach").headers["location"] == "/hosts"
    assert "short-lived" not in browser.page("/hosts").text


def test_tokens_are_made_shown_once_and_revoked(world: World) -> None:
    browser = world.browser(world.bob)
    page = examine(browser.send("/account", "/account/tokens", name=EVIL))
    made = re.search(r"dio_[\w-]+", page.text)
    assert made
    assert world.site.guest(made[0]).get("/whoami")["user"] == "bob"
    text = browser.http.get("/account").text
    assert made[0] not in text
    number = re.search(
        rf"/account/tokens/(\d+)/revoke(?:(?!</form>).)*{re.escape(html.escape(EVIL)[:10])}", text, re.DOTALL
    )
    assert number
    assert browser.send("/account", f"/account/tokens/{number[1]}/revoke").status_code == 303
    world.site.guest(made[0]).get("/whoami", 401)


def test_the_operator_sees_all_and_others_do_not(world: World) -> None:
    assert PRIVATE not in world.browser(world.operator).page("/batches").text
    assert PRIVATE in world.browser(world.operator).page("/batches?all=1").text
    assert PRIVATE not in world.browser(world.bob).page("/batches?all=1").text
    assert "host <script>" in world.browser(world.operator).page("/hosts?all=1").text
    assert "host <script>" not in world.browser(world.alice).page("/hosts?all=1").text


def test_static_files_may_be_kept_for_ever(world: World) -> None:
    browser = Browser(world.site)
    page = browser.page("/")
    links = [link["href"] for link in page.all("link") if link["rel"] != "boinc_scheduler"]
    files = links + [script["src"] for script in page.all("script")]
    assert len(files) >= 3
    for file in files:
        answer = browser.http.get(file)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert re.search(r"\.[0-9a-f]{12}\.\w+$", file)
    assert browser.http.get("/static/../pages.py").status_code == 404
    assert browser.http.get("/static/site.css").status_code == 404


def test_errors_are_pages_for_people_and_problems_for_programs(world: World) -> None:
    browser = Browser(world.site)
    assert "Nothing here" in browser.page(f"/nowhere/{EVIL}", 404).text
    assert browser.page("/logout", 405)
    assert browser.http.get("/api/v1/nowhere").headers["content-type"] == "application/problem+json"
    assert browser.http.post("/api/v1/status").headers["content-type"] == "application/problem+json"
    assert browser.http.get("/v2/nowhere").headers["content-type"] != "text/html; charset=utf-8"


def test_the_api_does_not_listen_to_the_cookie(world: World) -> None:
    browser = world.browser(world.alice)
    assert browser.http.get("/api/v1/batches").status_code == 401


def test_pages_that_belong_to_somebody_are_not_kept(world: World) -> None:
    browser = world.browser(world.alice)
    for path in ("/", "/batches", "/account"):
        assert browser.http.get(path).headers["cache-control"] == "no-store"
