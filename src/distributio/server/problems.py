"""Errors as people and programs get them: one table from what went wrong to an RFC 9457 problem."""

import errno

import msgspec
import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from distributio.lifecycle import explain
from distributio.server.ledger import LedgerClosed
from distributio.server.submissions import IdempotencyConflict, ImageGone, ProjectDisabled, QuotaExceeded
from distributio.store.accounts import NameTaken
from distributio.store.database import Conflict, DatabaseFull, DatabaseUnavailable, StoreError
from distributio.store.files import DigestMismatch, NoRoom, StorageUnavailable
from distributio.wire.native import Because, Problem

log = structlog.get_logger("http")


class Refused(Exception):
    """What was asked is not done, for a reason the asker should know. `code` is in the table of reasons."""

    def __init__(self, status: int, code: str, detail: str = "", errors: list[str] | None = None) -> None:
        super().__init__(detail or code)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors or []
        self.headers: dict[str, str] = {}


def not_found(what: str) -> Refused:
    """It does not exist, or it is another project's: the answer is the same."""
    return Refused(404, "not-found", f"there is no {what} here")


# From an exception's class to status and code; the first that fits counts.
TABLE: tuple[tuple[type[Exception], int, str], ...] = (
    (QuotaExceeded, 403, "quota-exceeded"),
    (ProjectDisabled, 403, "project-disabled"),
    (IdempotencyConflict, 422, "idempotency-conflict"),
    (ImageGone, 409, "unknown-image"),
    (ClientDisconnect, 400, "bad-request"),
    (NameTaken, 409, "name-taken"),
    (DigestMismatch, 422, "digest-mismatch"),
    (NoRoom, 507, "disk-full"),
    (StorageUnavailable, 503, "storage-away"),
    (DatabaseFull, 507, "disk-full"),
    (DatabaseUnavailable, 503, "database-away"),
    (Conflict, 503, "database-away"),
    (LedgerClosed, 503, "shutting-down"),
    (msgspec.ValidationError, 422, "bad-request"),
    (msgspec.DecodeError, 400, "bad-request"),
    (StoreError, 422, "bad-request"),
)


def because(code: str, count: int = 1) -> Because:
    """A reason from the table, as the wire has it."""
    known = explain.because(code, count)
    return Because(code=known.code, sentence=known.sentence, advice=known.advice, count=known.count)


def refusal(error: Exception) -> Refused | None:
    """The refusal an exception means, if it means one."""
    if isinstance(error, Refused):
        return error
    for kind, status, code in TABLE:
        if isinstance(error, kind):
            refused = Refused(status, code, str(error))
            if status == 503:
                refused.headers["Retry-After"] = "2"
            return refused
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refused(507, "disk-full", str(error))
    return None


def response(error: Exception) -> Response:
    """The answer to a request that failed."""
    refused = refusal(error)
    if refused is None:
        log.error("request failed", exc_info=error)
        refused = Refused(500, "internal-error", "the site made a mistake; its operator finds it in the log")
    known = because(refused.code)
    problem = Problem(
        title=known.sentence,
        status=refused.status,
        code=refused.code,
        detail=refused.detail,
        advice=known.advice,
        errors=refused.errors,
    )
    return Response(
        msgspec.json.encode(problem), refused.status, refused.headers, media_type="application/problem+json"
    )
