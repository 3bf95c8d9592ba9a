"""Opening ports: errors that say what is in the way and what to do about it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator

from relay.errors import PortError

_COLLECTOR_METRICS_PORT = 8888
"""The default metrics port both of a node and of an OpenTelemetry Collector."""


@contextlib.contextmanager
def explain_bind_errors(key: str, flag: str, host: str, port: int) -> Iterator[None]:
    """Explain why a port cannot be opened in this block, and which setting and flag change it.

    Raises:
        PortError: replaces the error that the block raised.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = bind_problem(host, port) or str(error)
        hint = " (an OpenTelemetry Collector takes 8888 for its own metrics)" if port == _COLLECTOR_METRICS_PORT else ""
        raise PortError(f"{host}:{port}: {reason}{hint}: set {key}, or {flag} HOST:PORT") from error


def bind_problem(host: str, port: int) -> str | None:
    """Why a port cannot be opened now; None if it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: "address already in use by another process",
            errno.EADDRNOTAVAIL: "not an address of this machine",
            errno.EACCES: "this user may not open ports below 1024",
        }
        return reasons.get(error.errno or 0) or error.strerror or os.strerror(error.errno or 0)
    return None
