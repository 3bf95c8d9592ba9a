from __future__ import annotations

import asyncio
from typing import Any

import pytest

from relay.control.app import ControlPlane
from relay.control.regions.resources import files_for
from relay.errors import Conflict, NotFound, Refused, TooLarge
from relay.policy.packages import PackageFile, PublishedPackage
from relay.policy.snapshot import build
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.control.actors import ANN, BOB
from tests.control.texts import strategy
from tests.packages import PackageAgent, digest, package_assignment, push

LINUX: dict[str, Any] = {"os.type": "linux"}
WINDOWS: dict[str, Any] = {"os.type": "windows"}


@pytest.fixture
async def plane(programs: Programs) -> ControlPlane:
    return await programs.opened()


async def test_version_gains_files_but_never_changes_one(plane: ControlPlane) -> None:
    await push(plane, b"linux", attributes=LINUX)
    await push(plane, b"linux", attributes=LINUX)
    await push(plane, b"windows", attributes=WINDOWS)
    (version,) = plane.packages.listing()
    assert [f["sha256"] for f in version["files"]] == [digest(b"linux"), digest(b"windows")]
    with pytest.raises(Conflict, match="different content for"):
        await push(plane, b"other", attributes=LINUX)
    addon = PublishedPackage(
        name="otelcol", version="1", type="addon", files=[PackageFile(sha256=digest(b"linux"), size=5)]
    )
    with pytest.raises(Conflict, match="has type top-level, not addon"):
        await plane.packages.register(addon, actor=ANN)
    actions = [(e["action"], e["subject"]) for e in await plane.audit.listing()]
    assert actions == [("push", "Package/otelcol@1")] * 2


async def test_two_versions_may_share_bytes(plane: ControlPlane) -> None:
    await push(plane, b"same")
    await push(plane, b"same", version="2")
    await plane.packages.delete("otelcol@1", actor=ANN)
    assert await plane.packages.blobs.size(digest(b"same")) == 4
    await plane.packages.delete("otelcol@2", actor=ANN)
    assert await plane.packages.blobs.size(digest(b"same")) is None
    with pytest.raises(NotFound):
        plane.packages.view("otelcol@2")


async def test_uploads_must_be_complete_and_correct(plane: ControlPlane) -> None:
    async def register(content: bytes, said: bytes) -> None:
        await plane.packages.blobs.receive(digest(said), 0, content)
        file = PackageFile(sha256=digest(said), size=len(said))
        await plane.packages.register(PublishedPackage(name="x", version="1", files=[file]), actor=ANN)

    with pytest.raises(Conflict, match="2 of 4 bytes"):
        await register(b"so", b"some")
    with pytest.raises(Conflict, match="continues at byte 2"):
        await plane.packages.blobs.receive(digest(b"some"), 1, b"x")
    with pytest.raises(Conflict, match="the content does not match"):
        await register(b"evil", b"good")
    assert await plane.packages.blobs.received(digest(b"good")) == (0, False)
    await push(plane, b"")
    assert plane.packages.view("otelcol@1")["bytes"] == 0


async def test_quotas(programs: Programs) -> None:
    small = await programs.opened(storage={"packages": {"max_bytes": 100, "max_file_bytes": 60}})
    await push(small, b"a" * 60)
    with pytest.raises(TooLarge, match="max_bytes"):
        await push(small, b"b" * 50, version="2")
    with pytest.raises(TooLarge, match="max_file_bytes"):
        await push(small, b"c" * 61, version="3")


async def test_assignments_must_name_existing_versions(plane: ControlPlane) -> None:
    await push(plane, b"x")
    with pytest.raises(Refused, match=r"spec.packages.0: there is no package otelcol@2"):
        await apply(plane, package_assignment("2"))
    await apply(plane, package_assignment())
    with pytest.raises(Conflict, match="in use by PackageAssignment agents"):
        await plane.packages.delete("otelcol@1", actor=ANN)
    assert plane.packages.view("otelcol@1")["used_by"] == ["agents"]
    with pytest.raises(Refused, match="already has this name, and rollouts are named after it"):
        await apply(plane, TEMPLATE, assignment("agents"))
    with pytest.raises(Refused, match="PackageAssignment agents has the same priority 0"):
        await apply(plane, package_assignment(name="others"))


async def test_yank_ends_rollouts_and_is_published(plane: ControlPlane) -> None:
    await push(plane, b"one")
    await push(plane, b"two", version="2")
    held = strategy("name: canary, percentage: 10, manual: true", "name: all, percentage: 100")
    await apply(plane, held, package_assignment())
    await apply(plane, package_assignment("2", strategy="canary"))
    assert (await plane.status.of("agents-2"))["state"] == "running"
    await plane.packages.yank("otelcol@2", "crashes", actor=ANN)
    status = await plane.status.of("agents-2")
    assert (status["state"], status["reason"]) == ("aborted", "package otelcol@2 was yanked")
    with pytest.raises(Refused, match="was yanked"):
        await apply(plane, package_assignment("2", priority="3"))
    with pytest.raises(Conflict, match="assign another version"):
        await plane.actions.retry("agents-2", ANN)
    again = (await plane.documents.apply([("f", package_assignment("2", strategy="canary"))])).applied[0]
    assert again.warnings == ("package otelcol@2 was yanked; assign another version",)
    with pytest.raises(Conflict, match="was yanked"):
        await plane.packages.prefetch("otelcol@2", ["eu"], actor=ANN)
    with pytest.raises(Conflict, match="was yanked: crashes"):
        await push(plane, b"more", version="2", attributes=LINUX)
    await plane.packages.yank("otelcol@1", "", actor=ANN)
    policy = await plane.publisher.policy("eu")
    assert build(policy.resources).yanked == {"otelcol@1"}
    assert files_for(plane.ledger.state, "eu") == {}


async def test_packages_survive_a_restart(programs: Programs) -> None:
    first = await programs.opened()
    sha256 = await push(first, b"one")
    await apply(first, package_assignment())
    await first.packages.prefetch("otelcol@1", ["us"], actor=ANN)
    keys = {n: p for n, p in (await first.publisher.policy("eu")).resources.items() if n.startswith("Keys/")}
    before = first.packages.listing()
    await programs.stop(first)
    again = await programs.opened()
    assert again.packages.listing() == before
    assert files_for(again.ledger.state, "us") == {sha256: 3}
    resources = (await again.publisher.policy("eu")).resources
    assert keys.items() <= resources.items(), "addresses that were given stay good"
    other = (await again.publisher.policy("us")).resources
    assert other["Keys/packages"] != resources["Keys/packages"], "each region has its own"


async def test_unconcerned_regions_get_no_packages(plane: ControlPlane) -> None:
    await push(plane, b"one")
    await apply(plane, package_assignment(target_selector="{labels: {region: eu}}"))
    assert (await plane.publisher.policy("us")).resources.keys() == {"KeySet/trust"}
    assert {n.partition("/")[0] for n in (await plane.publisher.policy("eu")).resources} == {
        "KeySet", "Keys", "Yanked", "Prefetch", "Package", "PackageAssignment"
    }  # fmt: skip


async def test_package_goes_out_in_stages_and_back(programs: Programs) -> None:
    plane = await programs.control_plane()
    node = await programs.node(plane.ports["link"])
    await push(plane, b"one")
    await push(plane, b"two", version="2")
    held = strategy("name: canary, percentage: 50, manual: true", "name: all, percentage: 100")
    await apply(plane, held, package_assignment())
    agents = [await PackageAgent.join(node) for _ in range(4)]
    for agent in agents:
        await agent.install(await agent.wait())
    known = plane.fleet.census.agents
    await eventually(lambda: sum(bool(a.packages and a.packages.status == "APPLIED") for a in known.values()) == 4)
    await apply(plane, package_assignment("2", strategy="canary"))
    status = await plane.status.of("agents-2")
    assert (status["template"], status["stages"][0]["counts"]["targets"]) == ("otelcol@2", 2)

    async def offered() -> PackageAgent | None:
        for agent in agents:
            key = plane.fleet.census.agents[agent.agent.uid]
            if key.packages is not None and not key.packages.status and agent.content["otelcol"] == b"one":
                return agent
        return None

    for _ in range(2):
        canary: PackageAgent = await eventually(offered)
        canary.last = await canary.agent.pipe.pushed()
        await canary.install(await canary.wait())
        await eventually(lambda c=canary: plane.fleet.census.agents[c.agent.uid].packages.status == "APPLIED")  # type: ignore[misc,union-attr]
    assert sorted(a.content["otelcol"] for a in agents) == [b"one", b"one", b"two", b"two"]
    await plane.actions.act("agents-2", "rollback", ANN)
    for agent in (a for a in agents if a.content["otelcol"] == b"two"):
        agent.last = await agent.agent.pipe.pushed()
        await agent.install(await agent.wait())
    assert {a.content["otelcol"] for a in agents} == {b"one"}

    async def is_back() -> bool:
        return bool((await plane.status.of("agents-2"))["state"] == "rolled_back")

    await eventually(is_back)
    for agent in agents:
        await agent.close()


async def test_rollout_waits_for_prefetch(programs: Programs) -> None:
    plane = await programs.control_plane()
    node = await programs.node(plane.ports["link"])
    await push(plane, b"one")
    sha256 = await push(plane, b"two" * 1000, version="2")
    await apply(plane, strategy("name: all, percentage: 100"), package_assignment())
    agent = await PackageAgent.join(node)
    await agent.install(await agent.wait())
    await eventually(lambda: any(a.packages for a in plane.fleet.census.agents.values()))
    node.blob_source._endpoint = "127.0.0.1:1"
    await node.blob_source.close()
    await apply(plane, package_assignment("2", strategy="canary", prefetch="true"))

    async def state_is(state: str) -> dict[str, Any] | None:
        status = await plane.status.of("agents-2")
        return status if status["state"] == state else None

    held = await eventually(lambda: state_is("held"))
    assert held["reason"] == "region local has not fetched 1 of the 1 files"
    await eventually(lambda: sha256 in node.packages.problems)
    node.blob_source._endpoint = f"127.0.0.1:{plane.ports['link']}"
    await node.blob_source.close()
    await eventually(lambda: sha256 not in node.packages.problems, within_s=40)  # retries back off
    agent.last = await agent.agent.pipe.pushed()
    await agent.install(await agent.wait())
    await eventually(lambda: state_is("completed"), within_s=15)
    await agent.close()


async def test_canary_of_the_settings_applies_without_a_strategy(programs: Programs) -> None:
    update = {"canary_percentage": 5, "canary_duration": "1h", "approval_required": True}
    plane = await programs.opened(policies={"package_update": update})
    await push(plane, b"one")
    await apply(plane, TEMPLATE, assignment("config"), package_assignment())
    assert (await plane.status.of("config-1"))["state"] == "completed", "that is of packages alone"
    waiting = await plane.status.of("agents-1")
    assert waiting["state"] == "pending_approval"
    assert [(s["name"], s["percentage"]) for s in waiting["stages"]] == [("canary", 5), ("all", 100)]
    assert (await plane.status.of(await plane.actions.approve("agents-1", BOB, waiting["digest"])))[
        "state"
    ] == "running"


async def test_abandoned_uploads_make_room(programs: Programs) -> None:
    plane = await programs.opened(storage={"packages": {"max_bytes": 100}})
    await plane.packages.blobs.receive(digest(b"first"), 0, b"f" * 60)
    await plane.packages.blobs.receive(digest(b"second"), 0, b"s" * 60)
    assert await plane.packages.blobs.received(digest(b"first")) == (0, False)
    assert await plane.packages.blobs.received(digest(b"second")) == (60, False)


async def test_deletion_keeps_bytes_of_a_concurrent_push(plane: ControlPlane) -> None:
    for round_ in range(10):
        content = f"same {round_}".encode()
        await push(plane, content, version="a")
        done = await asyncio.gather(
            plane.packages.delete("otelcol@a", actor=ANN),
            push(plane, content, version=f"b{round_}"),
            return_exceptions=True,
        )
        assert not isinstance(done[0], BaseException)
        if isinstance(done[1], BaseException):  # it saw the bytes before they were deleted
            assert isinstance(done[1], Conflict)
            await push(plane, content, version=f"b{round_}")
        assert await plane.packages.blobs.size(digest(content)) == len(content)


async def test_deletion_ends_the_prefetch_of_its_bytes(plane: ControlPlane) -> None:
    await push(plane, b"one")
    await push(plane, b"two", version="2")
    for key in ("otelcol@1", "otelcol@2"):
        await plane.packages.prefetch(key, ["us"], actor=ANN)
    await plane.packages.delete("otelcol@1", actor=ANN)
    assert plane.ledger.state.prefetches == {"us": {digest(b"two")}}
    await push(plane, b"one", version="3")
    assert plane.ledger.state.prefetches == {"us": {digest(b"two")}}
    await plane.packages.delete("otelcol@2", actor=ANN)
    assert plane.ledger.state.prefetches == {}


async def test_refused_push_leaves_nothing_in_the_store(plane: ControlPlane) -> None:
    await push(plane, b"one")
    with pytest.raises(Conflict, match="different content"):
        await push(plane, b"two")
    assert await plane.packages.blobs.size(digest(b"two")) is None
    with pytest.raises(Conflict, match="has already been uploaded"):
        await plane.packages.blobs.receive(digest(b"one"), 0, b"other")
