"""What an operator's tools ask: is it alive, is it ready, how is it doing."""

import time

import prometheus_client
from starlette.responses import PlainTextResponse, Response

from distributio.server.routes import Call
from distributio.server.site import Site
from distributio.store import views
from distributio.store.database import Transaction


async def livez(call: Call) -> Response:
    """The process runs and its event loop turns."""
    return PlainTextResponse("ok\n")


async def readyz(call: Call) -> Response:
    """Each part the site needs, and whether it answers; 503 if one does not."""
    site = call.site
    lines = []
    ready = True
    for name, check in (("database", _database), ("store", _store), ("ledger", _ledger)):
        try:
            await site.in_thread(check, site)
            lines.append(f"ok {name}")
        except Exception as error:
            ready = False
            lines.append(f"failed {name}: {error}")
    return PlainTextResponse("\n".join([*lines, ""]), 200 if ready else 503)


def _database(site: Site) -> None:
    with site.database.read() as transaction:
        transaction.one("SELECT 1")


def _store(site: Site) -> None:
    site.files.exists("blobs/none")


def _ledger(site: Site) -> None:
    if site.ledger.depth() > 50_000:
        raise RuntimeError(f"{site.ledger.depth()} events wait")


def collect(transaction: Transaction, site: Site) -> bytes:
    """The figures, in Prometheus' text format. Jobs by state are sums over batches, so no scan grows with jobs."""
    registry = prometheus_client.CollectorRegistry()
    found = views.totals(transaction, time.time() - site.settings.away_seconds)

    def gauge(name: str, text: str, value: float) -> None:
        prometheus_client.Gauge(f"distributio_{name}", text, registry=registry).set(value)

    jobs = prometheus_client.Gauge("distributio_jobs", "Jobs by state.", ["state"], registry=registry)
    for state, count in found["jobs"].items():
        jobs.labels(state).set(count)
    rejected = prometheus_client.Counter(
        "distributio_rejections",
        "Ready tasks a host that asked could not take, by reason.",
        ["reason"],
        registry=registry,
    )
    for reason, count in site.rejections.items():
        rejected.labels(reason).inc(count)
    gauge("tasks_ready", "Tasks that wait for a host.", found["tasks_ready"])
    gauge("tasks_in_progress", "Tasks on hosts.", found["tasks_in_progress"])
    gauge("hosts", "Hosts that are attached.", found["hosts_total"])
    gauge("hosts_active", "Hosts that spoke lately.", found["hosts_active"])
    gauge("hosts_waiting", "Hosts whose question for work is open.", site.hub.waiting_hosts())
    gauge("ledger_turns", "Transactions of the ledger since the start.", site.ledger.turns)
    gauge("ledger_events", "Events in them.", site.ledger.events)
    gauge("ledger_depth", "Events that wait.", site.ledger.depth())
    gauge("uptime_seconds", "Since the start.", time.time() - site.started_at)
    return prometheus_client.generate_latest(registry)


async def metrics(call: Call) -> Response:
    """GET /metrics."""
    data = await call.site.read(collect, call.site)
    return Response(data, media_type="text/plain; version=0.0.4; charset=utf-8")
