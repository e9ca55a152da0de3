"""Signing in and out, and what belongs to a person: tokens and projects."""

import time

from starlette.responses import Response

from distributio.server import native_api
from distributio.server.pages import sessions
from distributio.server.pages.rendering import redirect, show
from distributio.server.problems import not_found
from distributio.server.routes import Call
from distributio.store import accounts, page_views


async def login_form(call: Call) -> Response:
    """GET /login."""
    if call.visitor is not None:
        return redirect(call.site, sessions.own_path(call.query("next", "/")))
    return _login(call, sessions.own_path(call.query("next", "/")))


def _login(call: Call, back: str, problem: str = "") -> Response:
    secret = sessions.guest(call.site, call.request)
    call.request.state.form_key = sessions.form_key(secret)
    response = show(call, "login.html", back=back, problem=problem)
    sessions.set_cookie(call.site, response, "guest", secret, 86_400)
    if problem:
        response.status_code = 403
    return response


async def login(call: Call) -> Response:
    """POST /login: a session for whoever brings a token."""
    site, form = call.site, call.request.state.form
    back = sessions.own_path(form.get("next", "/"))
    caller = await site.caller(form.get("token", "").strip())
    if caller is None:
        return _login(call, back, "The site does not know this token, or it has expired.")
    now = time.time()
    expires_at = min(now + sessions.SESSION_SECONDS, caller.expires_at or float("inf"))
    await site.write(page_views.end_stale_sessions, caller.user_id, sessions.SESSION_NAME, now)
    name = sessions.SESSION_NAME if caller.expires_at is None else sessions.BOUND_SESSION_NAME
    _, secret = await site.write(accounts.create_token, caller.user_id, caller.project_id, name, now, expires_at)
    response = redirect(site, back)
    sessions.set_cookie(site, response, "session", secret, int(expires_at - now))
    sessions.forget_cookie(site, response, "guest")
    return response


async def logout(call: Call) -> Response:
    """POST /logout: the session is worthless from now on."""
    await call.site.write(accounts.revoke_token, call.caller.user_id, call.caller.token_id)
    call.site.forget(everybody=True)
    response = redirect(call.site, "/")
    sessions.forget_cookie(call.site, response, "session")
    return response


async def account(call: Call) -> Response:
    """GET /account."""
    return await _account(call)


async def _account(call: Call, fresh: str = "", name: str = "") -> Response:
    return show(
        call,
        "account.html",
        whoami=await native_api.whoami(call),
        tokens=(await native_api.list_tokens(call)).items,
        session_names=(sessions.SESSION_NAME, sessions.BOUND_SESSION_NAME),
        this_token=call.caller.token_id,
        fresh=fresh,
        fresh_name=name,
    )


async def make_token(call: Call) -> Response:
    """POST /account/tokens: a new token, whose secret is on this one page and never again."""
    name = call.request.state.form.get("name", "").strip()[:120] or "token"
    caller = call.caller
    mine = await call.site.read(accounts.tokens_of, caller.user_id)
    is_bound = any(row[0] == caller.token_id and row[1] != sessions.SESSION_NAME for row in mine)
    _, secret = await call.site.write(
        accounts.create_token,
        caller.user_id,
        caller.project_id,
        name,
        time.time(),
        caller.expires_at if is_bound else None,
    )
    return await _account(call, secret, name)


async def revoke_token(call: Call) -> Response:
    """POST /account/tokens/{token}/revoke."""
    if not await call.site.write(accounts.revoke_token, call.caller.user_id, call.number("token")):
        raise not_found(f"token {call.path('token')}")
    call.site.forget(everybody=True)
    return redirect(call.site, "/account")
