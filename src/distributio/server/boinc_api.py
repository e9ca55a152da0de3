"""A BOINC client's call of the scheduler: one event for the ledger, like any other host's turn.

Who calls is found in memory or with one read; the reports are held against the files that came; the ledger records them,
resends what the client lost and finds new work; the answer is written when that is committed. So leases, quorum, quotas and
explanations are the same for every host, whatever it speaks.
"""

import math
import time
from typing import Any

import msgspec
import structlog

from distributio.lifecycle.dispatch import Offer
from distributio.lifecycle.model import Outcome, Report
from distributio.server import problems
from distributio.server.assignments import Batches
from distributio.server.boinc_http import answer
from distributio.server.boinc_names import CONTAINER_APP, RUNNER, read_task
from distributio.server.boinc_reports import Heard, is_engine_to_be_tried, read_reports
from distributio.server.boinc_state import BoincState, Catalog
from distributio.server.boinc_uploads import WaitingRoom
from distributio.server.boinc_work import ESTIMATE_SECONDS, CannotSend, Describer
from distributio.server.host_api import Receive, Scope, Send, read_body
from distributio.server.site import Site
from distributio.server.turns import HostAnswer, HostTurn, Returned
from distributio.store import boinc
from distributio.store.boinc import KnownAccount, KnownClient
from distributio.wire import boinc_scheduler as wire
from distributio.wire.boinc_accounts import PLATFORMS, email_digest
from distributio.wire.boinc_scheduler import BadRequest, Reply, SchedulerRequest, Work
from distributio.wire.native import HostFacts

log = structlog.get_logger("boinc")

UNKNOWN_FLOPS = 1e9  # what a client says before its first benchmark
MOST_REQUEST_BYTES = 32 << 20
MOST_PREFERENCES = 65_536
MOST_PER_CALL = 200
MOST_PER_CPU = 50  # tasks a client may hold
BUSY_DELAY = 5.0  # until the next call of a client that got work
IDLE_DELAY = 20.0  # of one that got none
POLL_SECONDS = 60.0  # a client without work calls again after so long
REFUSED_DELAY = 3600.0
UNSUITED_DELAY = 86_400.0
ENGINE_REST_SECONDS = 86_400.0  # after this containers are tried again where they did not run
_GIB, _MIB = 1 << 30, 1 << 20


class SchedulerEndpoint:
    """POST /boinc/scheduler."""

    def __init__(self, site: Site, room: WaitingRoom) -> None:
        self._site = site
        self._room = room
        self._describer = Describer(site, Batches(site))

    @property
    def _state(self) -> BoincState:
        return self._site.boinc

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call."""
        try:
            request = wire.read_request(await read_body(receive, MOST_REQUEST_BYTES))
            reply = await self._serve(request)
        except BadRequest as error:
            await answer(send, f"{error}\n".encode(), b"text/plain", 400)
            return
        except Exception as error:
            # A client that is answered with an error keeps its reports and calls again later.
            await problems.response(error)(scope, receive, send)
            return
        await answer(send, wire.write_reply(reply, self._state.upload_url))

    def _reply(self) -> Reply:
        return Reply(master_url=self._state.master_url, project_name=self._site.settings.name)

    async def _serve(self, request: SchedulerRequest) -> Reply:
        reply = self._reply()
        account = await self._account(request.authenticator)
        if account is None:
            reply.messages = [
                ("notice", "The account key is not known here. Remove this project and add it again to log in.")
            ]
            reply.request_delay = REFUSED_DELAY
            return reply
        catalog = self._state.known_catalog()
        if catalog is None:
            catalog = await self._site.read(self._state.read_catalog)
        facts = facts_of(request, catalog)
        client = await self._client(request, account, facts, reply)
        reply.account = account_of(account)
        reply.host_credit, reply.host_created_at, reply.venue = (0.0, 0.0), client.created_at, client.venue
        trusts_us = self._exchange_keys(request, reply)
        await self._exchange_preferences(request, account, reply)
        heard = await self._hear(request, catalog)
        if heard.engine and heard.engine != client.engine:
            client = await self._note_engine(client, heard.engine)
        decided = await self._decide(request, client, facts, catalog, heard, asks=trusts_us)
        reply.acknowledged = [result.name for result in request.results]
        reply.aborted = self._aborted(request, decided)
        await self._keep_trickles(request, client, reply)
        reply.work = await self._describe(request, client, decided, catalog)
        reply.app_names = {name: app.title for name, app in catalog.apps.items()}
        self._say_why(request, facts, decided, reply)
        for name in heard.waiting:
            self._room.drop(name)
        self._state.count_call(client.host_id, 0 if reply.host_id else request.seqno)
        self._site.seen(client.host_id)
        return reply

    # --- who ----------------------------------------------------------------------------------------------------

    async def _account(self, authenticator: str) -> KnownAccount | None:
        return self._state.known_account(authenticator) or await self._site.read(
            self._state.find_account, authenticator
        )

    async def _client(
        self, request: SchedulerRequest, account: KnownAccount, facts: HostFacts, reply: Reply
    ) -> KnownClient:
        """The host that calls; a new one if it is not known, is another person's, or is a copy of one that went on."""
        state, site = self._state, self._site
        client = None
        is_copy = False
        if request.host_id:
            client = state.known_client(request.host_id)
            if client is None:
                client = await site.read(boinc.client, request.host_id)
            if client is not None and client.user_id != account.user_id:
                client = None
            if client is not None and state.is_replay(client, request.seqno):
                client, is_copy = None, True
        if client is None:
            cpid = boinc.hashed_cpid(request.host.cpid, account.email or account.name)
            if request.host.cpid and not is_copy:
                client = await site.read(boinc.client_by_cpid, account.user_id, cpid)
            if client is None:
                client = await site.write(boinc.add_client, account.user_id, facts, cpid, time.time())
                log.info("a BOINC client has joined", host=client.public_id, name=facts.name)
            if client.host_id != request.host_id:
                await site.write(boinc.restart_count, client.host_id)
                reply.host_id = client.host_id
        state.remember_client(client)
        return client

    async def _note_engine(self, client: KnownClient, engine: str) -> KnownClient:
        now = time.time()
        await self._site.write(boinc.note_engine, client.host_id, engine, now)
        changed = msgspec.structs.replace(client, engine=engine, engine_at=now)
        self._state.remember_client(changed)
        return changed

    def _exchange_keys(self, request: SchedulerRequest, reply: Reply) -> bool:
        """Tell the client our key, if it has not got it; return whether it can trust what we send."""
        told = self._state.keys().answer(request.code_sign_key)
        if told is None:
            reply.messages.append(
                (
                    "notice",
                    "The site has a new signing key that your client cannot check: remove the project, add it again.",
                )
            )
            return False
        reply.code_sign_key, reply.code_sign_key_signature = told
        return True

    async def _exchange_preferences(self, request: SchedulerRequest, account: KnownAccount, reply: Reply) -> None:
        """The newer preferences win, ours or those the client brings of the same person. A weak key changes nothing."""
        ours, theirs = account.global_preferences_at, request.global_preferences_at
        if ours > theirs and account.global_preferences:
            reply.global_preferences = account.global_preferences
        same_person = bool(account.email) and request.email_hash_of_preferences == email_digest(account.email)
        if theirs > ours and same_person and request.authenticator == account.authenticator:
            text = request.global_preferences[:MOST_PREFERENCES]
            await self._site.write(boinc.set_preferences, account.user_id, text, theirs)

    # --- what ---------------------------------------------------------------------------------------------------

    async def _hear(self, request: SchedulerRequest, catalog: Catalog) -> Heard:
        if not request.results:
            return Heard()
        return await self._site.in_thread(read_reports, self._site, self._room, catalog, request.results)

    async def _decide(
        self,
        request: SchedulerRequest,
        client: KnownClient,
        facts: HostFacts,
        catalog: Catalog,
        heard: Heard,
        *,
        asks: bool,
    ) -> HostAnswer:
        held = None
        if request.others is not None and not request.results_truncated:
            tasks = [task for task in map(read_task, request.others) if task is not None]
            held = [(task.task_id, "running", None) for task in tasks]
        offer = None
        if asks and client.state == "active":
            offer = offer_of(request, client, facts, len(request.others or ()))
        changed = without_disk(facts) != without_disk(client.facts)
        if changed:
            self._state.remember_client(msgspec.structs.replace(client, facts=facts))
        event = HostTurn(
            host_id=client.host_id,
            user_id=client.user_id,
            reports=heard.returned if client.state != "banned" else [],
            held=held,  # type: ignore[arg-type]  # the fraction done is not said by clients
            offer=offer,
            facts=msgspec.json.encode(facts).decode() if changed else None,
            gflops=facts.gflops,
        )
        decided: HostAnswer = await self._site.ledger.ask(event)
        self._site.count_rejections(decided.rejections)
        return decided

    def _aborted(self, request: SchedulerRequest, decided: HostAnswer) -> list[str]:
        """Tasks the client has and nobody wants any more, and those that are none of ours."""
        over = set(decided.cancel)
        names = []
        for name in request.others or ():
            task = read_task(name)
            if task is None or task.task_id in over:
                names.append(name)
        return names

    async def _describe(
        self, request: SchedulerRequest, client: KnownClient, decided: HostAnswer, catalog: Catalog
    ) -> list[Work]:
        works = []
        impossible: list[Returned] = []
        for sent in decided.sent:
            try:
                works.append(await self._describer.work(sent, catalog, request.platforms, request.host.flops))
            except CannotSend as error:
                log.warning("a task cannot be sent to a BOINC client", task=sent.task_id, error=str(error))
                report = Report(outcome=Outcome.ERROR, cause="spec-bad")
                impossible.append(Returned(task=sent.task_id, report=report, log=f"[site] {error}\n".encode()))
        if impossible:
            await self._site.ledger.ask(HostTurn(host_id=client.host_id, user_id=client.user_id, reports=impossible))
        return works

    async def _keep_trickles(self, request: SchedulerRequest, client: KnownClient, reply: Reply) -> None:
        if not request.trickles:
            return
        named = [(read_task(trickle.result_name), trickle) for trickle in request.trickles]
        kept = [(task.task_id, trickle) for task, trickle in named if task is not None]
        await self._site.write(boinc.keep_trickles, client.host_id, kept, time.time())
        reply.message_ack = True

    def _say_why(self, request: SchedulerRequest, facts: HostFacts, decided: HostAnswer, reply: Reply) -> None:
        reply.request_delay = BUSY_DELAY if reply.work else IDLE_DELAY
        wanted = request.work_seconds > 0 or request.idle_cpus > 0
        if reply.work or not wanted or request.dont_send_work:
            return
        if not facts.runners:
            reply.messages.append(("notice", "This site has no program for your computer's kind of system."))
            reply.request_delay = UNSUITED_DELAY
            return
        codes = sorted(decided.rejections, key=lambda code: -decided.rejections[code]) or ["no-ready-tasks"]
        for code in codes[:3]:
            why = problems.because(code)
            reply.messages.append(("low", f"No work sent: {why.sentence} {why.advice}"))
        # Without these words a client would not ask again for ten minutes, then twenty, then forty.
        reply.messages.append(("low", "Asking again in a minute; this answer is too recent to count as a refusal."))
        reply.next_rpc_delay = POLL_SECONDS


def account_of(account: KnownAccount) -> wire.Account:
    """What the client is told of the account."""
    return wire.Account(
        user_id=account.user_id,
        user_name=account.name,
        created_at=account.created_at,
        email_hash=email_digest(account.email) if account.email else "",
        cross_project_id=account.cross_project_id,
        project_preferences=account.project_preferences,
    )


def facts_of(request: SchedulerRequest, catalog: Catalog) -> HostFacts:
    """What the machine is and lends, as its preferences have it."""
    host, preferences = request.host, request.preferences
    known = [name for name in request.platforms if name in PLATFORMS]
    version = ".".join(map(str, request.client_version))
    share = max(preferences.memory_busy_percent, preferences.memory_idle_percent) / 100
    disk = min(
        host.disk_free_bytes - preferences.disk_free_gb * 1e9,
        host.disk_total_bytes * preferences.disk_used_percent / 100 - request.disk_used_bytes,
        preferences.disk_used_gb * 1e9 - request.disk_used_bytes if preferences.disk_used_gb else math.inf,
    )
    apps = catalog.apps_for(request.platforms)
    runners = [f"{RUNNER}{app}" for app in apps if app != CONTAINER_APP]
    if CONTAINER_APP in apps:
        runners.insert(0, "container")
    return HostFacts(
        platform=PLATFORMS[known[0]] if known else request.platforms[0] if request.platforms else "",
        name=host.name,
        cpus=max(1, int(host.cpus * preferences.cpus_percent / 100)),
        memory_bytes=int(host.memory_bytes * share) // _MIB * _MIB,
        disk_bytes=max(0, int(disk)) // _GIB * _GIB,
        runners=runners,
        engine=f"BOINC {version}",
        kernel=f"{host.os_name} {host.os_version}".strip(),
        cpu_model=host.model,
        agent_version=f"boinc {version}",
        gflops=0.0 if host.flops == UNKNOWN_FLOPS else host.flops / 1e9,
    )


def without_disk(facts: HostFacts) -> HostFacts:
    """Facts without what changes from call to call."""
    return msgspec.structs.replace(facts, disk_bytes=0)


def offer_of(request: SchedulerRequest, client: KnownClient, facts: HostFacts, held: int) -> Offer | None:
    """What the client asks for: so many seconds of work, or so many idle processors. Tasks queue on the client, so what is
    free now bounds their number only."""
    if request.dont_send_work or (request.work_seconds <= 0 and request.idle_cpus <= 0):
        return None
    count = max(math.ceil(request.work_seconds / ESTIMATE_SECONDS), math.ceil(request.idle_cpus), 1)
    runners: Any = tuple(facts.runners)
    if not is_engine_to_be_tried(client.engine, client.engine_at, ENGINE_REST_SECONDS):
        runners = tuple(name for name in runners if name != "container")
    elif client.engine == boinc.UNKNOWN and "container" in runners:
        # Whether containers run there shows with the first ones.
        count = min(count, facts.cpus)
        if held >= facts.cpus:
            runners = tuple(name for name in runners if name != "container")
    count = max(0, min(count, MOST_PER_CALL, MOST_PER_CPU * facts.cpus - held))
    plenty = 1 << 60
    return Offer(
        platform=facts.platform,
        runners=runners,
        cpus=facts.cpus,
        memory_bytes=facts.memory_bytes,
        disk_bytes=facts.disk_bytes,
        gpus=0,
        network_allowed=False,
        free_cpus=plenty,
        free_memory_bytes=plenty,
        free_disk_bytes=plenty,
        free_gpus=0,
        free_tasks=count,
    )
