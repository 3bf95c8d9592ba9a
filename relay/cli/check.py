"""`opamp-relay check`: whether the folders, ports and certificates that settings name are usable."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from relay.aio.ports import bind_problem
from relay.cli.warnings import warnings_of
from relay.documents import leaves, parse
from relay.errors import Refused, SettingsError
from relay.node.credentials import Credentials
from relay.settings.load import Loaded
from relay.settings.parts import split_endpoint
from relay.settings.programs import ControlPlaneSettings, NodeSettings, StandaloneSettings


def detect_program(file: Path) -> str:
    """Tell which program a settings file is for by the keys unique to one; standalone if none is decisive."""
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
    """Print all values with their origins, then all problems. Return the problems."""
    settings = loaded.settings
    assert isinstance(settings, NodeSettings | ControlPlaneSettings | StandaloneSettings)
    print(f"{file}: settings of {program}")
    for path, value in leaves(settings.model_dump()):
        print(f"  {path} = {value!r}  ({loaded.origins.get(path, 'default')})")
    for path, reason in warnings_of(settings):
        print(f"warning: {file}: {path}: {reason}", file=sys.stderr)
    problems = [f"{file}: {path}: {reason}" for path, reason in _environment_problems(settings)]
    for problem in problems:
        print(problem, file=sys.stderr)
    print("no problems" if not problems else f"{len(problems)} problems", file=sys.stderr)
    return problems


def _environment_problems(settings: NodeSettings | ControlPlaneSettings | StandaloneSettings) -> list[tuple[str, str]]:
    problems = []
    if isinstance(settings, NodeSettings):
        key, folder = "node.data_dir", settings.node.data_dir
    else:
        key, folder = "data_dir", settings.data_dir
    if reason := _write_obstacle(Path(folder)):
        problems.append((key, reason))
    for path, endpoint in settings.endpoints():
        if reason := _port_obstacle(endpoint):
            problems.append((path, reason))
    if not isinstance(settings, ControlPlaneSettings):
        try:
            Credentials(settings.for_node() if isinstance(settings, StandaloneSettings) else settings)
        except SettingsError as error:
            problems += [(problem.path, problem.reason) for problem in error.problems]
    return problems


def _write_obstacle(folder: Path) -> str | None:
    probe = folder
    while not probe.exists():
        probe = probe.parent
    if not probe.is_dir():
        return f"{probe} is not a folder"
    return None if os.access(probe, os.W_OK) else f"{probe} is not writable"


def _port_obstacle(endpoint: str) -> str | None:
    reason = bind_problem(*split_endpoint(endpoint))
    return f"{endpoint}: {reason}" if reason else None
