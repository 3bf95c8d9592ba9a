"""What authentication costs, and how fast a credential is taken away: each figure beside the one without, in one run."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.aio.clock import SystemClock
from relay.auth.secrets import SecretForm, digest_of
from relay.control.access.actor import SYSTEM
from relay.control.access.keys import ApiKey
from relay.control.ledger.change import Change, Entry
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.state import State
from relay.control.storage.database import FILE, Database
from relay.testing.certificates import Authority
from tests.bench.programs import (
    BIN,
    HERE,
    LOAD_CORE,
    NODE_CORE,
    Client,
    Row,
    control_plane,
    log_sink,
    pinned,
    resident_kib,
    running,
    wait_for,
)

FORM = SecretForm("opamp_")
SECRET = b"s" * 32
MANY_KEYS = 99_999
ROUNDS = 3


def node(folder: Path, settings: dict[str, Any]) -> subprocess.Popen[str]:
    """A node with these settings."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "node.yaml"
    file.write_text(json.dumps({"node": {"data_dir": str(folder / "node")}, **settings}))
    environment = os.environ | {"OPAMP_RELAY_SERVER__WEBSOCKET__MAX_CONNECTIONS": "20000"}
    with log_sink() as logs:
        process = pinned(NODE_CORE, str(BIN / "opamp-relay"), "node", "-c", str(file), env=environment, stderr=logs)
    wait_for("http://127.0.0.1:4321/health")
    time.sleep(1.5)  # its first policy
    return process


def put_keys(folder: Path, secrets: Iterable[str]) -> None:
    """Store an API key for each agent in the database of a stopped control plane."""

    async def put() -> None:
        database = Database(folder / "plane" / FILE)
        await database.open()
        ledger = Ledger(database, clock=SystemClock())
        await ledger.load()
        now_ms = SystemClock().unix_ms()
        keys = [
            ApiKey(digest_of(secret), f"load-{i:05}", True, {}, (), now_ms, "bench", now_ms + 10**9)
            for i, secret in enumerate(secrets)
        ]

        def make(state: State, _: int) -> Change[None]:
            after = dataclasses.replace(state, api_keys=state.api_keys.put(keys))
            return Change(after, None, entries=[Entry("create", "ApiKey", reason="bench")])

        await ledger.change(SYSTEM, make)
        await database.close()

    asyncio.run(put())


def tokens(kind: str, agents: int, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """(settings of `auth`, a token for each agent)."""
    if kind == "none":
        return {"type": "none"}, []
    if kind == "api_key":
        return {"type": "api_key"}, [FORM.make(os.urandom(FORM.chance_bytes)) for _ in range(agents)]
    now = int(time.time())
    claims = ({"sub": f"load-{i:05}", "iat": now, "exp": now + 3600, "jti": str(i)} for i in range(agents))
    file = folder / f"{kind}.key"
    if kind == "hs256":
        file.write_bytes(SECRET)
        return {"type": "jwt", "jwt": {"secret_key_file": str(file)}}, [jwt.encode(c, SECRET, "HS256") for c in claims]
    key = Ed25519PrivateKey.generate()
    file.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return {"type": "jwt", "jwt": {"public_key_file": str(file)}}, [jwt.encode(c, key, "EdDSA") for c in claims]


def load(mode: str, agents: int, bearers: Path | None, *more: str) -> dict[str, Any]:
    """Run the load client to its end. Returns its last line."""
    command = [str(HERE / "bin" / "load"), "-mode", mode, "-agents", str(agents), "-seconds", "6", *more]
    command += ["-bearers", str(bearers)] if bearers is not None else []
    result = subprocess.run(
        ["taskset", "-c", LOAD_CORE, *command], capture_output=True, text=True, timeout=120, check=True
    )
    line: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return line


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def measure(folder: Path, agents: int) -> Iterator[Row]:
    """All rows."""
    yield from _exchanges(folder / "exchanges")
    yield from _connects(folder / "connects", agents)
    yield from _certificates(folder / "certificates", agents)
    yield from _revocation(folder / "revocation", agents)
    yield from _many_keys(folder / "many")


class Stand:
    """A control plane, started where keys are needed, and the files of each kind of credential."""

    def __init__(self, folder: Path, agents: int, kinds: Iterable[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.auth: dict[str, dict[str, Any]] = {}
        self.files: dict[str, Path | None] = {}
        for kind in kinds:
            self.auth[kind], made = tokens(kind, agents, folder)
            self.files[kind] = folder / f"{kind}.tokens" if made else None
            if (file := self.files[kind]) is not None:
                file.write_text("\n".join(made))
            if kind == "api_key":
                with running(control_plane(folder)):
                    pass
                put_keys(folder, made)

    def node(self, kind: str, **server: Any) -> subprocess.Popen[str]:
        return node(self.folder / kind, {"auth": self.auth[kind], "server": server})


def _exchanges(folder: Path) -> list[Row]:
    stand = Stand(folder, 200, ("none", "api_key", "eddsa"))
    beats: dict[str, list[float]] = {"none": [], "api_key": []}
    polls: dict[str, list[float]] = {"none": [], "eddsa": []}
    with running(control_plane(folder)):
        for _ in range(ROUNDS):
            for mode, kinds, figures in (
                ("heartbeat", ("none", "api_key"), beats),
                ("polls", ("none", "eddsa"), polls),
            ):
                for kind in kinds:
                    with running(stand.node(kind)):
                        figures[kind].append(load(mode, 200, stand.files[kind])["per_second"])
    return [
        _ratio("heartbeats over WebSocket, with API keys ÷ without", beats["api_key"], beats["none"], 0.98),
        _ratio("HTTP polls, with JWT ÷ without", polls["eddsa"], polls["none"], 0.85),
    ]


def _ratio(what: str, ours: list[float], theirs: list[float], target: float) -> Row:
    ratio = median([a / b for a, b in zip(ours, theirs, strict=True)])
    return Row(what, f"{median(ours):,.0f}/s ÷ {median(theirs):,.0f}/s = {ratio:.2f}", f">= {target}")


def _joined(agents: int, bearers: Path | None, *more: str) -> tuple[Client, float]:
    command = [str(HERE / "bin" / "load"), "-mode", "fleet", "-agents", str(agents), "-interval", "30s", *more]
    client = Client(*command, *(["-bearers", str(bearers)] if bearers is not None else []))
    connected = client.line("connected")
    assert not connected["failed"], connected
    return client, connected["per_second"]


def _connects(folder: Path, agents: int) -> list[Row]:
    kinds = ("none", "api_key", "hs256", "eddsa")
    stand = Stand(folder, agents, kinds)
    figures: dict[str, list[float]] = {kind: [] for kind in kinds}
    slopes: dict[str, float] = {}
    with running(control_plane(folder)):
        for _ in range(ROUNDS):
            for kind in kinds:
                with running(stand.node(kind)) as server:
                    before = resident_kib(server.pid)
                    client, rate = _joined(agents, stand.files[kind])
                    figures[kind].append(rate)
                    time.sleep(6)
                    slopes[kind] = (resident_kib(server.pid) - before) / agents
                    client.process.kill()
    rows = [
        _ratio(f"{agents:,} connect, each its own {kind} ÷ without", figures[kind], figures["none"], target)
        for kind, target in (("api_key", 0.95), ("hs256", 0.8), ("eddsa", 0.6))
    ]
    more = slopes["api_key"] - slopes["none"]
    return [*rows, Row("memory an agent, with API keys more than without", f"{more:.2f} KiB", "<= 0.5 KiB")]


def _certificates(folder: Path, agents: int) -> list[Row]:
    folder.mkdir(parents=True)
    authority = Authority(folder)
    server, client = authority.issue("node"), authority.issue("agents")
    pair = folder / "client.pem"
    pair.write_bytes(client.cert_file.read_bytes() + client.key_file.read_bytes())
    tls = {"enabled": True, "cert_file": str(server.cert_file), "key_file": str(server.key_file)}
    agents //= 4  # all of them are one agent, and handshakes take their time
    rates: dict[str, list[float]] = {"tls": [], "mtls": []}
    limits = {"max_agents_per_connection": agents}
    with running(control_plane(folder)):
        for _ in range(ROUNDS):
            for kind, settings in (
                ("tls", {"auth": {"type": "none"}, "server": {"tls": tls, "limits": limits}}),
                (
                    "mtls",
                    {
                        "auth": {"type": "mtls"},
                        "server": {"tls": {**tls, "client_ca_file": str(authority.ca_file)}, "limits": limits},
                    },
                ),
            ):
                with running(node(folder / kind, settings)):
                    started, rate = _joined(agents, None, "-tls", "-cert", str(pair))
                    rates[kind].append(rate)
                    started.process.kill()
    return [_ratio(f"{agents:,} connect, mTLS ÷ TLS", rates["mtls"], rates["tls"], 0.8)]


def _post(path: str, content: dict[str, Any]) -> tuple[float, Any]:
    """(time of the request, answer)."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:4340/api/v1/{path}", json.dumps(content).encode(), headers)
    began = time.time()
    return began, json.load(urllib.request.urlopen(request, timeout=60))


def _revocation(folder: Path, agents: int) -> list[Row]:
    folder.mkdir(parents=True)
    with running(control_plane(folder)):
        _, key = _post("keys", {"fleet": "all"})
        bearer = folder / "bearer"
        bearer.write_text(key["key"])
        with running(node(folder / "node", {"auth": {"type": "api_key"}})):
            client, _ = _joined(agents, bearer)
            time.sleep(10)
            began, _ = _post("revocations", {"kind": "subject", "value": "all", "reason": "bench"})
            closed = client.line("closed")
            client.process.kill()
    figure = f"p99 {closed['p99'] - began:.2f} s, last {closed['last'] - began:.2f} s"
    return [Row(f"revoked until closed, {agents:,} sessions", figure, "p99 <= 1 s")]


def _many_keys(folder: Path) -> list[Row]:
    settings = {"auth": {"type": "api_key"}}
    folder.mkdir(parents=True, exist_ok=True)
    with running(control_plane(folder)), running(node(folder / "node", settings)):
        pass
    without = _start_seconds(folder, settings)
    put_keys(folder, (FORM.make(os.urandom(FORM.chance_bytes)) for _ in range(MANY_KEYS)))
    with running(control_plane(folder)):
        with running(node(folder / "node", settings)):
            time.sleep(15)  # it takes all of them
            began, key = _post("keys", {"agent": "new"})
            taken_s = _accepted(key["key"]) - began
        started = _start_seconds(folder, settings)
    return [
        Row(f"{MANY_KEYS:,} keys: start of a node", f"{started - without:+.2f} s", "<= +2 s"),
        Row(f"{MANY_KEYS:,} keys: one more is accepted", f"{taken_s:.2f} s", "<= 1 s"),
    ]


def _start_seconds(folder: Path, settings: dict[str, Any]) -> float:
    began = time.monotonic()
    with running(node(folder / "node", settings)):
        return time.monotonic() - began


def _accepted(key: str) -> float:
    """When a node first accepts a key."""
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    headers = {**upgrade, "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Authorization": f"Bearer {key}"}
    while True:
        connection = HTTPConnection("127.0.0.1", 4320)
        connection.request("GET", "/v1/opamp", headers=headers)
        if connection.getresponse().status == 101:
            return time.time()
        time.sleep(0.02)
