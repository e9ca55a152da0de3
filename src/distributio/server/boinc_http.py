"""How BOINC's hot endpoints answer: bare ASGI, whole bodies, no cookies."""

from distributio.server.host_api import Send


async def answer(send: Send, body: bytes, content_type: bytes = b"text/xml", status: int = 200) -> None:
    """Send a whole body."""
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
