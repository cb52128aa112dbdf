"""Listens and stops: uvicorn, told to end without losing what it took."""

import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import uvicorn

from openrlhf_gpm.serving.app import Service, make_app

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn's server, except that `on_stop` is called before it waits for the requests that it has taken."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self.on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn's."""
        self.on_stop()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on host and port; 0: any free one. Raises ValueError that names the flags."""
    if not 0 <= port < 1 << 16:  # getaddrinfo would take it modulo 65536
        raise ValueError(f"--port must be 0 to 65535, got {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise ValueError(f"cannot listen on --host {host} --port {port} ({error}): give others") from error


def serve(service: Service, listening: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what was taken. Raises what loading the model raises."""
    failures: list[BaseException] = []

    def on_failure(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    raise_open_files()
    app: Any = make_app(service, on_failure)
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, ws="none")
    server = Server(config, service.cohorts.stop)
    # uvicorn raises the signal again when it has stopped; a stop that was asked for is not a failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.run(sockets=[listening])
    if failures:
        raise failures[0]


def raise_open_files(wanted: int = 65536) -> None:
    """Let this process open as many files as it may, up to `wanted`: a response that waits is an open connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
