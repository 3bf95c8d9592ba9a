"""Packages from the control plane to an agent, through the real programs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.node.app import Node
from relay.policy.packages import PublishedPackage
from relay.policy.published import PACKAGES, PackageRevision, Published
from relay.policy.resources import assignment_resource, keys_resource, package_resource, prefetch_resource
from relay.policy.signatures import statement
from relay.testing.control_plane import ScriptedControlPlane
from tests.conftest import Programs, apply, eventually
from tests.control.actors import ANN
from tests.packages import FAILED, INSTALLING, PackageAgent, digest, download, package_assignment, push

CONTENT = os.urandom(3_000_000)


@pytest.fixture
async def agents() -> AsyncIterator[list[PackageAgent]]:
    joined: list[PackageAgent] = []
    yield joined
    for agent in joined:
        await agent.close()


async def test_file_is_fetched_once_and_served_to_many(programs: Programs, agents: list[PackageAgent]) -> None:
    plane = await programs.control_plane()
    node = await programs.node(plane.ports["link"])
    sha256 = await push(plane, CONTENT)
    await apply(plane, package_assignment())
    agents += [await PackageAgent.join(node) for _ in range(5)]
    agents.append(await PackageAgent.join(node, "http"))
    for agent in agents[:5]:
        await agent.install(await agent.wait())
        assert agent.content["otelcol"] == CONTENT
    polling = agents[5]
    polling.last = await polling.agent.report(capabilities=0x381F)
    await polling.install(await polling.wait())
    assert node.metrics.blob_fetch_bytes == len(CONTENT), "once, however many ask"
    assert node.packages.available_files == [sha256]
    assert node.serving.downloads.sent_bytes == 6 * len(CONTENT)
    await eventually(lambda: sum(a.packages is not None and a.packages.status == "APPLIED"
                                 for a in plane.fleet.census.agents.values()) == 6)  # fmt: skip
    assert (await plane.status.of("agents-1"))["kind"] == "PackageAssignment"


async def test_ranges_permissions_and_refusals(programs: Programs, agents: list[PackageAgent]) -> None:
    plane = await programs.control_plane()
    node = await programs.node(plane.ports["link"])
    sha256 = await push(plane, CONTENT)
    other = await push(plane, b"other", version="2")
    await apply(plane, package_assignment())
    agents.append(await PackageAgent.join(node))
    offer = await agents[0].wait()
    url = offer.packages["otelcol"].file.download_url
    assert url.startswith(f"http://127.0.0.1:{node.ports['websocket']}/v1/packages/{sha256}?expires=")
    status, content, headers = await download(url, Range="bytes=10-19")
    assert (status, content, headers["content-range"]) == (206, CONTENT[10:20], f"bytes 10-19/{len(CONTENT)}")
    assert (await download(url, "HEAD"))[:2] == (200, b"")
    assert (await download(url, Range=f"bytes={len(CONTENT)}-"))[0] == 416
    assert (await download(url, If_None_Match=f'"{sha256}"'))[0] == 304
    assert (await download(url, "POST"))[0] == 405
    for wrong, expected in (
        (url[:-1] + ("0" if url[-1] != "0" else "1"), 403),
        (url.replace(sha256, other), 403),
        (url.replace("expires=", "expires=9"), 403),
        (url.partition("?")[0], 403),
        (url.replace(sha256, "..%2f..%2fetc"), 404),
        (url + "&x=1" * 20, 404),
    ):
        assert (await download(wrong))[0] == expected, wrong
    assert node.metrics.blob_requests == {"hit": 4, "miss": 0, "refused": 4}


async def test_failed_download_is_offered_once_more_then_remembered(
    programs: Programs, agents: list[PackageAgent]
) -> None:
    plane = await programs.control_plane()
    node = await programs.node(plane.ports["link"])
    await push(plane, CONTENT)
    await apply(plane, package_assignment())
    agents.append(await PackageAgent.join(node))
    agent = agents[0]
    first = await agent.wait()
    await agent.say(first, INSTALLING)
    again = (await agent.say(first, FAILED, "cut")).packages_available
    assert again.all_packages_hash == first.all_packages_hash
    await agent.say(again, INSTALLING)
    assert not (await agent.say(again, FAILED, "cut")).HasField("packages_available")
    status = await plane.status.of("agents-1")
    await eventually(
        lambda: any(a.packages is not None and a.packages.failures for a in plane.fleet.census.agents.values())
    )
    assert status["state"] == "completed"
    retried = await plane.status.of(await plane.actions.retry("agents-1", ANN))
    assert retried["troubled"] == [
        {"agent": agent.agent.name, "region": "local", "state": "failed", "message": "otelcol: cut"}
    ]
    agent.last = await agent.agent.pipe.pushed()
    assert (await agent.wait()).all_packages_hash != first.all_packages_hash


async def test_each_agent_gets_its_matching_file(programs: Programs, agents: list[PackageAgent]) -> None:
    plane = await programs.control_plane()
    node = await programs.node(plane.ports["link"])
    await push(plane, b"linux", attributes={"os.type": "linux"})
    await push(plane, b"windows", attributes={"os.type": "windows"})
    await apply(plane, package_assignment())
    agents += [await PackageAgent.join(node, os_type=name) for name in ("linux", "windows", "plan9")]
    for agent, content in zip(agents, (b"linux", b"windows"), strict=False):
        await agent.install(await agent.wait())
        assert agent.content["otelcol"] == content
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(agents[2].wait(), 0.3)


async def test_cached_file_is_served_offline_and_after_a_restart(
    programs: Programs, agents: list[PackageAgent]
) -> None:
    plane = await programs.control_plane()
    node = await programs.node(plane.ports["link"])
    sha256 = await push(plane, CONTENT)
    await apply(plane, package_assignment())
    agents.append(await PackageAgent.join(node))
    await agents[0].install(await agents[0].wait())
    await programs.stop(plane)
    await programs.stop(node)
    again = await programs.node(1)
    assert again.packages.available_files == [], "nothing counts before it was verified again"
    agents.append(await PackageAgent.join(again))
    await agents[1].install(await agents[1].wait())
    assert again.packages.available_files == [sha256]
    path = Path(again._settings.node.data_dir) / "packages" / sha256
    flipped = bytearray(path.read_bytes())
    flipped[1000] ^= 1
    path.write_bytes(flipped)
    await programs.stop(again)
    last = await programs.node(1)
    agents.append(await PackageAgent.join(last))
    await eventually(lambda: last.metrics.verification_failures)
    assert not path.exists()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(agents[2].wait(), 0.3)


async def test_removed_file_is_fetched_again(programs: Programs, agents: list[PackageAgent]) -> None:
    plane = await programs.control_plane()
    node = await programs.node(plane.ports["link"])
    sha256 = await push(plane, CONTENT)
    await apply(plane, package_assignment())
    agents.append(await PackageAgent.join(node))
    url = (await agents[0].wait()).packages["otelcol"].file.download_url
    (Path(node._settings.node.data_dir) / "packages" / sha256).unlink()
    assert (await download(url))[0] == 503
    await eventually(lambda: node.packages.available_files == [sha256])
    assert (await download(url))[1] == CONTENT


async def test_yanked_version_is_refused_at_once(programs: Programs, agents: list[PackageAgent]) -> None:
    plane = await programs.control_plane()
    node = await programs.node(plane.ports["link"])
    await push(plane, CONTENT)
    await apply(plane, package_assignment())
    agents.append(await PackageAgent.join(node))
    url = (await agents[0].wait()).packages["otelcol"].file.download_url
    assert (await download(url, "HEAD"))[0] == 200
    await plane.packages.yank("otelcol@1", "CVE", actor=ANN)
    await eventually(lambda: node.cohorts.snapshot.yanked)
    status, content, _ = await download(url)
    assert (status, content) == (410, b"package otelcol@1 was yanked\n")
    agents.append(await PackageAgent.join(node))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(agents[1].wait(), 0.3)


async def test_require_signature_offers_only_signed_packages(programs: Programs, agents: list[PackageAgent]) -> None:
    plane = await programs.control_plane()
    node = await programs.node(plane.ports["link"], packages={"require_signature": True})
    await push(plane, b"unsigned")
    await apply(plane, package_assignment())
    agents.append(await PackageAgent.join(node))
    await eventually(lambda: node.packages.problems)
    assert list(node.packages.problems.values()) == ["otelcol@1 is not signed"]
    agent = next(iter(node.registry)).agent_id
    async with aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{node.ports['http']}/api/v1/agents/{agent}"
        explained = await (await http.get(f"{url}/explain")).json()
        assert explained["notes"] == ["package otelcol 1 is not offered: otelcol@1 is not signed"]
        assert (await (await http.get(url)).json())["packages"]["installed"] == {}
    key = Ed25519PrivateKey.generate()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    document = "apiVersion: opamp.io/v1\nkind: PackageSigningKey\nmetadata: {name: release}\nspec:\n  public_key: |\n"
    await apply(plane, document + "".join(f"    {line}\n" for line in pem.splitlines()))
    content = b"signed"
    signature = key.sign(statement("otelcol", "2", digest(content), len(content), 0)).hex()
    await push(plane, content, version="2", signature=signature, key="release")
    await apply(plane, package_assignment("2"))
    offer = await agents[0].wait()
    assert offer.packages["otelcol"].file.signature == bytes.fromhex(signature)
    await agents[0].install(offer)
    assert agents[0].content["otelcol"] == content
    assert node.packages.problems == {}
    expires_ms = node._clock.unix_ms() + 500
    short = b"short-lived"
    signature = key.sign(statement("otelcol", "3", digest(short), len(short), expires_ms)).hex()
    await push(plane, short, version="3", signature=signature, key="release", expires_ms=expires_ms)
    await apply(plane, package_assignment("3"))
    agents[0].last = await agents[0].agent.pipe.pushed()
    url = (await agents[0].wait()).packages["otelcol"].file.download_url
    await asyncio.sleep(0.6)
    node.packages.tick()
    assert (await download(url))[0] == 410


# ---- a control plane that misbehaves


async def scripted(programs: Programs, *contents: bytes, **settings: Any) -> tuple[ScriptedControlPlane, Node]:
    upstream = ScriptedControlPlane()
    await upstream.start()
    node = await programs.node(upstream.port, **settings)
    tell(upstream, *contents)
    await eventually(lambda: node.policy.accepted)
    return upstream, node


def tell(upstream: ScriptedControlPlane, *contents: bytes, number: int = 1, prefetch: tuple[str, ...] = ()) -> None:
    """A policy that gives every agent these files, as packages p0, p1, …"""
    versions = [
        PublishedPackage.model_validate(
            {"name": f"p{i}", "version": "1", "files": [{"sha256": digest(content), "size": len(content)}]}
        )
        for i, content in enumerate(contents)
    ]
    held = [package_resource(v) for v in versions]
    if versions:
        revision = PackageRevision(packages=[v.pin for v in versions])
        held.append(assignment_resource(PACKAGES, Published(name="all", stable=revision, rollout=None)))
    upstream.send(dict([*held, keys_resource([bytes(32)], {}), prefetch_resource(prefetch)]), (1, number))


async def test_interrupted_fetch_resumes(programs: Programs, agents: list[PackageAgent]) -> None:
    upstream, node = await scripted(programs, CONTENT)
    upstream.blobs[digest(CONTENT)] = CONTENT
    upstream.cut_after = 1_500_000
    agents.append(await PackageAgent.join(node))
    await agents[0].install(await agents[0].wait())
    offsets = [offset for _, offset in upstream.fetches]
    assert offsets[0] == 0
    assert 1_000_000 <= offsets[1] <= 1_500_000
    assert node.metrics.blob_fetch_bytes < 1.5 * len(CONTENT)
    await programs.stop(node)
    await upstream.stop()


async def test_fetch_resumes_after_a_kill(programs: Programs, agents: list[PackageAgent]) -> None:
    upstream, node = await scripted(programs, CONTENT)
    upstream.blobs[digest(CONTENT)] = CONTENT
    upstream.cut_after = 1_500_000
    agents.append(await PackageAgent.join(node))
    await eventually(lambda: node.packages.problems)
    await programs.stop(node)
    upstream.cut_after = None
    before = len(upstream.fetches)
    again = await programs.node(upstream.port)
    agents.append(await PackageAgent.join(again))
    await agents[1].install(await agents[1].wait())
    assert all(offset >= 1_500_000 for _, offset in upstream.fetches[before:])
    await programs.stop(again)
    await upstream.stop()


async def test_empty_file(programs: Programs, agents: list[PackageAgent]) -> None:
    plane = await programs.control_plane()
    node = await programs.node(plane.ports["link"])
    await push(plane, b"")
    await apply(plane, package_assignment())
    agents.append(await PackageAgent.join(node))
    await agents[0].install(await agents[0].wait())
    assert agents[0].content["otelcol"] == b""


async def test_wrong_bytes_are_never_served(programs: Programs, agents: list[PackageAgent]) -> None:
    upstream, node = await scripted(programs, b"right" * 1000)
    name = digest(b"right" * 1000)
    upstream.blobs[name] = b"wrong" * 1000
    agents.append(await PackageAgent.join(node))
    await eventually(lambda: node.packages.problems)
    assert node.packages.problems == {name: "what arrived is not the file"}
    assert node.metrics.verification_failures
    upstream.blobs[name] = b"right" * 1000
    await agents[0].install(await agents[0].wait())
    assert node.packages.problems == {}
    await programs.stop(node)
    await upstream.stop()


async def test_unavailable_file_is_reported(programs: Programs, agents: list[PackageAgent]) -> None:
    upstream, node = await scripted(programs, b"x")
    agents.append(await PackageAgent.join(node))
    await eventually(lambda: node.packages.problems)
    assert "the control plane does not provide it" in node.condition().status["degraded"][0]
    await eventually(lambda: any(r.status.blob_problems for r in upstream.reports))
    tell(upstream, number=2)
    await eventually(lambda: not node.packages.problems)
    await eventually(lambda: not node.packages.fetching, within_s=10)
    await programs.stop(node)
    await upstream.stop()


async def test_offered_files_stay_and_others_are_evicted(programs: Programs, agents: list[PackageAgent]) -> None:
    old, new = b"o" * 600_000, b"n" * 600_000
    upstream, node = await scripted(programs, old, packages={"max_bytes": 1_000_000})
    upstream.blobs = {digest(content): content for content in (old, new)}
    agents.append(await PackageAgent.join(node))
    await agents[0].install(await agents[0].wait())
    tell(upstream, old, new, number=2)
    await eventually(lambda: node.packages.problems)
    assert "no space" in node.packages.problems[digest(new)]
    assert node.packages.available_files == [digest(old)]
    tell(upstream, new, number=3)
    await eventually(lambda: node.packages.available_files == [digest(new)], within_s=20)
    await programs.stop(node)
    await upstream.stop()


async def test_files_are_prefetched_on_request(programs: Programs) -> None:
    upstream, node = await scripted(programs)
    upstream.blobs[digest(CONTENT)] = CONTENT
    tell(upstream, number=2, prefetch=(digest(CONTENT),))
    await eventually(lambda: node.packages.available_files == [digest(CONTENT)])
    await eventually(lambda: any(digest(CONTENT) in [b.hex() for b in r.status.blobs] for r in upstream.reports))
    await programs.stop(node)
    await upstream.stop()


async def test_agents_over_grpc_need_a_public_url(programs: Programs, agents: list[PackageAgent]) -> None:
    plane = await programs.control_plane()
    await push(plane, b"x")
    await apply(plane, package_assignment())
    silent = await programs.node(plane.ports["link"])
    agents.append(await PackageAgent.join(silent, "grpc"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(agents[0].wait(), 0.3)
    named = await programs.node(plane.ports["link"], name="two", packages={"public_url": "https://relay.example.test"})
    agents.append(await PackageAgent.join(named, "grpc"))
    offer = await agents[1].wait()
    assert offer.packages["otelcol"].file.download_url.startswith("https://relay.example.test/v1/packages/")


async def test_damaged_file_is_refetched_and_reoffered(programs: Programs, agents: list[PackageAgent]) -> None:
    plane = await programs.control_plane()
    node = await programs.node(plane.ports["link"])
    sha256 = await push(plane, CONTENT)
    await apply(plane, package_assignment())
    agents += [await PackageAgent.join(node) for _ in range(3)]
    offers = [await agent.wait() for agent in agents]
    path = node.packages.find(sha256, _query(offers[0].packages["otelcol"].file.download_url)).path
    await asyncio.to_thread(_flip, path)
    for agent, offer in zip(agents, offers, strict=True):
        url = offer.packages["otelcol"].file.download_url
        assert digest((await download(url))[1]) != sha256, "nobody has noticed yet"
        await agent.say(offer, INSTALLING)
    for agent, offer in zip(agents, offers, strict=True):
        again = await agent.say(offer, FAILED, "hash mismatch")
        if again.HasField("packages_available"):
            await agent.say(again.packages_available, INSTALLING)
            await agent.say(again.packages_available, FAILED, "hash mismatch")
    await eventually(lambda: node.metrics.verification_failures == 1)
    for agent in agents:
        await agent.install(await agent.wait())
        assert agent.content["otelcol"] == CONTENT
    assert node.metrics.blob_fetch_bytes == 2 * len(CONTENT)
    await eventually(lambda: all(r.packages is not None and r.packages.status == "APPLIED" for r in node.registry))


def _query(url: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in url.partition("?")[2].split("&"))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
