"""The service behind the link, without the link."""

from __future__ import annotations

import asyncio

import pytest

from relay.aio.tasks import Tasks
from relay.control.app import ControlPlane
from relay.control.link import Upstream
from relay.pb.relay.v1 import link_pb2
from relay.testing.clock import ManualClock
from tests.conftest import TEMPLATE, apply, assignment
from tests.control.reports import ONE, entry
from tests.packages import package_assignment, push


@pytest.fixture
def upstream(plane: ControlPlane) -> Upstream:
    return Upstream(plane.ledger, plane.trust, plane.publisher, plane.fleet, plane.blobs, Tasks(), clock=ManualClock())


async def test_node_gets_the_policy_and_files_of_its_region(plane: ControlPlane, upstream: Upstream) -> None:
    await apply(plane, TEMPLATE, assignment("a"))
    sha256 = await push(plane, b"bytes")
    assert upstream.blob_bytes(ONE, sha256) is None, "nothing of its region names it"
    await apply(plane, package_assignment())
    assert (await upstream.policy("eu")).version == (1, 1)
    assert upstream.blob_bytes(ONE, sha256) == 5
    assert b"".join([piece async for piece in upstream.read_blob(sha256, 2)]) == b"tes"


async def test_reports_reach_the_fleet(plane: ControlPlane, upstream: Upstream) -> None:
    await upstream.node_reporting(ONE)
    ack = await upstream.report(ONE, link_pb2.StatusReport(sequence=3, agents=[entry("x")]))
    assert (ack.sequence, len(plane.fleet.census.agents)) == (3, 1)
    upstream.node_gone(ONE)
    assert not plane.fleet.census.nodes["eu/one"].connected


async def test_node_that_is_ahead_is_recorded(plane: ControlPlane, upstream: Upstream) -> None:
    assert await upstream.behind(ONE, (7, 7)) == (1, 0)
    assert plane.fleet.census.nodes["eu/one"].ahead == (7, 7)
    assert await upstream.behind(ONE, None) is None
    assert plane.fleet.census.nodes["eu/one"].ahead is None


async def test_unfetchable_file_is_verified_occasionally(plane: ControlPlane) -> None:
    clock, tasks = ManualClock(), Tasks()
    upstream = Upstream(plane.ledger, plane.trust, plane.publisher, plane.fleet, plane.blobs, tasks, clock=clock)
    await upstream.node_reporting(ONE)
    sha256 = await push(plane, b"bytes")
    looked: list[str] = []

    async def verify(sha256: str) -> None:
        looked.append(sha256)

    plane.blobs.verify = verify  # type: ignore[method-assign]
    problem = link_pb2.BlobProblem(sha256=bytes.fromhex(sha256), reason="damaged")
    report = link_pb2.StatusReport(sequence=1, status=link_pb2.NodeStatus(blob_problems=[problem]))
    for wait_s in (0, 10, 600):
        clock.advance(wait_s)
        await upstream.report(ONE, report)
        await asyncio.sleep(0)
    assert looked == [sha256, sha256]
    await tasks.close()


async def test_watchers_are_woken_by_a_publication(plane: ControlPlane, upstream: Upstream) -> None:
    woken = asyncio.Event()
    upstream.watch(woken)
    await plane.publisher.publish()
    assert woken.is_set()
    woken.clear()
    upstream.unwatch(woken)
    await plane.publisher.publish()
    assert not woken.is_set()
