"""The HTTP ports of the control plane: uvicorn, without its signal handling."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from relay import __version__
from relay.aio.ports import explain_bind_errors
from relay.aio.tasks import Tasks
from relay.control.heads import bounded
from relay.settings.parts import ApiTls, split_endpoint

SERVER = "opamp-relay"
_STOP_S = 3.0
NO_TLS = ApiTls()


class Serving:
    """The open HTTP ports."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._servers: list[uvicorn.Server] = []
        self._tls: dict[str, tuple[uvicorn.Config, ApiTls]] = {}
        self._serving: list[asyncio.Task[None]] = []

    async def open(self, api: FastAPI, name: str, key: str, endpoint: str, *, tls: ApiTls = NO_TLS) -> int:
        """Serve an application on one more port. Returns the port number.

        Args:
            name: the flag that sets it, without the dashes.
            key: the setting, for error messages.

        Raises:
            OSError: the port cannot be opened.
        """
        host, port = split_endpoint(endpoint)
        config = uvicorn.Config(
            api,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            http=bounded(),
            proxy_headers=False,  # anybody can write them
            headers=[("Server", SERVER), ("X-OpAMP-Relay-Version", __version__)],
            timeout_graceful_shutdown=2,
            ssl_certfile=tls.cert_file if tls.enabled else None,
            ssl_keyfile=tls.key_file if tls.enabled else None,
        )
        server = _Server(config)
        task = self._tasks.spawn(server.serve(), name=f"http-{name}")
        while not server.started:
            if task.done():
                with explain_bind_errors(key, f"--{name}", host, port):
                    raise OSError("cannot be opened")
            await asyncio.sleep(0.005)
        self._servers.append(server)
        self._tls[name] = config, tls
        self._serving.append(task)
        bound_port: int = server.servers[0].sockets[0].getsockname()[1]
        return bound_port

    def reload(self, name: str) -> None:
        """Use the files of a port's certificate as they are now, for new connections.

        Raises:
            OSError: they cannot be read.
            ssl.SSLError: they do not fit.
        """
        config, tls = self._tls[name]
        if config.ssl is not None:
            config.ssl.load_cert_chain(tls.cert_file, tls.key_file)

    async def stop(self) -> None:
        """Finish open requests and close the ports."""
        for server in self._servers:
            server.should_exit = True
        if self._serving:
            await asyncio.wait(self._serving, timeout=_STOP_S)


class _Server(uvicorn.Server):
    """Leaves signals to the program. `serve` returns if the port is taken."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        with contextlib.suppress(SystemExit):
            await super().serve(sockets)
