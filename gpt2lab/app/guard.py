"""What the server refuses before Gradio reads it: large requests, and addresses of files.

The page uploads nothing and shows no files. Gradio serves only files that it was allowed to, and is allowed none; this
does not depend on it.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

MAX_REQUEST_BYTES = 128 * 1024  # the longest prompt of the page has at most 96 KB as JSON
_MAX_DISCARDED_BYTES = 64 * 2**20  # read before the answer; the connection of a larger request is closed

# Gradio's addresses of files, uploads, other servers and code, with or without the prefix `gradio_api`.
_FILES = re.compile(
    r"(^|/)(file|proxy)(=|/|$)|(^|/)(upload|upload_progress|stream|custom_component|component_server|deep_link|"
    r"process_recording|vibe-|profiling|monitoring|run-history)"
)

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class RequestGuard:
    """Middleware (ASGI) that answers forbidden requests with a line of JSON.

    Args:
        app: what answers all other requests.
    """

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI defines it."""
        status, reason = _refuse(scope) if scope["type"] == "http" else (0, "")
        if not status:
            await self.app(scope, receive, send)
            return
        if status in (411, 413) and _length(scope) <= _MAX_DISCARDED_BYTES:
            await _discard_body(receive)  # many clients read no answer before they have sent everything
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": f'{{"detail": "{reason}"}}'.encode()})


async def _discard_body(receive: Receive) -> None:
    """Read the body of a request, at most `_MAX_DISCARDED_BYTES` of it."""
    message, discarded = await receive(), 0
    while message.get("more_body") and discarded <= _MAX_DISCARDED_BYTES:
        discarded += len(message.get("body", b""))
        message = await receive()


def _refuse(scope: Message) -> tuple[int, str]:
    """Status and reason of the refusal; (0, "") for a request that is allowed."""
    if _FILES.search(scope["path"].lower()):
        return 404, "this page serves no files"
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return 0, ""
    if (length := _length(scope)) < 0:
        return 411, "a request needs a Content-Length"
    if length > MAX_REQUEST_BYTES:
        return 413, f"the request has {length:,} bytes; the maximum is {MAX_REQUEST_BYTES:,}"
    return 0, ""


def _length(scope: Message) -> int:
    """Bytes of the request's body; -1 if it does not say."""
    length = dict(scope["headers"]).get(b"content-length", b"")
    return int(length) if length.isdigit() else -1
