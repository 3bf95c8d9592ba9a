"""`opamp-relay check`: what can be wrong with settings beyond their words."""

from __future__ import annotations

import os
import ssl
import sys
from pathlib import Path
from typing import Any

from relay.aio.ports import obstacle
from relay.documents import leaves, parse
from relay.errors import Refused
from relay.settings.load import Loaded
from relay.settings.parts import split_endpoint
from relay.settings.programs import ControlPlaneSettings, NodeSettings, StandaloneSettings


def program_of(file: Path) -> str:
    """Which program a settings file is for, by the keys that only one has; standalone where that does not tell."""
    try:
        documents = parse(file.read_bytes(), str(file))
    except (OSError, Refused):
        return "standalone"
    value = documents[0].value if documents else {}
    if not isinstance(value, dict):
        return "standalone"
    server = value.get("server")
    names = set(server) if isinstance(server, dict) else set()
    if "control_plane" in value:
        return "node"
    if names & {"link", "api"} and not names & {"websocket", "http", "grpc"}:
        return "control-plane"
    return "standalone"


def check_settings(program: str, loaded: Loaded[Any], file: str) -> list[str]:
    """Print all values with their origins, then all problems; give the problems."""
    settings = loaded.settings
    assert isinstance(settings, NodeSettings | ControlPlaneSettings | StandaloneSettings)
    print(f"{file}: settings of {program}")
    for path, value in leaves(settings.model_dump()):
        print(f"  {path} = {value!r}  ({loaded.origins.get(path, 'default')})")
    problems = [f"{file}: {path}: {reason}" for path, reason in _surroundings(settings)]
    for problem in problems:
        print(problem, file=sys.stderr)
    print("no problems" if not problems else f"{len(problems)} problems", file=sys.stderr)
    return problems


def _surroundings(settings: NodeSettings | ControlPlaneSettings | StandaloneSettings) -> list[tuple[str, str]]:
    found = []
    if isinstance(settings, NodeSettings):
        data = ("node.data_dir", settings.node.data_dir)
    else:
        data = ("data_dir", settings.data_dir)
    reason = _unwritable(Path(data[1]))
    if reason:
        found.append((data[0], reason))
    for path, endpoint in settings.endpoints():
        reason = _untakeable(endpoint)
        if reason:
            found.append((path, reason))
    if not isinstance(settings, ControlPlaneSettings) and settings.server.tls.enabled:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                settings.server.tls.cert_file, settings.server.tls.key_file
            )
        except (OSError, ssl.SSLError) as error:
            found.append(("server.tls", f"the certificate and key cannot be loaded: {error}"))
    return found


def _unwritable(folder: Path) -> str | None:
    probe = folder
    while not probe.exists():
        probe = probe.parent
    if not probe.is_dir():
        return f"{probe} is not a folder"
    return None if os.access(probe, os.W_OK) else f"{probe} cannot be written"


def _untakeable(endpoint: str) -> str | None:
    reason = obstacle(*split_endpoint(endpoint))
    return f"{endpoint}: {reason}" if reason else None
