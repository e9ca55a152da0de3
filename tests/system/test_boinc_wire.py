"""What happens to BOINC clients that lose replies, lie, are copied, or come back after a change of keys: said by hand."""

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from distributio.store import boinc
from distributio.wire import signatures
from distributio.wire.boinc_accounts import password_digest, weak_key
from distributio.wire.native import PolicyChoice, Spec
from sites import DISTRIBUTIO, Guest, RunningSite, results_tar, running, wait_for

pytestmark = pytest.mark.system

EMAIL = "lender@example.org"


class Client:
    """Says what a BOINC client would say."""

    def __init__(self, site: RunningSite, key: str, cpid: str = "a" * 32) -> None:
        self.site = site
        self.key = key
        self.cpid = cpid
        self.host_id = 0
        self.seqno = 0
        self.code_sign_key = ""
        self.held: list[str] | None = []

    def call(self, *results: str, want: float = 0.0, **more: Any) -> str:
        """One call of the scheduler; what it is told of itself is remembered."""
        others = ""
        if self.held is not None:
            names = "".join(f"<other_result>\n<name>{name}</name>\n</other_result>\n" for name in self.held)
            others = f"<other_results>\n{names}</other_results>\n"
        key = f"<code_sign_key>\n{self.code_sign_key}\n</code_sign_key>\n" if self.code_sign_key else ""
        body = (
            f"<scheduler_request>\n<authenticator>{more.get('key', self.key)}</authenticator>\n"
            f"<hostid>{self.host_id}</hostid>\n<rpc_seqno>{self.seqno}</rpc_seqno>\n"
            "<core_client_major_version>7</core_client_major_version>\n"
            f"<platform_name>{more.get('platform', 'x86_64-pc-linux-gnu')}</platform_name>\n{key}"
            f"<cpu_req_secs>{want}</cpu_req_secs>\n<cpu_req_instances>{want and 1}</cpu_req_instances>\n"
            f"<host_info>\n<domain_name>box</domain_name>\n<host_cpid>{self.cpid}</host_cpid>\n<p_ncpus>4</p_ncpus>\n"
            "<p_fpops>2000000000</p_fpops>\n<m_nbytes>8000000000</m_nbytes>\n<d_total>90000000000</d_total>\n"
            f"<d_free>80000000000</d_free>\n</host_info>\n{''.join(results)}{more.get('extra', '')}{others}"
            "</scheduler_request>\n"
        )
        self.seqno += 1
        answer = httpx2.post(f"{self.site.url}/boinc/scheduler", content=body.encode(), timeout=30)
        assert answer.status_code == 200, answer.text
        said = re.search(r"<hostid>(\d+)</hostid>", answer.text)
        if said:
            self.host_id, self.seqno = int(said[1]), 0
        sent = re.search(r"<code_sign_key>\n(.*?)\n</code_sign_key>", answer.text, re.DOTALL)
        if sent and not self.code_sign_key:
            self.code_sign_key = sent[1]
        return answer.text

    def upload(self, name: str, data: bytes, *, offset: int = 0, total: int = -1, md5: str = "") -> int:
        """Bring a file, or a piece of it; return the status."""
        total = len(data) if total < 0 else total
        head = (
            "<data_server_request>\n<file_upload>\n<file_info>\n"
            f"<name>{name}</name>\n<xml_signature>\n</xml_signature>\n<max_nbytes>1000000</max_nbytes>\n</file_info>\n"
            f"<nbytes>{total}</nbytes>\n<md5_cksum>{md5 or hashlib.md5(data).hexdigest()}</md5_cksum>\n"
            f"<offset>{offset}</offset>\n<data>\n"
        )
        return self._status(head.encode() + data)

    def size_of(self, name: str) -> int:
        """How much of a file the site says it has."""
        body = f"<data_server_request>\n<get_file_size>{name}</get_file_size>\n</data_server_request>\n"
        answer = httpx2.post(f"{self.site.url}/boinc/file_upload_handler", content=body.encode(), timeout=30)
        found = re.search(r"<file_size>(\d+)</file_size>", answer.text)
        assert found is not None, answer.text
        return int(found[1])

    def _status(self, body: bytes) -> int:
        answer = httpx2.post(f"{self.site.url}/boinc/file_upload_handler", content=body, timeout=30)
        found = re.search(r"<status>(-?\d+)</status>", answer.text)
        assert found is not None, answer.text
        return int(found[1])


def names(reply: str) -> list[str]:
    """The tasks a reply sends."""
    return [re.search("<name>(.*?)</name>", one)[1] for one in re.findall(r"<result>.*?</result>", reply, re.DOTALL)]  # type: ignore[index]


def outputs(reply: str, task: str) -> list[str]:
    """The names of the files a task may bring."""
    return re.findall(rf"<name>({re.escape(task)}_r[0-9a-f]+_\d+)</name>", reply)


def report(task: str, *files: tuple[str, bytes], state: int = 5, status: int = 0, error: str = "", **words: Any) -> str:
    """A report of the container program."""
    said = {"outcome": "success", "exit_code": 0, "cause": "", "detail": "", **words}
    listed = "".join(
        f"<file_info>\n<name>{name}</name>\n<nbytes>{len(data)}</nbytes>\n"
        f"<md5_cksum>{hashlib.md5(data).hexdigest()}</md5_cksum>\n"
        f"{f'<error_msg>{error}</error_msg>' if error else ''}</file_info>\n"
        for name, data in files
    )
    return (
        f"<result>\n<name>{task}</name>\n<exit_status>{status}</exit_status>\n<state>{state}</state>\n"
        "<stderr_out>\n<![CDATA[\n<stderr_txt>\n"
        f"##distributio report {json.dumps(said)}\n</stderr_txt>\n]]>\n</stderr_out>\n{listed}</result>\n"
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSite]:
    yield from running(RunningSite(tmp_path_factory.mktemp("wire")))


@pytest.fixture(scope="module")
def key(site: RunningSite) -> str:
    return found_key(site, EMAIL, "secret")


def found_key(site: RunningSite, email: str, password: str, call: str = "create_account") -> str:
    query = {"email_addr": email, "passwd_hash": password_digest(email, password), "user_name": "Somebody"}
    text = httpx2.get(f"{site.url}/{call}.php", params=query, timeout=30).text
    found = re.search("<authenticator>(.*)</authenticator>", text)
    return found[1] if found else text


@pytest.fixture(scope="module")
def app(site: RunningSite, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An app of the site, whose jobs need no image."""
    folder = tmp_path_factory.mktemp("apps") / "echo"
    place = folder / "100" / "x86_64-pc-linux-gnu"
    place.mkdir(parents=True)
    (place / "echo").write_text("#!/bin/sh\n")
    (folder / "app.toml").write_text('title = "Echo"\noutputs = ["out", "more"]\n')
    distributio(site, "app", "add", str(folder))
    return "boinc:echo"


def distributio(site: RunningSite, *words: str) -> Any:
    command = [*DISTRIBUTIO, *words, "--data", str(site.data), "-o", "json"]
    done = subprocess.run(command, env=site.environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def client(site: RunningSite, key: str, request: pytest.FixtureRequest) -> Client:
    client = Client(site, key, hashlib.md5(request.node.name.encode()).hexdigest())
    client.call()
    return client


@pytest.fixture
def operator(site: RunningSite, app: str) -> Iterator[Guest]:
    operator = site.operator()
    yield operator
    for batch in operator.get("/batches?state=active")["items"]:
        operator.ask("POST", f"/api/v1/batches/{batch['id']}/cancel")


def submit(operator: Guest, app: str, count: int = 1, **policy: Any) -> int:
    return operator.submit(count, spec=Spec(runner=app, command=["hello"]), policy=PolicyChoice(**policy))


# --- accounts -----------------------------------------------------------------------------------------------------


def test_an_account_is_found_by_its_password_and_by_no_other(site: RunningSite, key: str) -> None:
    assert re.fullmatch("[0-9a-f]{32}", key)
    assert found_key(site, EMAIL, "secret", "lookup_account") == key
    assert found_key(site, EMAIL, "secret") == key  # creating it again is the same
    assert "<error_num>-206<" in found_key(site, EMAIL, "wrong", "lookup_account")
    assert "<error_num>-137<" in found_key(site, EMAIL, "wrong")
    assert "<error_num>-136<" in found_key(site, "nobody@example.org", "secret", "lookup_account")
    assert "<error_num>-205<" in found_key(site, "no address", "secret")


def test_a_key_that_is_not_known_gets_a_notice_and_nothing_else(site: RunningSite) -> None:
    text = Client(site, "f" * 32).call(want=1000.0)
    assert '<message priority="notice">' in text
    assert "<hostid>" not in text


def test_a_weak_key_computes_and_a_made_up_one_does_not(site: RunningSite, key: str) -> None:
    account = site.look(boinc.account_by_key, key)
    weak = weak_key(account.user_id, account.authenticator, account.password_hash)
    assert "<hostid>" in Client(site, weak, "b" * 32).call()
    assert "<hostid>" not in Client(site, weak[:-1] + "x", "c" * 32).call()


# --- who is who ---------------------------------------------------------------------------------------------------


def test_a_client_is_told_its_number_once(client: Client) -> None:
    known = client.host_id
    assert known
    assert "<hostid>" not in client.call()
    assert client.host_id == known


def test_a_client_that_attaches_again_is_the_host_it_was(client: Client) -> None:
    before = client.host_id
    client.host_id = client.seqno = 0
    assert f"<hostid>{before}</hostid>" in client.call()


def test_a_copied_data_folder_becomes_a_host_of_its_own(client: Client) -> None:
    before = client.host_id
    for _ in range(3):
        client.call()
    client.seqno = 1
    client.call()
    assert client.host_id != before


def test_another_persons_number_is_worth_nothing(site: RunningSite, client: Client) -> None:
    other = Client(site, found_key(site, "other@example.org", "secret"), "d" * 32)
    other.host_id = client.host_id
    other.seqno = 100
    other.call()
    assert other.host_id not in (0, client.host_id)


# --- keys ---------------------------------------------------------------------------------------------------------


def test_a_client_learns_the_key_once_and_follows_a_new_one(site: RunningSite, client: Client) -> None:
    old = client.code_sign_key
    assert old
    assert "<code_sign_key>" not in client.call()
    distributio(site, "keys", "new")

    def told() -> str:
        text = client.call()
        return text if "<code_sign_key>" in text else ""

    reply = wait_for(told, "the new key")
    new = re.search(r"<code_sign_key>\n(.*?)\n</code_sign_key>", reply, re.DOTALL)
    signed = re.search(r"<code_sign_key_signature>\n(.*?)\n</code_sign_key_signature>", reply, re.DOTALL)
    assert new is not None
    assert signed is not None
    assert signatures.verify(signatures.read_public(old), new[1].encode(), signed[1])
    client.code_sign_key = "1024\nabcd\n."
    text = client.call(want=1000.0)
    assert "add it again" in text
    assert "<result>" not in text


# --- work ---------------------------------------------------------------------------------------------------------


def test_a_lost_reply_is_sent_again_and_an_unwanted_task_is_called_off(
    client: Client, operator: Guest, app: str
) -> None:
    batch = submit(operator, app)
    first = client.call(want=1000.0)
    (task,) = names(first)
    assert names(client.call(want=1000.0)) == [task]  # the client says that it has nothing
    client.held = [task]
    assert names(client.call(want=1000.0)) == []
    assert "<result_abort>" not in client.call()
    operator.ask("POST", f"/api/v1/batches/{batch}/cancel")
    assert f"<result_abort>\n<name>{task}</name>" in client.call()
    client.held = ["something_else"]
    assert "<result_abort>\n<name>something_else</name>" in client.call()


def test_success_without_the_bytes_is_no_success(client: Client, operator: Guest, app: str) -> None:
    batch = submit(operator, app, max_errors=0)
    reply = client.call(want=1000.0)
    (task,) = names(reply)
    file = (outputs(reply, task)[0], b"never came")
    assert f"<result_ack>\n<name>{task}</name>" in client.call(report(task, file))
    job = operator.job(f"{batch}.1")
    assert (job.state, job.tasks[0].cause) == ("failed", "output-missing")


def test_success_with_a_refused_upload_is_no_success(client: Client, operator: Guest, app: str) -> None:
    batch = submit(operator, app, max_errors=0)
    reply = client.call(want=1000.0)
    (task,) = names(reply)
    client.call(report(task, (outputs(reply, task)[0], b""), error="permanent upload error"))
    assert operator.job(f"{batch}.1").tasks[0].cause == "output-missing"


def test_files_come_in_pieces_and_make_one_archive(client: Client, operator: Guest, app: str) -> None:
    batch = submit(operator, app)
    reply = client.call(want=1000.0)
    (task,) = names(reply)
    first, second = outputs(reply, task)
    data, empty = b"0123456789" * 1000, b""
    assert client.size_of(first) == 0
    md5 = hashlib.md5(data).hexdigest()
    assert client.upload(first, data[:4000], total=len(data), md5=md5) == 1  # the connection was cut
    assert client.size_of(first) == 4000
    assert client.upload(first, data[6000:], offset=6000, total=len(data), md5=md5) == 1  # a gap
    assert client.upload(first, data[4000:], offset=4000, total=len(data), md5=md5) == 0
    assert client.upload(first, data) == 0  # again: it is here
    assert client.upload(first, b"other") == 0
    assert client.upload(second, empty) == 0
    text = client.call(report(task, (first, data), (second, empty)))
    assert f"<result_ack>\n<name>{task}</name>" in text
    job = wait_for(lambda: (job := operator.job(f"{batch}.1")).handed_over and job, "the hand-over")
    assert job.state == "done"
    tar = operator.ask("GET", f"/api/v1/jobs/{batch}.1/results.tar").content
    assert tar == results_tar(out=data, more=empty)
    assert f"<result_ack>\n<name>{task}</name>" in client.call(report(task, (first, data)))  # told twice, counted once
    assert len(operator.job(f"{batch}.1").tasks) == 1


def test_a_large_file_comes_whole(client: Client, operator: Guest, app: str) -> None:
    batch = submit(operator, app)
    reply = client.call(want=1000.0)
    (task,) = names(reply)
    name = outputs(reply, task)[0]
    data = bytes(range(256)) * 20_000
    half = len(data) // 2 + 17
    md5 = hashlib.md5(data).hexdigest()
    assert client.upload(name, data[:half], total=len(data), md5=md5) == 1
    assert client.upload(name, data[half:], offset=half, total=len(data), md5=md5) == 0
    client.call(report(task, (name, data)))
    wait_for(lambda: operator.job(f"{batch}.1").handed_over, "the hand-over")
    assert operator.ask("GET", f"/api/v1/jobs/{batch}.1/results.tar").content == results_tar(out=data)


def test_what_is_damaged_is_asked_for_again_and_what_has_no_name_is_refused(
    client: Client, operator: Guest, app: str
) -> None:
    submit(operator, app)
    reply = client.call(want=1000.0)
    (task,) = names(reply)
    name = outputs(reply, task)[0]
    assert client.upload(name, b"bytes", md5="0" * 32) == 1
    assert client.size_of(name) == 0
    assert client.upload(name.replace("_r", "_r0", 1)[:-3] + "0_0", b"x") == -1
    assert client.upload("../../etc/passwd", b"x") == -1
    assert client.upload(f"{task}_0", b"x") == -1


def test_failures_and_errors_are_told_apart(client: Client, operator: Guest, app: str) -> None:
    batch = submit(operator, app, count=3, max_errors=0, max_tasks=1)
    tasks = sorted(names(client.call(want=3000.0)))
    endings = [{"status": 7, "state": 3}, {"status": -186, "state": 1}, {"status": 203, "state": 6}]
    client.call(*[report(task, **ending) for task, ending in zip(tasks, endings, strict=True)])  # type: ignore[arg-type]
    ended = [operator.job(f"{batch}.{position}").tasks[0] for position in (1, 2, 3)]
    assert [(task.outcome, task.cause) for task in ended] == [
        ("failed", "exit-code"),
        ("error", "input-missing"),
        ("abandoned", "owner-stopped"),
    ]
    assert ended[0].exit_code == 7


def test_a_client_of_a_strange_system_is_told_so(site: RunningSite, key: str, app: str) -> None:
    text = Client(site, key, "e" * 32).call(want=1000.0, platform="sparc-sun-solaris")
    assert "no program for your computer" in text


def test_a_trickle_is_acknowledged_and_kept_once(site: RunningSite, client: Client, operator: Guest, app: str) -> None:
    submit(operator, app)
    (task,) = names(client.call(want=1000.0))
    message = (
        f"<msg_from_host>\n<result_name>{task}</result_name>\n<time>1795393537</time>\n"
        "<variety>progress</variety>\n<text>\nstep 2\n</text>\n</msg_from_host>\n"
    )
    for _ in range(2):
        assert "<message_ack/>" in client.call(extra=message)
    kept = site.look(lambda transaction: transaction.rows("SELECT variety, text FROM trickles"))
    assert kept == [("progress", "step 2")]


# --- files --------------------------------------------------------------------------------------------------------


def test_a_file_is_for_those_who_were_told_and_a_range_beyond_its_end_gives_it_whole(
    site: RunningSite, client: Client, operator: Guest, app: str
) -> None:
    submit(operator, app)
    reply = client.call(want=1000.0)
    found = re.search("<url>(.*/boinc/download/.*)</url>", reply)
    assert found is not None
    url = found[1]
    whole = httpx2.get(url)
    assert whole.content == b"#!/bin/sh\n"
    part = httpx2.get(url, headers={"Range": "bytes=2-"})
    assert (part.status_code, part.content) == (206, b"/bin/sh\n")
    beyond = httpx2.get(url, headers={"Range": "bytes=10-"})
    assert (beyond.status_code, beyond.content) == (200, whole.content)
    head, _, hexadecimal = url.rpartition("/")
    assert httpx2.get(f"{head[:-1]}x/{hexadecimal}").status_code == 404


def test_the_main_program_is_signed_with_the_key_the_client_holds(client: Client, operator: Guest, app: str) -> None:
    submit(operator, app)
    reply = client.call(want=1000.0)
    signed = re.search(r"<file_signature>\n(.*?)\n</file_signature>", reply, re.DOTALL)
    assert signed is not None
    assert signatures.verify(signatures.read_public(client.code_sign_key), b"#!/bin/sh\n", signed[1])


def test_what_nobody_could_mean_is_refused(site: RunningSite, tmp_path: Path) -> None:
    assert httpx2.post(f"{site.url}/boinc/scheduler", content=b"<html>").status_code == 400
    assert httpx2.post(f"{site.url}/boinc/file_upload_handler", content=b"x" * 100_000).status_code == 200


def test_the_first_page_names_the_scheduler_for_clients_and_for_whoever_reads_it(site: RunningSite) -> None:
    link = f'<link rel="boinc_scheduler" href="{site.url}/boinc/scheduler">'
    for agent in ("BOINC client (x86_64-pc-linux-gnu 7.20.5)", "Mozilla/5.0"):
        page = httpx2.get(f"{site.url}/", headers={"User-Agent": agent}).text
        assert link in page.splitlines(), agent
