"""How a stream of events is followed over restarts of the site, so that nothing is lost and nothing comes twice."""

from collections.abc import Iterator

import httpx2
import msgspec
from msgspec import Struct

from distributio.sdk.errors import SiteError
from distributio.sdk.transport import Transport, is_passing
from distributio.wire.native import BatchView, JobView


class LogText(Struct, frozen=True):
    """Some more of what the job's command printed."""

    text: str


class JobChanged(Struct, frozen=True):
    """The job is in another state than before."""

    job: JobView


class JobEnded(Struct, frozen=True):
    """The job is decided; nothing follows."""

    job: JobView


JobEvent = LogText | JobChanged | JobEnded


class _LogData(Struct):
    text: str = ""


def follow_job(transport: Transport, job_id: str) -> Iterator[JobEvent]:
    """The log of a job as it grows, each change of its state, and its end."""
    place = ""  # the id of the last event heard: the site goes on after it
    for event in _steady(transport, f"/api/v1/jobs/{job_id}/log", {"follow": 1}, last="end"):
        if event.id and event.id == place and event.event == "log":
            continue
        place = event.id
        if event.event == "log":
            yield LogText(msgspec.json.decode(event.data, type=_LogData).text)
        elif event.event == "state":
            yield JobChanged(msgspec.json.decode(event.data, type=JobView))
        elif event.event == "end":
            yield JobEnded(msgspec.json.decode(event.data, type=JobView))
            return


def watch_batch(transport: Transport, batch_id: int) -> Iterator[BatchView]:
    """A batch at each of its changes, until it is over."""
    for event in _steady(transport, f"/api/v1/batches/{batch_id}/events", {}, last=""):
        if event.event != "batch":
            continue
        batch = msgspec.json.decode(event.data, type=BatchView)
        yield batch
        if batch.state != "active":
            return


def _steady(
    transport: Transport, path: str, params: dict[str, str | int], last: str
) -> Iterator[httpx2.ServerSentEvent]:
    """Events of a stream that is opened again, after the last event heard, whenever it breaks off before its end."""
    place = ""
    backoff = transport.backoff()
    while True:
        headers = {"Last-Event-ID": place} if place else {}
        try:
            with transport.events(path, params=params, headers=headers) as events:
                for event in events:
                    backoff.renew()
                    place = event.id or place
                    yield event
                    if event.event == last:
                        return
            broken: Exception = EOFError("the stream ended before the job did")
        except httpx2.TransportError as error:
            broken = error
        except SiteError as error:
            if not is_passing(error):
                raise
            broken = error
        transport.pause_or_raise(backoff, broken)
