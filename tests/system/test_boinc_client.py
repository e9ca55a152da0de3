"""A stock BOINC client, attached with nothing but the address, is a host like any other."""

import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import msgspec
import pytest

from boinc_client import BoincClient, poke_until
from distributio.wire.boinc_accounts import password_digest
from distributio.wire.native import Input, Limits, Spec
from image_fixture import standin_archive
from sites import API, DISTRIBUTIO, Guest, RunningSite, running, wait_for

pytestmark = pytest.mark.system

# A program that knows how to speak to the client just enough: it writes its output and says that it has finished.
PROGRAM = """#!/usr/bin/env python3
import re, sys

def place(name):
    with open(name, "rb") as file:
        match = re.match(rb"<soft_link>(.*?)</soft_link>", file.read(512))
    return match[1].decode() if match else name

with open(place("in")) as source, open(place("out"), "w") as target:
    target.write(source.read().upper() + " ".join(sys.argv[1:]))
sys.stderr.write("shouted\\n")
with open("boinc_finish_called", "w") as mark:
    mark.write("0\\n")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSite]:
    yield from running(RunningSite(tmp_path_factory.mktemp("site")))


@pytest.fixture(scope="module")
def operator(site: RunningSite, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    archive = standin_archive(tmp_path_factory.mktemp("image"))
    operator = site.operator()
    with archive.path.open("rb") as data:
        operator.ask("POST", f"{API}/images/archive?reference=python:alpine", 201, content=data)
    archive.path.unlink()
    return operator


@pytest.fixture(scope="module")
def client(site: RunningSite, operator: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BoincClient]:
    client = BoincClient(tmp_path_factory.mktemp("lender") / "boinc")
    try:
        client.start()
        client.ask("--project_attach", f"{site.url}/", account_key(site))
        yield client
    except BaseException:
        print(client.said()[-6000:])
        raise
    finally:
        client.close()


def account_key(site: RunningSite) -> str:
    digest = password_digest("lender@example.org", "correct horse")
    query = {"email_addr": "lender@example.org", "passwd_hash": digest, "user_name": "A lender"}
    answer = httpx2.get(f"{site.url}/create_account.php", params=query, timeout=30)
    found = re.search("<authenticator>(.*)</authenticator>", answer.text)
    assert found is not None, answer.text
    return found[1]


def results(operator: Guest, job: str) -> dict[str, bytes]:
    wait_for(lambda: operator.job(job).handed_over, f"job {job} handed over")
    tar = operator.ask("GET", f"{API}/jobs/{job}/results.tar").content
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return {one.name: archive.extractfile(one).read() for one in archive if one.isreg()}  # type: ignore[union-attr]


def put_file(operator: Guest, data: bytes) -> Input:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    operator.ask("PUT", f"{API}/files/{digest}", 201, content=data)
    return Input(path="/in", digest=digest, size_bytes=len(data))


def add_app(site: RunningSite, folder: Path) -> None:
    place = folder / "shout" / "1.00" / "x86_64-pc-linux-gnu"
    place.mkdir(parents=True)
    (place / "shout.py").write_text(PROGRAM)
    command = [*DISTRIBUTIO, "app", "add", str(folder / "shout"), "--data", str(site.data), "-o", "json"]
    done = subprocess.run(command, env=site.environment, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout)["added"] == ["100 x86_64-pc-linux-gnu"]


def test_container_jobs_and_jobs_of_an_app_come_back(
    site: RunningSite, operator: Guest, client: BoincClient, tmp_path: Path
) -> None:
    add_app(site, tmp_path)
    code = "import os; print('Hello BOINC'); open('/root/shared/results/x', 'w').write(open('/in').read() * 2)"
    limits = Limits(wall_seconds=100, memory_bytes=64 << 20)
    container = operator.submit(
        spec=Spec(
            image="python:alpine",
            command=["python", "-c", code],
            inputs=[put_file(operator, b"two words")],
            limits=limits,
        )
    )
    failing = operator.submit(spec=Spec(image="python:alpine", command=["python", "-c", "exit(3)"], limits=limits))
    native = operator.submit(
        spec=Spec(
            runner="boinc:shout",
            command=["--twice", "a b"],
            inputs=[put_file(operator, b"hear, hear ")],
            limits=limits,
        )
    )
    batches = (container, failing, native)
    poke_until(client, site.url, lambda: all(operator.batch(n).ended_at for n in batches), "the end of all jobs", 100)

    assert results(operator, f"{container}.1") == {"x": b"two wordstwo words"}
    assert operator.ask("GET", f"{API}/jobs/{container}.1/log").text == "Hello BOINC\n"
    job = operator.job(f"{failing}.1")
    assert (job.state, job.exit_code, job.cause) == ("failed", 3, "exit-code")
    assert results(operator, f"{native}.1") == {"out": b"HEAR, HEAR --twice a b"}
    assert "shouted" in operator.ask("GET", f"{API}/jobs/{native}.1/log").text

    wait_for(lambda: not client.tasks(), "the client's tasks acknowledged")
    said = client.said()
    assert "[error]" not in said, said
    hosts = operator.get("/hosts?all=1")["items"]
    assert [(host["engine"], host["done"], host["failed"]) for host in hosts] == [("BOINC 7.20.5", 2, 1)]


def test_a_container_is_suspended_and_found_again_when_the_client_starts_anew(
    site: RunningSite, operator: Guest, client: BoincClient
) -> None:
    code = "import time\nfor i in range(8): print(f'##distributio progress 0.{i + 1}', flush=True); time.sleep(1)"
    batch = operator.submit(
        spec=Spec(image="python:alpine", command=["python", "-c", code], limits=Limits(wall_seconds=60))
    )

    def fraction() -> float:
        return max([float(task.get("fraction done", 0)) for task in client.tasks().values()], default=0.0)

    poke_until(client, site.url, lambda: fraction() >= 0.2, "the first words of progress", 60)
    name = next(iter(client.tasks()))
    client.ask("--task", f"{site.url}/", name, "suspend")
    wait_for(lambda: "SUSPENDED" in client.tasks()[name].get("active_task_state", "SUSPENDED"), "the task suspended")
    client.ask("--task", f"{site.url}/", name, "resume")
    client.quit()
    stood = operator.ask("GET", f"{API}/jobs/{batch}.1").text
    assert msgspec.json.decode(stood)["state"] == "running"
    client.start()
    poke_until(client, site.url, lambda: operator.batch(batch).ended_at is not None, "the end of the job", 70)
    job = operator.job(f"{batch}.1")
    assert (job.state, len(job.tasks)) == ("done", 1)
    assert "restart" not in operator.ask("GET", f"{API}/jobs/{batch}.1/log").text
