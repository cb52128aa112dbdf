"""What every request passes before anything reads it: the key, the kind and size of its body; and what is counted.

An ASGI application around another. It catches what the other does not, and logs neither bodies nor messages, which
may quote them: only what kind of error it was and where.
"""

import json
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from openrlhf_gpm.serving.access import is_allowed
from openrlhf_gpm.serving.limits import Limits, Refused
from openrlhf_gpm.serving.metrics import Metrics

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN = ("/", "/health", "/ready")
"""Without a key: they tell nothing that must be kept. The page at / sends the key that is typed into it."""

ENDPOINTS = (*OPEN, "/metrics", "/score", "/embed", "/get_reward", "/docs", "/openapi.json")


class Gate:
    """The server's outermost application.

    Args:
        app: what answers.
        keys: one of them must come with a request; empty: none is asked for.
        limits: of the body.
        metrics: where to count.
    """

    def __init__(self, app: App, keys: list[str], limits: Limits, metrics: Metrics) -> None:
        self.app = app
        self.keys = keys
        self.limits = limits
        self.metrics = metrics
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        endpoint = _endpoint(scope["path"])
        status = size = 0
        whole = False

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        async def bounded() -> Message:  # the length that a request states may be missing or wrong
            nonlocal size, whole
            message = await receive()
            if message["type"] == "http.request":
                whole = not message.get("more_body", False)
                size += len(message.get("body", b""))
                self._held += len(message.get("body", b""))
                self._check_size(size)
            elif not whole:
                raise Refused(499, "body", "the client hung up half way")
            return message

        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self._check(scope["path"], scope["method"], headers)
            await self.app(scope, bounded, counted)
        except Refused as error:
            await _refuse(error, scope["path"], counted)
        except Exception as error:
            where = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s failed: %s\n%s", endpoint, type(error).__name__, where)
            if not status:
                await _refuse(Refused(500, "", "the server failed: see its log"), scope["path"], counted)
        finally:
            self._held -= size
        self.metrics.requests.labels(endpoint, str(status)).inc()
        self.metrics.seconds.labels(endpoint).observe(time.perf_counter() - start)

    def _check(self, path: str, method: str, headers: dict[str, str]) -> None:
        if self.keys and path not in OPEN and not is_allowed(headers.get("authorization"), self.keys):
            raise Refused(401, "", "send one of the server's API keys: `Authorization: Bearer KEY`")
        if method != "POST":
            return
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # also what keeps a web page from calling a server on its reader's machine
            raise Refused(415, "content-type", "must be application/json")
        length = headers.get("content-length", "")
        if length.isdecimal():
            self._check_size(int(length))

    def _check_size(self, size: int) -> None:
        """Raise Refused where a body of so many bytes is too large, or the bodies of all requests together."""
        limits = self.limits
        if size > limits.max_body_mb << 20:
            raise Refused(413, "body", f"more than {limits.max_body_mb} MiB (--max_body_mb): send fewer at a time")
        if self._held > limits.max_bodies_mb << 20:
            raise Refused(503, "", "too many requests wait (--max_bodies_mb): try again", retry_after=1)


def _endpoint(path: str) -> str:
    """A path as logs and metrics name it: an unknown one may hold anything."""
    return path if path in ENDPOINTS else "other"


def refusal(error: Refused, path: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body, {"error": text, "field": name}, of the answer; one line in the log."""
    if path not in OPEN:  # whoever waits for the model asks these every second
        logger.warning("%s refused: %d %s", _endpoint(path), error.status, error.field)
    headers = {"content-type": "application/json"}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.status == 401:
        headers["www-authenticate"] = 'Basic realm="openrlhf-gpm"'  # a browser then asks for it
    return error.status, headers, json.dumps({"error": str(error), "field": error.field}).encode()


async def _refuse(error: Refused, path: str, send: Send) -> None:
    status, headers, body = refusal(error, path)
    headers["content-length"] = str(len(body))
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": body})
