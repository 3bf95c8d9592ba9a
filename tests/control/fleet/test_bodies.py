"""Effective configs and component lists, each stored once."""

from __future__ import annotations

import pytest

from relay.control.fleet import query
from relay.control.fleet.fleet import Fleet
from relay.errors import NotFound
from relay.ids import sha256
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from tests.control.reports import ONE, entry, up
from tests.fleet.agents import record


async def test_effective_configs_are_requested_once(fleet: Fleet) -> None:
    await up(fleet, ONE)
    effective = pb.EffectiveConfig()
    effective.config_map.config_map[""].body = b"x"
    body = effective.SerializeToString()
    made = record("a")
    made.effective_config_digest = sha256(body)
    report = link_pb2.StatusReport(sequence=1)
    report.agents.add(instance_uid=made.instance_uid, state=made.state())
    assert list((await fleet.report(ONE, report)).want_effective_configs) == [sha256(body)]
    with pytest.raises(NotFound, match="not arrived yet"):
        await fleet.bodies.effective_config(await query.find(fleet, "a"))
    answer = link_pb2.StatusReport(sequence=2)
    answer.effective_configs.add(digest=sha256(body), body=body)
    await fleet.report(ONE, answer)
    assert await fleet.bodies.effective_config(await query.find(fleet, "a")) == effective
    assert not (await fleet.report(ONE, report)).want_effective_configs
    await fleet.report(ONE, link_pb2.StatusReport(sequence=3, agents=[entry("b")]))
    with pytest.raises(NotFound, match="reported no"):
        await fleet.bodies.effective_config(await query.find(fleet, "b"))


async def test_unused_bodies_are_removed(fleet: Fleet) -> None:
    await up(fleet, ONE)
    bodies = {}
    for name in ("a", "b"):
        config = pb.EffectiveConfig()
        config.config_map.config_map[""].body = name.encode()
        body = config.SerializeToString()
        bodies[name] = sha256(body)
        made = record(name)
        made.effective_config_digest = bodies[name]
        report = link_pb2.StatusReport(sequence=1)
        report.agents.add(instance_uid=made.instance_uid, state=made.state())
        report.effective_configs.add(digest=bodies[name], body=body)
        await fleet.report(ONE, report)
    assert len(fleet.bodies) == 2
    found = await fleet.bodies.effective_config_of(bodies["a"].hex()[:10])
    assert found is not None
    assert await fleet.bodies.effective_config_of("0" * 64) is None
    await fleet.report(ONE, link_pb2.StatusReport(sequence=2, removed=[record("a").instance_uid]))
    await fleet.expire()
    assert (bodies["a"] in fleet.bodies, bodies["b"] in fleet.bodies) == (False, True)
