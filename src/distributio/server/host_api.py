"""What hosts say to the site: turns, logs, outputs, and the files they ask for.

The turn is the hottest request of a site, so it is a bare ASGI endpoint: no routing, no request object.
"""

import asyncio
import base64
import binascii
import hashlib
import io
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from distributio.lifecycle.dispatch import Offer
from distributio.lifecycle.model import Outcome, Report
from distributio.server import assignments, preflight, problems
from distributio.server.problems import Refused
from distributio.server.site import Site
from distributio.server.turns import HostAnswer, HostTurn, Returned, room_for_log
from distributio.store import logs
from distributio.store.accounts import KnownHost
from distributio.store.database import Transaction
from distributio.store.files import DigestMismatch, output_key
from distributio.wire.native import (
    INLINE_OUTPUT_BYTES,
    LOG_BYTES,
    HostFacts,
    TaskReport,
    Turn,
    TurnAnswer,
    WorkRequest,
)
from distributio.wire.oci import is_digest
from distributio.wire.results_tar import Bounds, verify
from distributio.wire.tar_blocks import BadResults

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MOST_TURN_BYTES = 32 << 20
INT_32 = 1 << 31
FAR = 10**17  # beyond every size there is
RE_ASK_SECONDS = 5.0  # a waiting host is asked about this often even if nobody woke it

_turn_decoder = msgspec.json.Decoder(Turn)
_encoder = msgspec.json.Encoder()

# How a report's words become outcomes: what a host may say of a task.
_OUTCOMES = {
    "success": Outcome.SUCCESS,
    "failed": Outcome.FAILED,
    "error": Outcome.ERROR,
    "abandoned": Outcome.ABANDONED,
}


async def authenticate(site: Site, authorization: str) -> KnownHost:
    """The host that `Authorization: Host ID:KEY` (or Basic with the same) speaks for. Raises Refused."""
    scheme, _, rest = authorization.partition(" ")
    public_id, _, key = rest.partition(":")
    if scheme.lower() == "basic":
        try:
            public_id, _, key = base64.b64decode(rest, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise Refused(401, "bad-host-key") from None
    elif scheme.lower() != "host":
        raise Refused(
            401, "bad-host-key", "send Authorization: Host ID:KEY, as the site gave them when the host joined"
        )
    host = await site.host(public_id, key)
    if host is None:
        raise Refused(401, "bad-host-key")
    return host


async def read_body(receive: Receive, most: int) -> bytes:
    """A request's body. Raises Refused if it is too long or cut."""
    message = await receive()
    if message["type"] != "http.request":
        raise Refused(400, "bad-request", "the request was cut")
    data: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if len(data) > most:
            raise Refused(413, "too-large", f"the request may have {most} bytes")
        return data
    parts = [data]
    size = len(data)
    while message.get("more_body"):
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "bad-request", "the request was cut")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise Refused(413, "too-large", f"the request may have {most} bytes")
    return b"".join(parts)


async def answer_json(send: Send, body: bytes) -> None:
    """Send 200 with JSON."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def header(scope: Scope, name: bytes) -> str:
    """A request header, or an empty text."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return ""


class TurnEndpoint:
    """POST /api/v1/host/turn."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._batches = assignments.Batches(site)
        self._newest: dict[int, object] = {}  # each host's newest turn, which says how things stand with it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one turn."""
        try:
            host = await authenticate(self._site, header(scope, b"authorization"))
            turn = _turn_decoder.decode(await read_body(receive, MOST_TURN_BYTES))
            answer = await self._take(host, turn, receive)
        except Exception as error:
            await problems.response(error)(scope, receive, send)
            return
        await answer_json(send, _encoder.encode(answer))

    async def _take(self, host: KnownHost, turn: Turn, receive: Receive) -> TurnAnswer:
        facts = host.facts
        if turn.facts is not None and turn.facts != facts:
            preflight.check_facts(turn.facts)
            facts = turn.facts
        # What a banned host brings is done with, and changes nothing.
        ignored = [report.task for report in turn.reports] if host.state == "banned" else []
        event = HostTurn(
            host_id=host.id,
            user_id=host.user_id,
            reports=[] if ignored else [await self._check(report) for report in turn.reports],
            held=[(held.task, _plain(held.phase, 40), held.fraction) for held in turn.held],
            offer=_offer(facts, turn.want) if turn.want is not None and host.state == "active" else None,
            facts=_encoder.encode(facts).decode() if facts is not host.facts else None,
            gflops=facts.gflops,
            is_start=turn.facts is not None,
        )
        decided = await self._decide(event, turn, receive)
        if facts is not host.facts:
            self._site.forget(public_id=host.public_id)
        self._site.count_rejections(decided.rejections)
        why = [] if decided.sent or turn.want is None else self._why(host, decided)
        return TurnAnswer(
            acknowledged=decided.acknowledged + ignored,
            assignments=[await self._batches.assignment(each, facts.platform) for each in decided.sent],
            cancel=decided.cancel,
            why_no_work=why,
            now=time.time(),
        )

    async def _decide(self, event: HostTurn, turn: Turn, receive: Receive) -> HostAnswer:
        site = self._site
        # Work is given to a host's newest turn only: what an older one asked for is no longer free there.
        self._newest[event.host_id] = turn
        site.hub.newer_turn(event.host_id)
        seen = site.hub.readied
        decided: HostAnswer = await site.ledger.ask(event)
        until = time.monotonic() + min(turn.wait_seconds, site.settings.poll_seconds)
        gone = asyncio.ensure_future(_disconnected(receive)) if event.offer is not None else None
        try:
            again = HostTurn(host_id=event.host_id, user_id=event.user_id, offer=event.offer)
            while event.offer is not None and not (decided.sent or decided.acknowledged or decided.cancel):
                left = until - time.monotonic()
                if left <= 0 or site.hub.closing or (gone is not None and gone.done()):
                    break
                if self._newest.get(event.host_id) is not turn:
                    break
                # What became ready while the ledger was asked woke nobody here.
                woken = site.hub.readied != seen or await site.hub.work(min(left, RE_ASK_SECONDS), event.host_id)
                seen = site.hub.readied
                if (gone is not None and gone.done()) or self._newest.get(event.host_id) is not turn:
                    site.hub.pass_on()
                    break
                found: HostAnswer = await site.ledger.ask(again)
                decided.sent, decided.rejections = found.sent, found.rejections
                if woken and not found.sent:
                    site.hub.pass_on()
        finally:
            if self._newest.get(event.host_id) is turn:
                del self._newest[event.host_id]
            if gone is not None:
                gone.cancel()
        return decided

    def _why(self, host: KnownHost, decided: HostAnswer) -> list[Any]:
        if host.state != "active":
            return [problems.because(f"host-{host.state}")]
        codes = sorted(decided.rejections.items(), key=lambda pair: -pair[1])
        return [problems.because(code, count) for code, count in codes] or [problems.because("no-ready-tasks")]

    async def _check(self, report: TaskReport) -> Returned:
        """A report as the ledger may believe it: an output counts only if the site holds its bytes and they are a proper
        results tar."""
        outcome = _OUTCOMES.get(report.outcome)
        if outcome is None:
            raise Refused(
                422, "bad-request", f"outcome {report.outcome!r} of task {report.task} is none a host may report"
            )
        log = report.log or b""
        if report.detail:
            log += f"[host] {report.detail}\n".encode()
        offset = report.log_offset if 0 <= report.log_offset <= LOG_BYTES else LOG_BYTES
        returned = Returned(
            task=report.task,
            report=Report(
                outcome=outcome,
                exit_code=report.exit_code if -INT_32 <= (report.exit_code or 0) < INT_32 else None,
                cause=_plain(report.cause, 100),
                output_digest=report.output_digest,
                output_bytes=await self._output_bytes(report),
                wall_seconds=max(0.0, report.wall_seconds),
                cpu_seconds=max(0.0, report.cpu_seconds),
                memory_bytes=max(0, min(report.memory_bytes, FAR)),
            ),
            output=report.output,
            log=room_for_log(offset, log) or None,
            log_offset=offset,
        )
        refusal = self._refuse_output(report, returned.report.output_bytes)
        if refusal is not None:
            returned.output = None
            returned.report = Report(outcome=Outcome.ERROR, cause=refusal)
        return returned

    async def _output_bytes(self, report: TaskReport) -> int:
        """The size of the output as the site has it, whatever the host says; -1 if it has none of this digest."""
        if report.output is not None:
            return len(report.output)
        if not report.output_digest:
            return 0
        if not is_digest(report.output_digest):
            return -1
        key = output_key(report.task, report.output_digest)
        try:
            return await self._site.in_thread(self._site.files.size_of, key)
        except FileNotFoundError:
            return -1

    def _refuse_output(self, report: TaskReport, size: int) -> str | None:
        if size < 0:
            return "output-missing"
        if report.output is not None:
            if size > INLINE_OUTPUT_BYTES or size != report.output_bytes:
                return "bad-output"
            try:
                check_output(report.output, report.output_digest)
            except DigestMismatch:
                return "digest-mismatch"
            except BadResults:
                return "bad-output"
        return None


def _plain(text: str, most: int) -> str:
    """A host's words, short and without what a database cannot keep."""
    return text.replace("\0", "")[:most]


def check_output(data: bytes, digest: str) -> None:
    """A small results tar as it came. Raises DigestMismatch if it is not the one that was announced, BadResults if it is
    none."""
    problem = None
    try:
        found = verify(io.BytesIO(data), Bounds()).digest
    except BadResults as error:
        problem, found = error, f"sha256:{hashlib.sha256(data).hexdigest()}"
    if found != digest:
        raise DigestMismatch(f"expected {digest}, but the bytes are {found}: send them again from the start")
    if problem is not None:
        raise problem


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _offer(facts: HostFacts, want: WorkRequest) -> Offer:
    return msgspec.structs.replace(
        preflight.offer_of(facts),
        free_cpus=want.cpus,
        free_memory_bytes=want.memory_bytes,
        free_disk_bytes=want.disk_bytes,
        free_gpus=want.gpus,
        free_tasks=want.tasks,
    )


class HeldTask(msgspec.Struct, frozen=True):
    """A task in progress on the host that asks."""

    id: int
    job_id: int
    attempt: int


def held_task(transaction: Transaction, task_id: int, host_id: int) -> HeldTask | None:
    """The task, if this host has it in progress."""
    row = transaction.one(
        "SELECT id, job_id, attempt FROM tasks WHERE id = :task AND host_id = :host AND state = 'in_progress'",
        task=task_id,
        host=host_id,
    )
    return HeldTask(*row) if row else None


def append_log(transaction: Transaction, task_id: int, offset: int, data: bytes) -> int:
    """Keep a piece of a running task's log if it continues what the site has; return how much it has then."""
    held = logs.size(transaction, task_id)
    piece = room_for_log(held, data) if offset == held else b""
    if not piece:
        return held
    logs.keep(transaction, [(task_id, held, piece)])
    return held + len(piece)
