"""Helpers for tests: push packages to a control plane, and agents that install them."""

from __future__ import annotations

import hashlib
from typing import Any

import aiohttp

from relay.control.app import ControlPlane
from relay.node.app import Node
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.policy.packages import PackageFile, PublishedPackage
from tests.control.actors import ANN
from tests.wire import TestAgent

ACCEPTS = 0x3807 | 0x18
INSTALLED, INSTALLING, FAILED = (
    pb.PackageStatusEnum_Installed,
    pb.PackageStatusEnum_Installing,
    pb.PackageStatusEnum_InstallFailed,
)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def push(
    plane: ControlPlane, content: bytes, name: str = "otelcol", version: str = "1", *, piece: int = 1 << 20, **more: Any
) -> str:
    """Push a file; return its SHA-256."""
    sha256 = digest(content)
    offset, complete = await plane.packages.blobs.received(sha256)
    while not complete and offset < len(content):
        offset = await plane.packages.blobs.receive(sha256, offset, content[offset : offset + piece])
    file = PackageFile(sha256=sha256, size=len(content), **more)
    await plane.packages.register(PublishedPackage(name=name, version=version, files=[file]), actor=ANN)
    return sha256


def package_assignment(version: str = "1", name: str = "agents", package: str = "otelcol", **spec: str) -> str:
    more = "".join(f"  {key}: {value}\n" for key, value in spec.items())
    return (
        f"---\napiVersion: opamp.io/v1\nkind: PackageAssignment\nmetadata: {{name: {name}}}\n"
        f"spec:\n  packages: [{{name: {package}, version: '{version}'}}]\n{more}"
    )


class PackageAgent:
    """An agent that downloads offered packages, over the transport of the test."""

    def __init__(self, agent: TestAgent) -> None:
        self.agent = agent
        self.content: dict[str, bytes] = {}
        self.offers = 0
        self.refuses = False
        """Whether it fails to install its downloads."""

    @classmethod
    async def join(cls, node: Node, transport: str = "websocket", **attributes: str) -> PackageAgent:
        agent = cls(await TestAgent.over(transport, node.ports))
        message = agent.agent.message(capabilities=ACCEPTS, health=pb.ComponentHealth(healthy=True))
        message.agent_description.identifying_attributes.add(
            key="service.instance.id"
        ).value.string_value = agent.agent.name
        for key, value in attributes.items():
            attribute = message.agent_description.non_identifying_attributes.add(key=key.replace("_", "."))
            attribute.value.string_value = value
        agent.last = await agent.agent.pipe.exchange(message)
        return agent

    last = pb.ServerToAgent()
    """The newest answer."""

    async def wait(self) -> pb.PackagesAvailable:
        """The current offer; waits for one if there is none."""
        while not self.last.HasField("packages_available"):
            self.last = await self.agent.pipe.pushed()
        offer = self.last.packages_available
        self.offers += 1
        return offer

    async def say(self, offer: pb.PackagesAvailable, status: int, error: str = "") -> pb.ServerToAgent:
        statuses = pb.PackageStatuses(server_provided_all_packages_hash=offer.all_packages_hash)
        for name, package in offer.packages.items():
            entry = statuses.packages[name]
            entry.name, entry.status, entry.error_message = name, status, error  # type: ignore[assignment]
            entry.server_offered_version, entry.server_offered_hash = package.version, package.hash
            if status == INSTALLED:
                entry.agent_has_version, entry.agent_has_hash = package.version, package.hash
        self.last = await self.agent.report(capabilities=ACCEPTS, package_statuses=statuses)
        return self.last

    async def install(self, offer: pb.PackagesAvailable) -> None:
        await self.say(offer, INSTALLING)
        for name, package in offer.packages.items():
            status, content, _ = await download(package.file.download_url)
            assert status == 200, (status, content)
            assert digest(content) == package.file.content_hash.hex()
            self.content[name] = content
        await (self.say(offer, FAILED, "no room") if self.refuses else self.say(offer, INSTALLED))

    async def close(self) -> None:
        await self.agent.close()


async def download(url: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with aiohttp.ClientSession() as session, session.request(method, url, headers=named) as response:
        return response.status, await response.read(), {k.lower(): v for k, v in response.headers.items()}
