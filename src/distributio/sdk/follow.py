"""How a stream of events is followed over restarts of the site, so that nothing is lost and nothing comes twice."""

from collections.abc import Iterator

import httpx2
import msgspec
from msgspec import Struct

from distributio.sdk.errors import SiteError
from distributio.sdk.transport import Backoff, Transport, is_passing
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
    offset: int = 0  # of the log, in bytes, behind this text
    task: int = 0  # whose log it is: a job that is tried again has several


def follow_job(transport: Transport, job_id: str) -> Iterator[JobEvent]:
    """The log of a job as it grows, each change of its state, and its end."""
    path = f"/api/v1/jobs/{job_id}/log"
    place = _LogData()
    state = ""
    backoff = transport.backoff()
    while True:
        params: dict[str, str | int] = {"follow": 1}
        if place.task:
            params |= {"offset": place.offset, "task": place.task}
        for event in _until_broken(transport, path, params, backoff):
            if event.event == "log":
                data = msgspec.json.decode(event.data, type=_LogData)
                if data.task != place.task and place.task and data.offset != len(data.text.encode()):
                    # Another copy's log, from an offset into the one we knew: ask again, for all of it.
                    place = _LogData(task=data.task)
                    break
                place = data
                yield LogText(data.text)
            elif event.event == "state" and event.data != state:
                state = event.data
                yield JobChanged(msgspec.json.decode(event.data, type=JobView))
            elif event.event == "end":
                yield JobEnded(msgspec.json.decode(event.data, type=JobView))
                return


def watch_batch(transport: Transport, batch_id: int) -> Iterator[BatchView]:
    """A batch at each of its changes, until it is over."""
    backoff = transport.backoff()
    while True:
        for event in _until_broken(transport, f"/api/v1/batches/{batch_id}/events", {}, backoff):
            if event.event != "batch":
                continue
            batch = msgspec.json.decode(event.data, type=BatchView)
            yield batch
            if batch.state != "active":
                return


def _until_broken(
    transport: Transport, path: str, params: dict[str, str | int], backoff: Backoff
) -> Iterator[httpx2.ServerSentEvent]:
    """Events of one stream. It may break off at any time: after a pause the caller opens the next one where this one
    ended, unless patience is used up."""
    try:
        with transport.events(path, params=params) as events:
            for event in events:
                backoff.renew()
                yield event
        broken: Exception = EOFError("the stream ended before its time")
    except httpx2.TransportError as error:
        broken = error
    except SiteError as error:
        if not is_passing(error):
            raise
        broken = error
    transport.pause_or_raise(backoff, broken)
