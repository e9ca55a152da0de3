"""The hosts and the submitter of the measurements: what they say to the site, byte for byte what agents and clients say."""

import base64
import collections
import io
import itertools
import json
import tarfile
from typing import Any

import msgspec
from msgspec import Struct

from bench import generator
from bench.generator import Question
from bench.sites import Site
from distributio.wire.results_tar import Bounds, normalise

API = "/api/v1"
LENT = {"cpus": 4096, "memory_bytes": 1 << 50, "disk_bytes": 1 << 50}
SMALL_BYTES = 10_000
REPORTS = 500  # different results tars that are made beforehand and used in turn
SPEC = {
    "runner": "fake",
    "command": ["python3", "/in/model.py", "--seed", "{seed}", "--steps", "1000"],
    "environment": {"MODEL": "ising", "TEMPERATURE": "2.27"},
    "limits": {"cpus": 1.0, "memory_bytes": 1 << 30, "disk_bytes": 1 << 30, "wall_seconds": 3600.0},
}


class _Given(Struct):
    task: int
    job: str


class Answer(Struct):
    """What a host of ours looks at in an answer."""

    acknowledged: list[int] = []
    assignments: list[_Given] = []
    cancel: list[int] = []


_answer = msgspec.json.Decoder(Answer)


class Host(Struct, kw_only=True):
    """A host and the tasks it has."""

    authorization: str
    held: list[int] = []
    ended: list[int] = []


class Output(Struct, frozen=True):
    """A results tar as a host has it."""

    data: bytes
    digest: str


def make_output(number: int, size: int) -> Output:
    """A results tar in the canonical form of about this many bytes, different for each number."""
    content = (f"{number:08d}," * (size // 9 + 1)).encode()[: max(1, size - 1536)]
    engine = io.BytesIO()
    with tarfile.open(fileobj=engine, mode="w") as archive:
        member = tarfile.TarInfo("results/energy.csv")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    engine.seek(0)
    target = io.BytesIO()
    summary = normalise(engine, target, Bounds())
    return Output(target.getvalue(), summary.digest)


class Crowd:
    """Attached hosts that take turns."""

    def __init__(self, site: Site, count: int) -> None:
        self.site = site
        self._count = count
        self.hosts = self._attach(count)
        self.idle = collections.deque(self.hosts)
        self.outputs = [make_output(number, SMALL_BYTES) for number in range(REPORTS)]
        self._reports = itertools.cycle([self._report(output, inline=True) for output in self.outputs])
        self._uploaded = [self._report(output, inline=False) for output in self.outputs]

    def renew(self) -> None:
        """Other hosts take over; those so far keep what they have and are not heard of again."""
        self.hosts = self._attach(self._count)
        self.idle = collections.deque(self.hosts)

    def _attach(self, count: int) -> list[Host]:
        facts = {"platform": "linux/amd64", "name": "bench", "runners": ["fake"], **LENT}
        body = json.dumps({"facts": facts}).encode()
        data = generator.request("POST", f"{API}/hosts", f"Bearer {self.site.token}", body)
        questions = [Question(data) for _ in range(count)]
        hosts: list[Host] = []

        def tell(_about: Any, status: int, answer: bytes) -> None:
            if status != 201:
                raise generator.Refused(f"a host could not join: {status} {answer[:600]!r}")
            attached = json.loads(answer)
            hosts.append(Host(authorization=f"Host {attached['host']}:{attached['key']}"))

        generator.drive(
            self.site.address, 8, lambda: questions.pop() if questions else None, tell, lambda: not questions
        )
        return hosts

    @staticmethod
    def _report(output: Output, *, inline: bool) -> bytes:
        report: dict[str, Any] = {
            "outcome": "success",
            "exit_code": 0,
            "output_digest": output.digest,
            "output_bytes": len(output.data),
            "wall_seconds": 12.5,
            "cpu_seconds": 11.25,
            "memory_bytes": 123_456_789,
        }
        if inline:
            report["output"] = base64.b64encode(output.data).decode()
        return json.dumps(report).encode()[1:]

    def turn(self, host: Host, want: int, wait: float = 0.0) -> Question:
        """A host's turn: what it ended is reported, what it has is named, so many tasks are wanted."""
        body = b'{"reports":['
        body += b",".join(b'{"task":%d,%b' % (task, self._report_of(task)) for task in host.ended)
        body += b'],"held":['
        body += b",".join(b'{"task":%d}' % task for task in host.held)
        body += b"]"
        if want:
            body += (
                b',"want":{"cpus":4096,"memory_bytes":1125899906842624,"disk_bytes":1125899906842624,"tasks":%d}' % want
            )
        body += b',"wait_seconds":%g}' % wait
        return Question(generator.request("POST", f"{API}/host/turn", host.authorization, body), host)

    uploads_apart = False

    def _report_of(self, task: int) -> bytes:
        return self._uploaded[task % REPORTS] if self.uploads_apart else next(self._reports)

    def upload(self, host: Host, task: int) -> Question:
        """A results tar on its own, before the report that names it."""
        output = self.outputs[task % REPORTS]
        return Question(put_output(host, task, output), host)


def put_output(host: Host, task: int, output: Output) -> bytes:
    """The request that brings a task's results tar."""
    more = f"Digest: {output.digest}\r\nUpload-Length: {len(output.data)}\r\n"
    return generator.request("PUT", f"{API}/host/tasks/{task}/output", host.authorization, output.data, more)


def read(status: int, body: bytes) -> Answer:
    """The answer to a turn."""
    if status != 200:
        raise generator.Refused(f"a turn: {status} {body[:600]!r}")
    return _answer.decode(body)


def submission(count: int, *, alike: bool = False, seed: int = 0) -> bytes:
    """A batch of so many jobs, each with a variable of its own unless they are to be alike."""
    body: dict[str, Any] = {"spec": SPEC, "name": "bench"}
    if alike:
        body["count"] = count
        body["spec"] = {**SPEC, "command": ["true"]}
    else:
        body["jobs"] = [{"variables": {"seed": str(seed + number)}} for number in range(count)]
    return json.dumps(body, separators=(",", ":")).encode()


def submit(site: Site, body: bytes) -> int:
    """Submit a batch; return its number."""
    answer = generator.call(site.address, submit_request(site, body), 201)
    return int(json.loads(answer)["id"])


def submit_request(site: Site, body: bytes) -> bytes:
    """The request that submits."""
    return generator.request("POST", f"{API}/batches", f"Bearer {site.token}", body)
